"""`trivec serve` as it is, in a process of its own, with a model that does what its texts tell it.

    python -m tests.hostile.server FOLDER '{"request_timeout_s": 2}'

Its words: `zzhang` keeps a forward pass until the file `release` lies beside the data folder, `zzraise` makes
it raise, `zznan` gives numbers that are none, `zzfew` a result too few, `zzslow` takes 0.2 s. `zztokhang` and
`zztokraise` do the same to the tokenizer. The file `hold-load` keeps the model from being loaded.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from app import main
from app.server import serve
from app.settings import Settings
from model.embedding import Counting, Embedding, IntArray, Output
from tests.fakes import FakeModel, FakeTokens, split, token_id

ROOT = Path(__file__).parent.parent.parent
RELEASE, HOLD_LOAD = "release", "hold-load"
HANG, RAISE, NAN, FEW, SLOW, MEMORY = (
    token_id(word) for word in ("zzhang", "zzraise", "zznan", "zzfew", "zzslow", "zzmemory")
)
COMMANDS = frozenset((HANG, RAISE, NAN, FEW, SLOW, MEMORY))


class Obedient(FakeModel):
    """A model that misbehaves on request."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._said: set[int] = set()
        """Its words that a text has held. Words of chance have the ids of these too."""

    def _hang(self) -> None:
        while not (self._folder / RELEASE).exists():
            time.sleep(0.01)

    def tokenize(
        self, texts: Sequence[str], max_length: int | None, *, count_terms: Counting | None = None
    ) -> list[FakeTokens]:
        for text in texts:
            if "zz" in text:
                self._said |= {token_id(word) for word, _ in split(text)} & COMMANDS
            if "zztokhang" in text:
                self._hang()
            if "zztokraise" in text:
                raise RuntimeError(f"SECRET tokenizer detail of {text}")
        return super().tokenize(texts, max_length, count_terms=count_terms)

    def forward(
        self,
        batch: Sequence[IntArray],
        outputs: Collection[Output],
        *,
        normalize: bool = True,
        between: Callable[[], None] | None = None,
    ) -> list[Embedding]:
        words = {int(token) for ids in batch for token in ids} & self._said
        if HANG in words:
            self._hang()
        if SLOW in words:
            time.sleep(0.2)
        if RAISE in words:
            raise RuntimeError("SECRET engine detail at /some/path")
        if MEMORY in words:
            raise MemoryError("SECRET")
        found = super().forward(batch, outputs, normalize=normalize, between=between)
        if FEW in words:
            return found[:-1]
        if NAN in words:
            return [replace(one, dense=np.full_like(one.dense, np.nan)) for one in found]
        return found


def _load(settings: Settings) -> Obedient:
    folder = settings.data_dir.parent
    while (folder / HOLD_LOAD).exists():
        time.sleep(0.01)
    return Obedient(folder)


@dataclass(frozen=True, slots=True)
class Running:
    """A server process; `lines` are what it has written to stderr so far."""

    process: subprocess.Popen[bytes]
    folder: Path
    url: str
    log: Path

    @property
    def port(self) -> int:
        return int(re.search(r":(\d+)$", self.url)[1])  # type: ignore[index]

    @property
    def lines(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def release(self) -> None:
        """Let everything go that hangs."""
        (self.folder / RELEASE).touch()

    def memory(self) -> int:
        """Resident bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]

    def client(self, timeout_s: float = 30.0) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=timeout_s)


@contextmanager
def hostile_server(
    folder: Path, *, ready: bool = True, environment: dict[str, str] | None = None, **knobs: Any
) -> Iterator[Running]:
    """A running server on `folder / "data"`; killed in the end if it still runs."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log"
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.server", str(folder), json.dumps(knobs)],
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            cwd=ROOT,
            stderr=errors,
        )
    try:
        running = Running(process, folder, _address(process, folder / "data", log), log)
        if ready:
            with running.client() as client:
                while client.get("/health/ready").status_code != 200:
                    assert process.poll() is None, running.lines
                    time.sleep(0.02)
        yield running
    finally:
        process.kill()
        process.wait()


def _address(process: subprocess.Popen[bytes], data: Path, log: Path) -> str:
    """The server writes where it listens into the lock file of its data folder."""
    lock = data / "trivec.lock"
    while process.poll() is None:
        content = lock.read_text() if lock.exists() else ""
        if content and (written := json.loads(content)).get("pid") == process.pid and written["url"]:
            return str(written["url"])
        time.sleep(0.02)
    raise AssertionError(f"the server ended with status {process.returncode}: {log.read_text()}")


def run(folder: str, knobs: str) -> int:
    """Serve until told to stop."""
    # int8: so that TensorFlow is not imported for a model that does not need it.
    given = {"port": 0, "engine": "int8", **json.loads(knobs)}
    main.load_model = _load  # type: ignore[assignment]
    return serve(Settings(data_dir=Path(folder) / "data", **given))


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:]))
