"""A few threads for one search's arithmetic: kernels and FAISS run without the interpreter's lock.

The caller's own thread takes a share, so that a search never waits for threads that others keep busy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import zip_longest
from typing import TypeVar

MOST_THREADS = 16
"""More gain nothing for one query."""

Result = TypeVar("Result")


class Workers:
    """Runs functions side by side. Thread-safe."""

    def __init__(self, threads: int | None = None) -> None:
        """`threads` in all, the caller's among them; None is one for each core that may be used."""
        self.threads = max(1, min(MOST_THREADS, _usable_cores()) if threads is None else threads)
        self._pool = ThreadPoolExecutor(max(1, self.threads - 1), thread_name_prefix="trivec-search")

    def run(self, tasks: Sequence[Callable[[], Result]]) -> list[Result]:
        """Their results, in order. The first error is raised; what has not begun by then never does."""
        if self.threads == 1 or len(tasks) < 2:
            return [task() for task in tasks]
        futures: list[Future[Result]] = []
        # After `close` nothing more is taken: whoever is still at work then does it all himself.
        with suppress(RuntimeError):
            for task in tasks[1:]:
                futures.append(self._pool.submit(task))
        try:
            results = [tasks[0]()]
            for task, future in zip_longest(tasks[1:], futures):
                # What no thread has begun is done here.
                results.append(task() if future is None or future.cancel() else future.result())
        finally:
            for future in futures:
                future.cancel()
        return results

    def close(self) -> None:
        """Let the threads go when what they do is done."""
        self._pool.shutdown()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
