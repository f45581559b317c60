"""docs/clients.md and docs/tei.md are true: every snippet runs against a server."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import Server

pytestmark = pytest.mark.clients

DOCS = Path(__file__).parent.parent.parent / "docs"
DOCUMENT = "\n".join((DOCS / name).read_text(encoding="utf-8") for name in ("clients.md", "tei.md"))
SNIPPETS = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
COMMANDS = re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL)


def title(snippet: str) -> str:
    """The library that a snippet is about."""
    return re.findall(r"^(?:from|import) ([\w.]+)", snippet, re.MULTILINE)[-1]


def missing(module: str) -> bool:
    """Whether a module, or one of the packages that it is in, is not installed."""
    try:
        return importlib.util.find_spec(module) is None
    except ModuleNotFoundError:
        return True


@pytest.mark.parametrize("snippet", SNIPPETS, ids=title)
def test_a_snippet(server: Server, snippet: str) -> None:
    if missing(title(snippet)):
        pytest.skip(f"{title(snippet)} is not installed: make test-clients")
    code = snippet.replace("http://localhost:8000", server.url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command(server: Server, command: str) -> None:
    typed = command.replace("http://localhost:8000", server.url)
    done = subprocess.run(["bash", "-c", typed], capture_output=True, text=True, check=True)
    assert '"embedding":[' in done.stdout or '[[{"index":' in done.stdout


def test_there_is_something_to_run() -> None:
    assert len(SNIPPETS) >= 14 and len(COMMANDS) == 2
