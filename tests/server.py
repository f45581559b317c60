"""A real `trivec serve` in a process of its own, on a free port; with the fake model where told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).parent.parent


PYTHON = os.environ.get("TRIVEC_TEST_SERVER_PYTHON", sys.executable)
"""The interpreter that has the server's dependencies; `make test-clients` runs tests in another."""
REAL = ("app.cli", "serve", "--port", "0")
FAKE = ("tests.fake_server",)
"""The service with `tests.fakes.FakeModel`: ready in a second, without TensorFlow."""


@contextmanager
def running_server(
    data: Path, command: Sequence[str] = REAL, **environment: str
) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    """A ready server on the data folder and a client of it; killed in the end if it still runs."""
    process = subprocess.Popen(
        [PYTHON, "-m", *command, "--data-dir", str(data)],
        env={**os.environ, "TRIVEC_LOG_LEVEL": "warning", **environment},
        cwd=ROOT,
    )
    try:
        with httpx.Client(base_url=_address(process, data), timeout=600) as client:
            while client.get("/health/ready").status_code != 200:
                assert process.poll() is None, f"the server ended with status {process.returncode}"
                time.sleep(0.1)
            yield client, process
    finally:
        process.kill()
        process.wait()


def _address(process: subprocess.Popen[bytes], data: Path) -> str:
    """The server writes where it listens into the lock file of its data folder."""
    lock = data / "trivec.lock"
    while process.poll() is None:
        content = lock.read_text() if lock.exists() else ""
        if content and (written := json.loads(content)).get("pid") == process.pid and written["url"]:
            return str(written["url"])
        time.sleep(0.1)
    raise AssertionError(f"the server ended with status {process.returncode}")
