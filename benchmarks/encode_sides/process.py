"""The benchmark's half of the line protocol: a side that runs only while it is asked something.

Between requests the whole process is stopped (SIGSTOP), so that no thread of it, spinning or not,
takes a core from the other side.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.encode_sides.registry import ROOT

# Threads that spin while they wait (libgomp's default) are a little faster on a machine with nothing else to
# do, and several times slower on one where another program takes a core: measured, so off unless asked for.
# NumPy's BLAS has threads of its own, which compute the heads of the exported encoders: with their default
# (spin for 2^26 cycles) ONNX Runtime int8 came out a fifth slower than it is.
WAITING: Mapping[bool, Mapping[str, str]] = {
    False: {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_THREAD_TIMEOUT": "4"},
    True: {"OMP_WAIT_POLICY": "ACTIVE"},
}
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "HF_HUB_OFFLINE": "1"}
LOG_TAIL = 1500


class SideError(RuntimeError):
    """A side could not do what it was asked; the message ends with what it wrote last."""


class SideProcess:
    """One side's process; a context manager that kills it in the end."""

    def __init__(
        self, python: Path, module: str, *, spin: bool = False, package: str = "encode_sides"
    ) -> None:
        """`module` of a package in benchmarks/, run by `python -m`; `spin`: may idle OpenMP threads spin?"""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._began = time.perf_counter()
        self.name = module
        self._process = subprocess.Popen(
            [python, "-m", f"benchmarks.{package}.{module}"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env={**os.environ, **QUIET, **WAITING[spin]},
        )

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Wake it, send a request, wait for the reply and stop it again. Raises SideError."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.send_signal(signal.SIGCONT)
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SideError(f"{self.name} ended with status {self._process.wait()}: {self._tail()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise SideError(f"{self.name}: {reply['error']}: {self._tail()}")
        self._process.send_signal(signal.SIGSTOP)
        return reply

    def load(self, folder: Path, options: Mapping[str, str]) -> dict[str, Any]:
        """Load a checkpoint; the reply with `start_s`, from the process's start to ready."""
        reply = self.ask({"load": str(folder), "options": dict(options)})
        return {"start_s": time.perf_counter() - self._began, **reply}

    def _tail(self) -> str:
        self._log.seek(0)
        return self._log.read()[-LOG_TAIL:].decode(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # SIGKILL reaches a stopped process too
        self._process.communicate()
        self._log.close()
