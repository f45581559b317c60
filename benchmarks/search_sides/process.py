"""The benchmark's half of the line protocol of `search_sides`: `encode_sides.process` with other scripts.

Between requests the whole process is stopped, so that no thread of it takes a core from the other side.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.encode_sides.process import QUIET, WAITING, SideProcess
from benchmarks.encode_sides.protocol import cores
from benchmarks.encode_sides.registry import ROOT
from benchmarks.search_sides.protocol import Ask

# Every library that counts its threads itself gets the same number.
THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "TOKIO_WORKER_THREADS",
    "LANCE_CPU_THREADS",
)


class SearchProcess(SideProcess):
    """One side's process; a context manager that kills it in the end."""

    def __init__(self, python: Path, module: str) -> None:
        """`module` of benchmarks/search_sides, run by `python -m`. Idle threads do not spin."""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._began = time.perf_counter()
        self.name = module
        threads = dict.fromkeys(THREADS, str(cores()))
        self._process = subprocess.Popen(
            [python, "-m", f"benchmarks.search_sides.{module}"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env={**os.environ, **QUIET, **WAITING[False], **threads},
        )

    def build(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Make the side and fill it; the reply with `start_s`, from the process's start to ready."""
        reply = self.ask({"load": dict(request)})
        return {"start_s": time.perf_counter() - self._began, **reply}

    def search(self, ask: Ask, queries: Sequence[int]) -> dict[str, Any]:
        """Some queries, one after another."""
        return self.ask({"search": {"ask": asdict(ask), "queries": list(queries)}})
