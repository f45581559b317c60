"""A running server for client libraries, which live in an environment of their own.

`TRIVEC_TEST_SERVER_PYTHON` names the interpreter that has the server's dependencies (`make test-clients`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parent.parent.parent
PYTHON = os.environ.get("TRIVEC_TEST_SERVER_PYTHON", sys.executable)
# Libraries that would report their use to their makers.
os.environ.update(HAYSTACK_TELEMETRY_ENABLED="False", LANGSMITH_TRACING="false", DO_NOT_TRACK="1")


@dataclass(frozen=True)
class Server:
    """A server that runs, and how a test looks into it."""

    url: str

    @property
    def v1(self) -> str:
        """What OpenAI's clients take for a base URL."""
        return f"{self.url}/v1"

    def sent(self) -> list[dict[str, Any]]:
        """Path and body of the requests since the last call."""
        found: list[dict[str, Any]] = httpx.get(f"{self.url}/_test/sent").json()
        return found

    def hold(self) -> None:
        """Keep the model from answering."""
        httpx.post(f"{self.url}/_test/hold")

    def release(self) -> None:
        """Let the model answer."""
        httpx.post(f"{self.url}/_test/release")

    def passes(self) -> int:
        """Forward passes that have begun."""
        return int(httpx.get(f"{self.url}/_test/queue").json()["passes"])

    def queued_tokens(self) -> int:
        """Tokens that wait for the model."""
        return int(httpx.get(f"{self.url}/_test/queue").json()["tokens"])

    def embed(self, texts: list[str]) -> list[list[float]]:
        """Dense vectors from the native route."""
        found = httpx.post(f"{self.url}/embed", json={"texts": texts, "outputs": ["dense"]}).json()
        return [one["dense"] for one in found["results"]]

    def rerank(self, query: str, documents: list[str]) -> list[tuple[int, float]]:
        """Index and score from the native route, best first."""
        found = httpx.post(f"{self.url}/rerank", json={"query": query, "documents": documents}).json()
        return [(one["index"], one["score"]) for one in found["results"]]


def wait_until(holds: Callable[[], bool]) -> None:
    """Return once `holds` does; fail where it never does."""
    give_up = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < give_up, "it never came to hold"
        time.sleep(0.01)


@contextmanager
def _running(**knobs: Any) -> Iterator[Server]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRIVEC_")}
    process = subprocess.Popen(
        [PYTHON, "-m", "tests.clients.server", json.dumps(knobs)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, f"the server ended with status {process.wait()}"
        with httpx.Client(base_url=url, timeout=60) as client:
            # The socket listens before the server does: the first request waits for it.
            assert client.get("/health/ready").status_code == 200
        yield Server(url)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server without keys."""
    with _running() as running:
        yield running


@pytest.fixture(scope="session")
def start() -> Callable[..., AbstractContextManager[Server]]:
    """Starts a server with settings of its own: `with start(api_keys=["key"]) as server`."""
    return _running
