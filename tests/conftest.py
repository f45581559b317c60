"""Fixtures that every room's tests share."""

from __future__ import annotations

import json
import lzma
import os
import secrets
from pathlib import Path

import pytest

MINI = Path(__file__).parent.parent / "weights" / "mini"


@pytest.fixture
def seed(record_property: pytest.FixtureRequest) -> int:
    """A fresh seed, printed with a failing test; TRIVEC_TEST_SEED runs one again."""
    value = int(os.environ.get("TRIVEC_TEST_SEED") or secrets.randbits(32))
    print(f"seed: TRIVEC_TEST_SEED={value}")
    return value


@pytest.fixture(scope="session")
def mini() -> Path:
    """The bundled checkpoint."""
    return MINI


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with data that is not part of the project."""
    folder = Path(os.environ.get("TRIVEC_TEST_DATA", "../shared"))
    if not (folder / "data" / "dev").is_dir():
        pytest.skip(f"no test data in {folder} (set TRIVEC_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def real_tokenizer(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with bge-m3's own `tokenizer.json`, `tokenizer_config.json` and `config.json`."""
    source = test_data / "tokenizer"
    if not (source / "tokenizer.json.xz").exists():
        pytest.skip(f"no tokenizer in {source}")
    folder = tmp_path_factory.mktemp("bge-m3-tokenizer")
    (folder / "tokenizer.json").write_bytes(lzma.decompress((source / "tokenizer.json.xz").read_bytes()))
    for name in (
        "config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "sentencepiece.bpe.model",
    ):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


@pytest.fixture(scope="session")
def golden_token_ids(test_data: Path) -> list[dict[str, object]]:
    """Texts with the ids that the real tokenizer gives them."""
    file = test_data / "tokenizer" / "golden_token_ids.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
