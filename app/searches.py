"""How many searches are under way, and how long one more would wait: some need nothing of the model.

The model's queue bounds what waits for a forward pass. A search by BM25, by vectors or by a query that is
cached waits for the index alone, and without a bound thousands of them would wait until their deadlines.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

from app.errors import QueueFull

MAX_RETRY_AFTER_S = 30
_NEWEST = 0.1
"""Weight of the newest search in the mean."""

T = TypeVar("T")


class Searches:
    """Counts searches from their admission to their answer, and times their part in the index."""

    def __init__(self, most: int, threads: int) -> None:
        self._most = most
        self._threads = threads
        self._under_way = 0
        self._mean_s = 0.0
        self._lock = Lock()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Around a search. Raises QueueFull with the seconds after which to try again."""
        with self._lock:
            if self._under_way >= self._most:
                raise QueueFull(
                    f"{self._under_way} searches are under way, the limit is {self._most}; try again",
                    retry_after_s=self._retry_after_s(),
                )
            self._under_way += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1

    def timed(self, work: Callable[[], T]) -> Callable[[], T]:
        """The same work, its time noted; runs in a worker thread."""

        def run() -> T:
            began = time.monotonic()
            try:
                return work()
            finally:
                self._note(time.monotonic() - began)

        return run

    def _note(self, seconds: float) -> None:
        with self._lock:
            self._mean_s += (seconds - self._mean_s) * (_NEWEST if self._mean_s else 1.0)

    def _retry_after_s(self) -> int:
        seconds = self._under_way * self._mean_s / self._threads
        return min(MAX_RETRY_AFTER_S, max(1, math.ceil(seconds)))
