"""Connections that the server refuses or ends by itself: each is counted, the log hears of them now and then.

A flood of them must not become a flood of lines, so a reason has one line in ten seconds, with how many there
were. What came on them is never told.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

Reason = Literal[
    "too_many",
    "made_room",
    "slow_body",
    "slow_head",
    "stalled_reader",
    "malformed_http",
    "dismissed",
    "cut_off",
]
"""As docs/observability.md has them."""
FULL: frozenset[Reason] = frozenset({"too_many", "made_room", "slow_body"})
"""There were as many connections as are allowed: the operator may have to do something."""
TOLD_EVERY_S = 10.0

_log = logging.getLogger("trivec.connections")


@dataclass(slots=True)
class _Untold:
    count: int = 0
    request_id: str | None = None
    """Of the last one that got an answer."""
    told_at: float = -inf


class Endings:
    """Counts each ending and tells the log of them; not thread-safe."""

    def __init__(self, count: Callable[[Reason], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._clock = clock
        self._untold: dict[Reason, _Untold] = {reason: _Untold() for reason in get_args(Reason)}

    def add(self, reason: Reason, request_id: str | None = None) -> None:
        """One more; `request_id` is that of the answer, where there was one."""
        self._count(reason)
        one = self._untold[reason]
        one.count += 1
        one.request_id = request_id or one.request_id
        self.tell_due()

    def tell_due(self) -> None:
        """Log what has happened, but of a reason that was told less than TOLD_EVERY_S ago."""
        now = self._clock()
        for reason, one in self._untold.items():
            if one.count and now - one.told_at >= TOLD_EVERY_S:
                self._tell(reason, one, now)

    def tell_rest(self) -> None:
        """Log what is left to tell: there will be no more."""
        for reason, one in self._untold.items():
            if one.count:
                self._tell(reason, one, self._clock())

    def _tell(self, reason: Reason, one: _Untold, now: float) -> None:
        fields = {"reason": reason, "count": one.count, "request_id": one.request_id}
        level = logging.WARNING if reason in FULL else logging.INFO
        _log.log(level, "connections refused or closed", extra={"fields": fields})
        self._untold[reason] = _Untold(told_at=now)
