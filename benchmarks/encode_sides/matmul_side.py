"""The machine's float32 matmul peak, now: one line in, one measurement out (GFLOP/s).

    {"rows": N, "width": D, "inner": I} -> {"torch": ..., "tensorflow": ...}

Each is the best of a few runs. The two matmuls are those of a feed-forward block: [rows, D] x [D, I]
and [rows, I] x [I, D].
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import torch

from benchmarks.encode_sides.protocol import PR_SET_PDEATHSIG, cores

REPEATS = 6


def best(matmul: Callable[[Any, Any], Any], a: Any, b: Any, operations: float) -> float:
    """GFLOP/s of the fastest of `REPEATS` runs."""
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        matmul(a, b)
        seconds.append(time.perf_counter() - began)
    return operations / min(seconds) / 1e9


def measure(rows: int, width: int, inner: int) -> dict[str, float]:
    """The best of both shapes, for each library."""
    generator = np.random.default_rng(0)
    found = {"torch": 0.0, "tensorflow": 0.0}
    for inputs, outputs in ((width, inner), (inner, width)):
        a, b = (generator.standard_normal(shape, np.float32) for shape in ((rows, inputs), (inputs, outputs)))
        operations = 2.0 * rows * inputs * outputs
        by_torch = best(torch.matmul, torch.from_numpy(a), torch.from_numpy(b), operations)
        by_tensorflow = best(tf.matmul, tf.constant(a), tf.constant(b), operations)
        found["torch"] = max(found["torch"], by_torch)
        found["tensorflow"] = max(found["tensorflow"], by_tensorflow)
    return found


def main() -> None:
    """Answer until stdin ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    torch.set_num_threads(cores())
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies:
        os.dup2(2, 1)
        for line in sys.stdin:
            replies.write(json.dumps(measure(**json.loads(line))) + "\n")
            replies.flush()


if __name__ == "__main__":
    main()
