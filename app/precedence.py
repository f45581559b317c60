"""Searches that go ahead of bulk work also while the model has no part in them.

Between its query's embedding and its hits a search works on the cores that the model would use, and two
programs that each want all cores hinder each other by more than they get done. So at the next place where
bulk work can be left for a moment the model waits for such searches, for each of them HOLD_S at most.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

HOLD_S = 0.06
"""For which one search may keep bulk work waiting in all; among a million documents it needs half of it."""


class Precedence:
    """Who goes ahead; used under the lock of `wake` only, which is told when one ends."""

    def __init__(self, wake: threading.Condition) -> None:
        self._wake = wake
        self._under_way: set[Ahead] = set()

    def begun(self, one: Ahead) -> None:
        """From now on bulk work waits for it, unless it has ended or has had its time."""
        if not one.ended and one.left_s > 0:
            self._under_way.add(one)

    def ended(self, one: Ahead) -> None:
        """Bulk work need not wait for it any longer."""
        one.ended = True
        if one in self._under_way:
            self._under_way.remove(one)
            self._wake.notify_all()

    def wait(self, interrupted: Callable[[], bool]) -> float:
        """Wait until none is under way, or until something else is to be done; the seconds that it took."""
        total_s = 0.0
        while self._under_way and not interrupted():
            since = time.monotonic()
            self._wake.wait(min(one.left_s for one in self._under_way))
            waited_s = time.monotonic() - since
            total_s += waited_s
            for one in list(self._under_way):
                one.left_s -= waited_s
                if one.left_s <= 0:
                    self._under_way.remove(one)
        return total_s


class Ahead:
    """One search, and how long bulk work may still wait for it."""

    def __init__(self) -> None:
        self.left_s = HOLD_S
        self.ended = False
