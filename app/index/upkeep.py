"""Segments are made and merged behind the scenes: when, and by which threads.

Recent documents become a segment when there are enough of them; segments of like size are merged, so a
collection has few of them and the approximate ones are trained anew as it grows. When nothing has changed
for a while what is left is merged as well. Searches and changes never wait for a merge.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

from app.index.derived import Derived, Part
from app.index.errors import CollectionNotFound, IndexFault

SEGMENT_ROWS = 4096
"""Recent documents that are worth a segment: searching them all takes about a millisecond."""
MOST_RECENT = 4 * SEGMENT_ROWS
"""Recent documents at which a writer waits until they are a segment."""
FANOUT = 4
"""Segments of like size that are merged into one."""
DEAD_SHARE = 0.3
"""Of a segment's rows that makes it worth writing anew."""
DRIFT = 1.1
"""Where BM25's mean length is so many times what it was when a segment was written, or less than 1 / so much,
the segment is written anew: what it finds must be near to what the true scores say."""
IDLE_S = 10.0
"""Without a change, before what is left is merged."""
IDLE_SHARE = 0.1
"""Of all rows outside of the largest segment that makes an idle collection worth one segment."""

_log = logging.getLogger("trivec.index")


def merge_plan(state: Derived, *, idle: bool, mean: float | None = None) -> list[Part]:
    """The parts to be merged next, perhaps one alone that is largely dead; none where all is well.

    `mean` is the documents' mean length, where there is BM25.
    """
    tiers: dict[int, list[Part]] = {}
    for part in state.parts:
        if part.living < (1 - DEAD_SHARE) * len(part.rows):
            return [part]
        if mean is not None and not 1 / DRIFT <= part.rows.mean / mean <= DRIFT:
            return [part]
        tier, size = 0, SEGMENT_ROWS
        while part.living > size:
            tier, size = tier + 1, size * FANOUT
        tiers.setdefault(tier, []).append(part)
    for tier in sorted(tiers):
        if len(tiers[tier]) >= FANOUT:
            return tiers[tier]
    if idle and len(state.parts) > 1:
        ordered = sorted(state.parts, key=lambda part: part.living)
        rest = sum(part.living for part in ordered[:-1])
        if rest > IDLE_SHARE * ordered[-1].living:
            return ordered
        if len(ordered) > 2:
            return ordered[:-1]
    return []


class Kept(Protocol):
    """What upkeep does with a collection; each says whether it did something."""

    def seal(self) -> bool:
        """Make a segment of the recent documents where there are enough."""
        ...

    def merge(self, *, idle: bool) -> bool:
        """Merge what `merge_plan` names."""
        ...


class Upkeep:
    """Two threads, started when first needed: one seals recent documents soon, one merges in its own time."""

    def __init__(self, collections: Callable[[], Sequence[Kept]]) -> None:
        self._collections = collections
        self._stop = False
        self._wake = {"seal": threading.Event(), "merge": threading.Event()}
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def wake(self) -> None:
        """Something has changed."""
        with self._lock:
            if not self._threads and not self._stop:
                for name, work in (("seal", self._seal), ("merge", self._merge)):
                    thread = threading.Thread(target=work, name=f"trivec-{name}", daemon=True)
                    self._threads.append(thread)
                    thread.start()
        for event in self._wake.values():
            event.set()

    def close(self, timeout_s: float) -> None:
        """Begin nothing more, and wait a while for what runs; a merge that goes on publishes nothing."""
        with self._lock:
            self._stop = True
        for event in self._wake.values():
            event.set()
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _seal(self) -> None:
        while not self._stop:
            self._wake["seal"].wait()
            self._wake["seal"].clear()
            for one in self._collections():
                self._attempt(one.seal)

    def _merge(self) -> None:
        idle = False
        while not self._stop:
            changed = self._wake["merge"].wait(IDLE_S if not idle else None)
            self._wake["merge"].clear()
            idle = not changed
            for one in self._collections():
                while self._attempt(partial(one.merge, idle=idle)):
                    pass

    def _attempt(self, work: Callable[[], bool]) -> bool:
        if self._stop:
            return False
        with suppress(CollectionNotFound):  # dropped meanwhile
            try:
                return work()
            except (OSError, MemoryError, ValueError, IndexFault) as error:
                # What is searched stays as it is: more rows in memory, more segments. Tried again later.
                _log.warning("derived files could not be written: %s", error)
        return False
