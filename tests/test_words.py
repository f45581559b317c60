"""Word embeddings are read where they lie, in every type a checkpoint may have, and cost no memory."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from app.loading import load_engine
from model.embedding import OUTPUTS
from model.words import WordTable
from tests.reference import make_checkpoint, random_batch
from weights.loader import read_words

SIZES = {
    "vocab_size": 300,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "max_position_embeddings": 66,
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("offset", [0, 4098])
def test_rows_are_the_files_own(dtype: str, offset: int, seed: int, tmp_path: Path) -> None:
    stored = np.dtype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)
    table = np.random.default_rng(seed).standard_normal((500, 24)).astype(stored)
    (tmp_path / "file").write_bytes(b"x" * offset + table.tobytes() + b"more")
    words = WordTable.in_file(tmp_path / "file", offset, table.shape, dtype)
    ids = np.random.default_rng(seed).integers(0, 500, 70).astype(np.int32)
    for _ in range(2):  # pages that were given back are read again
        found = words.rows(ids)
        assert found.dtype == np.float32 and found.flags.writeable
        np.testing.assert_array_equal(found, table[ids].astype(np.float32))
    with pytest.raises(IndexError):
        words.rows(np.array([500], np.int32))


def test_a_file_that_is_too_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    with pytest.raises(TypeError, match="too small"):
        WordTable.in_file(tmp_path / "file", 0, (10, 10), "float32")


def test_what_is_looked_up_does_not_stay_resident(tmp_path: Path) -> None:
    np.ones((1 << 14, 1 << 8), np.float32).tofile(tmp_path / "file")  # 16 MiB
    words = WordTable.in_file(tmp_path / "file", 0, (1 << 14, 1 << 8), "float32")
    assert words.rows(np.arange(1 << 14, dtype=np.int32)).sum() == 1 << 22
    assert resident_bytes(tmp_path / "file") < 1 << 20


@pytest.mark.parametrize("safetensors", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_checkpoints_words_are_mapped(
    safetensors: bool, dtype: torch.dtype, seed: int, tmp_path: Path
) -> None:
    encoder = make_checkpoint(tmp_path, seed=seed, safetensors=safetensors, dtype=dtype, **SIZES)
    info = read_words(tmp_path)
    assert info.offset is not None
    words = WordTable.in_file(info.file, info.offset, info.shape, info.dtype)
    expected = encoder.to(dtype).embeddings.word_embeddings.weight.detach().float().numpy()
    np.testing.assert_array_equal(words.rows(np.arange(300, dtype=np.int32)), expected)


@pytest.mark.parametrize("how", ["float64", "column by column"])
def test_words_that_cannot_be_mapped_are_read(how: str, seed: int, tmp_path: Path) -> None:
    encoder = make_checkpoint(tmp_path / "plain", seed=seed, safetensors=False, **SIZES)
    make_checkpoint(tmp_path / "other", seed=seed, safetensors=False, **SIZES)
    state = encoder.state_dict()
    name = "embeddings.word_embeddings.weight"
    state[name] = state[name].double() if how == "float64" else state[name].T.contiguous().T
    torch.save(state, tmp_path / "other" / "pytorch_model.bin")
    info = read_words(tmp_path / "other")
    assert info.dtype == "float64" or info.offset is None
    batch = random_batch(np.random.default_rng(seed), [9, 30], vocab_size=300)
    plain, other = (
        load_engine(tmp_path / folder, unused_ids=(0, 1, 2, 3))[0].forward(batch, OUTPUTS)
        for folder in ("plain", "other")
    )
    for one, two in zip(plain, other, strict=True):
        assert one.dense is not None and two.dense is not None
        np.testing.assert_array_equal(one.dense, two.dense)


def resident_bytes(path: Path) -> int:
    """Resident bytes of a file's mappings in this process."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            ours = line.endswith(str(path.resolve()))
        elif ours and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found
