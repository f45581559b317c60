"""The side's half of the line protocol: one JSON object a line, requests on stdin, replies on stdout.

    {"load": FOLDER, "options": {...}} -> {"versions", "threads", "rss", "peak_rss"}
    {"encode": [texts], "max_length": N, "batch_size": N or null, "save": FILE or absent}
        -> {"seconds", "tokens", "peak_rss", "own_s", "others_s"}

`seconds` is from texts to all three outputs in the side's own form; `save` writes those as an .npz file,
outside of the time. `own_s` is the core time that it took and `others_s` what other programs took
meanwhile; `peak_rss` is the peak since the last request. Memory is in bytes. An error is told as
{"error"}. It imports the standard library and NumPy only.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Vectors:
    """All outputs of one text: `dense` [D], `sparse` token id -> weight, `colbert` [T - 1, C]."""

    dense: NDArray[np.float32]
    sparse: Mapping[int, float]
    colbert: NDArray[np.float32]


class Side(Protocol):
    """What a side's script builds."""

    packages: Sequence[str]
    threads: int

    def encode(self, texts: list[str], max_length: int, batch_size: int | None) -> Any:
        """All three outputs of all texts, in whatever form the library gives them."""

    def unpack(self, found: Any) -> list[Vectors]:
        """The same in the common form; not timed."""


def serve(
    load: Callable[[Path, dict[str, str]], Side],
    run: Callable[[Any, Mapping[str, Any]], dict[str, object]] | None = None,
) -> None:
    """Answer requests until stdin ends; `run` answers those that are no `load`, else the function below."""
    # A side that is stopped when the benchmark dies would wait for ever.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Libraries print where they like: only replies may reach the pipe.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies:
        os.dup2(2, 1)
        side: Side | None = None
        for line in sys.stdin:
            request = json.loads(line)
            try:
                if "load" in request:
                    side = load(Path(request["load"]), request["options"])
                    reply = describe(side)
                else:
                    assert side is not None, "encode before load"
                    reply = (run or encode)(side, request)
            except Exception as error:  # noqa: BLE001 - told to the other half, which stops
                traceback.print_exc()
                reply = {"error": f"{type(error).__name__}: {error}"}
            replies.write(json.dumps(reply) + "\n")
            replies.flush()


def describe(side: Side) -> dict[str, object]:
    """The reply to `load`."""
    return {
        "versions": {name: version(name) for name in side.packages},
        "threads": side.threads,
        "rss": memory("VmRSS"),
        "peak_rss": memory("VmHWM"),
    }


def encode(side: Side, request: Mapping[str, Any]) -> dict[str, object]:
    """The reply to `encode`."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    busy, own = busy_s(), time.process_time()
    began = time.perf_counter()
    found = side.encode(request["encode"], request["max_length"], request["batch_size"])
    seconds = time.perf_counter() - began
    own = time.process_time() - own
    others = max(0.0, busy_s() - busy - own)
    peak = memory("VmHWM")
    vectors = side.unpack(found)
    if file := request.get("save"):
        save(Path(file), vectors)
    tokens = sum(len(one.colbert) + 1 for one in vectors)
    return {"seconds": seconds, "tokens": tokens, "peak_rss": peak, "own_s": own, "others_s": others}


def busy_s() -> float:
    """Seconds of core time that this machine has spent since its start on anything, stolen time included."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = (
        int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def memory(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def save(file: Path, vectors: Sequence[Vectors]) -> None:
    """Write the vectors of all texts; `load_vectors` reads them."""
    arrays: dict[str, NDArray[Any]] = {"dense": np.stack([one.dense for one in vectors])}
    for number, one in enumerate(vectors):
        arrays[f"ids{number}"] = np.array(list(one.sparse), np.int64)
        arrays[f"weights{number}"] = np.array(list(one.sparse.values()), np.float64)
        arrays[f"colbert{number}"] = one.colbert
    np.savez(file, **arrays)


def load_vectors(file: Path) -> list[Vectors]:
    """Read what `save` wrote."""
    with np.load(file) as arrays:
        return [
            Vectors(
                dense,
                dict(zip(arrays[f"ids{n}"].tolist(), arrays[f"weights{n}"].tolist(), strict=True)),
                arrays[f"colbert{n}"],
            )
            for n, dense in enumerate(arrays["dense"])
        ]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
