"""docs/bulk.md is true: its commands and its program run against a served app with the fake model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.server import FAKE, running_server

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "bulk.md").read_text(encoding="utf-8")
CORPUS = [{"id": "tower", "text": "The Eiffel Tower opened in 1889."}, {"id": "dom", "text": ""}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with running_server(tmp_path_factory.mktemp("data"), FAKE) as (client, _):
        yield client


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", GUIDE, re.DOTALL)


def here(source: str, server: httpx.Client) -> str:
    return source.replace("localhost:8000", f"{server.base_url.host}:{server.base_url.port}")


def test_the_commands_store_the_corpus(server: httpx.Client, tmp_path: Path) -> None:
    lines = "".join(json.dumps(one) + "\n" for one in CORPUS)
    (tmp_path / "corpus.jsonl").write_text(lines, encoding="utf-8")
    commands = blocks("sh")
    assert len(commands) == 2
    found = [
        subprocess.run(
            ["bash", "-c", here(command, server)], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
        for command in commands
    ]
    whole = json.loads(found[0])
    assert (whole["upserted"], whole["failed"]) == (1, 1)
    answer = sorted(map(json.loads, found[1].splitlines()), key=lambda one: one.get("index", 9))
    shown = [json.loads(one) for one in blocks("json")[0].splitlines()]
    shown[-1]["summary"]["model"] = "fake"
    assert answer == shown


def test_the_program_stores_and_finds_its_document(server: httpx.Client) -> None:
    (program,) = blocks("python")
    found = subprocess.run(
        [sys.executable, "-c", here(program, server)], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["tower", "1.0"]


def test_the_settings_that_the_guides_name_exist() -> None:
    from app.settings import Settings

    for guide in (ROOT / "docs").glob("*.md"):
        for name in re.findall(r"TRIVEC_(\w+)", guide.read_text(encoding="utf-8")):
            assert name.lower() in Settings.model_fields, f"{guide.name} names TRIVEC_{name}"
