"""README.md is true: its tour is typed against a real server, its library example is run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.server import running_server

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def tour() -> list[tuple[str, str]]:
    """Command and shown answer of each console block."""
    blocks = re.findall(r"```console\n\$ (.*?)\n```", README, re.DOTALL)
    return [_split(block) for block in blocks]


def _split(block: str) -> tuple[str, str]:
    """The answer starts at the first line that opens a JSON object in column 0."""
    lines = block.split("\n")
    start = next(n for n, line in enumerate(lines) if line.startswith("{"))
    return "\n".join(lines[:start]), "\n".join(lines[start:])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with running_server(tmp_path_factory.mktemp("data")) as (client, _):
        yield client


def test_the_tour_gives_what_readme_shows(server: httpx.Client) -> None:
    address = f"{server.base_url.host}:{server.base_url.port}"
    blocks = tour()
    assert len(blocks) >= 8
    for command, shown in blocks:
        typed = command.replace("localhost:8000", address)
        found = subprocess.run(["bash", "-c", typed], capture_output=True, text=True, check=True).stdout
        _assert_alike(json.loads(found), json.loads(shown), command)


def _assert_alike(found: object, shown: object, where: str) -> None:
    """Equal but for numbers that another processor rounds otherwise, and request ids."""
    if isinstance(shown, dict):
        assert isinstance(found, dict) and found.keys() == shown.keys(), (where, found)
        for key in shown:
            if key != "request_id":
                _assert_alike(found[key], shown[key], f"{where}: {key}")
    elif isinstance(shown, list):
        assert isinstance(found, list) and len(found) == len(shown), (where, found)
        for one, other in zip(found, shown, strict=True):
            _assert_alike(one, other, where)
    elif isinstance(shown, float):
        assert found == pytest.approx(shown, abs=2e-4), where
    else:
        assert found == shown, where


def test_the_library_example_runs() -> None:
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert example is not None
    found = subprocess.run(
        [sys.executable, "-c", example[1]], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert found.split()[0] == "(256,)" and "False" in found


def test_every_command_of_readme_exists() -> None:
    for command in set(re.findall(r"^trivec (\w+)", README, re.MULTILINE)):
        subprocess.run([sys.executable, "-m", "app.cli", command, "--help"], cwd=ROOT, check=True, stdout=-3)
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`make ([\w-]+)`", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_documents_name_files_that_exist() -> None:
    for name in ("README.md", "ARCHITECTURE.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for path in re.findall(r"`((?:app|model|weights|tests|benchmarks)/[\w/.-]+)`", text):
            assert (ROOT / path).exists(), f"{name} names {path}"
