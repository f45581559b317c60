"""Servers in processes of their own: Trivec and its peers, started, watched, stopped and let go on."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import httpx

from benchmarks.encode_sides.process import LOG_TAIL, QUIET, WAITING
from benchmarks.encode_sides.protocol import PR_SET_PDEATHSIG
from benchmarks.encode_sides.registry import ROOT, interpreter

HOST = "127.0.0.1"
START_S = 900.0
_TICKS = os.sysconf("SC_CLK_TCK")


class ServerError(RuntimeError):
    """A server did not start, or has ended; the message ends with what it wrote last."""


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """A server that answers."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    start_s: float

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return HOST, self.port

    @property
    def url(self) -> str:
        """The same as a URL."""
        return f"http://{HOST}:{self.port}"

    def stop(self) -> None:
        """Let no thread of it run until `go_on`."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """After `stop`."""
        os.killpg(self.process.pid, signal.SIGCONT)

    def cpu_s(self) -> float:
        """Core time that it has taken."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def memory_mib(self) -> dict[str, float]:
        """Resident memory, and of that what is in no file."""
        found: dict[str, float] = {}
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("VmRSS", "RssAnon"):
                found[name] = int(value.split()[0]) / 1024
        return {"resident": found["VmRSS"], "anonymous": found["RssAnon"]}

    def said(self) -> str:
        """The end of its log."""
        self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, self.log.tell() - LOG_TAIL))
        return self.log.read().decode(errors="replace")


@contextmanager
def started(
    name: str, command: Sequence[str | Path], environment: Mapping[str, str], port: int, ready: str
) -> Iterator[Served]:
    """A server that has answered `ready` with 200; killed in the end. Raises ServerError."""
    with tempfile.TemporaryFile() as log:
        began = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **QUIET, **WAITING[False], **environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        try:
            _wait(process, f"http://{HOST}:{port}{ready}", began)
            yield Served(name, port, process, log, time.monotonic() - began)
        except (ServerError, httpx.HTTPError) as error:
            tail = Served(name, port, process, log, 0.0).said()
            raise ServerError(f"{name}: {error}: {tail}") from error
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # reaches a stopped process too
            process.wait()


def _die_with_parent() -> None:
    # A server that is stopped when the benchmark dies would wait for ever.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait(process: subprocess.Popen[bytes], url: str, began: float) -> None:
    while time.monotonic() - began < START_S:
        if process.poll() is not None:
            raise ServerError(f"it ended with status {process.returncode}")
        try:
            if httpx.get(url, timeout=60).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise ServerError(f"it was not ready within {START_S:g} s")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])


@contextmanager
def trivec(folder: Path, engine: str, **knobs: object) -> Iterator[Served]:
    """`trivec serve` on a new data folder, with its defaults but for `knobs`; it logs a line a request."""
    port = free_port()
    settings = {"checkpoint": folder, "engine": engine, "port": port, **knobs}
    with tempfile.TemporaryDirectory() as data:
        environment = {f"TRIVEC_{name.upper()}": str(value) for name, value in settings.items()}
        environment["TRIVEC_DATA_DIR"] = data
        command = [sys.executable, "-m", "app.cli", "serve"]
        with started(f"trivec-{engine}", command, environment, port, "/health/ready") as server:
            yield server


@contextmanager
def flagembedding(folder: Path, *, lock: bool = False) -> Iterator[Served]:
    """`flagembedding_server` under uvicorn."""
    port = free_port()
    command = [interpreter("peers"), "-m", "uvicorn", "--host", HOST, "--port", str(port), "--log-level"]
    command += ["warning", "benchmarks.serve_sides.flagembedding_server:app"]
    environment = {"CHECKPOINT": str(folder), "ONE_AT_A_TIME": str(int(lock))}
    with started("flagembedding", command, environment, port, "/health") as server:
        yield server


@contextmanager
def infinity(folder: Path) -> Iterator[Served]:
    """Infinity's own command on torch and float32; otherwise its defaults."""
    port = free_port()
    program = interpreter("infinity").parent / "infinity_emb"
    with tempfile.TemporaryDirectory() as made:
        options = {
            "model-id": sentence_transformer(folder, Path(made)),
            "served-model-name": "m3",
            "engine": "torch",
            "device": "cpu",
            "dtype": "float32",
            "host": HOST,
            "port": port,
            "log-level": "warning",
        }
        command = [program, "v2", *(part for k, v in options.items() for part in (f"--{k}", str(v)))]
        environment = {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
        with started("infinity", command, environment, port, "/health") as server:
            yield server


def sentence_transformer(folder: Path, out: Path) -> Path:
    """The checkpoint as sentence-transformers wants it: the first token's state, normalised."""
    width = json.loads((folder / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    for file in folder.iterdir():
        (out / file.name).symlink_to(file.resolve())
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds.items())
    ]
    pooling = {"word_embedding_dimension": width, "pooling_mode_cls_token": True}
    pooling |= {
        f"pooling_mode_{name}": False for name in ("mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    }
    (out / "1_Pooling").mkdir()
    (out / "2_Normalize").mkdir()
    for name, content in (
        ("modules.json", modules),
        ("1_Pooling/config.json", pooling),
        ("sentence_bert_config.json", {"max_seq_length": 512, "do_lower_case": False}),
    ):
        (out / name).write_text(json.dumps(content), encoding="utf-8")
    return out


@dataclass(slots=True)
class Memory:
    """Samples a server's memory in a thread while it is entered: seconds, resident and anonymous MiB."""

    server: Served
    every_s: float = 0.2
    samples: list[tuple[float, float, float]] = field(default_factory=list)
    _end: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Memory:
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        assert self._thread is not None
        self._thread.join()

    def _sample(self) -> None:
        began = time.monotonic()
        while True:
            found = self.server.memory_mib()
            self.samples.append((time.monotonic() - began, found["resident"], found["anonymous"]))
            if self._end.wait(self.every_s):
                return
