"""A few threads for one search's arithmetic: kernels and FAISS run without the interpreter's lock.

The caller's own thread takes a share, so that a search never waits for threads that others keep busy.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import zip_longest
from typing import TypeVar

MOST_THREADS = 16
"""More gain nothing for one query."""

WAITING = 4
"""Tasks that wait before whoever makes them lends a hand: on many cores, too, for each may hold megabytes."""

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

    def run_as_made(self, tasks: Iterator[Callable[[], Result]]) -> list[Result]:
        """The results, in order, of tasks that this thread makes one by one while others run them.

        A few wait at most: where the others do not keep up, and in the end, this thread runs them too.
        """
        results: list[Result] = []
        waiting: deque[tuple[Callable[[], Result], Future[Result] | None]] = deque()

        def finish() -> None:
            task, future = waiting.popleft()
            results.append(task() if future is None or future.cancel() else future.result())

        try:
            for task in tasks:
                if len(waiting) >= WAITING:
                    finish()
                future = None
                if self.threads > 1:
                    with suppress(RuntimeError):  # closed: this thread then does it all
                        future = self._pool.submit(task)
                waiting.append((task, future))
            while waiting:
                finish()
        finally:
            for _, future in waiting:
                if future is not None:
                    future.cancel()
        return results

    def close(self) -> None:
        """Let the threads go when what they do is done."""
        self._pool.shutdown()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
