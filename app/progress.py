"""Progress of what takes minutes: a bar on a terminal, a line in the log now and then."""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

LINE_S = 10.0
"""Between two lines in the log."""

_log = logging.getLogger("trivec.index")


class Bars:
    """Called with a collection, documents done and documents in all; one bar for each collection."""

    def __init__(self) -> None:
        self._bar: tqdm[None] | None = None
        self._name = ""
        self._said = 0.0

    def __call__(self, collection: str, done: int, total: int) -> None:
        if self._bar is None or collection != self._name:
            self._close()
            # disable=None: no bar where standard error is no terminal.
            self._bar = tqdm(total=total, desc=f"index of {collection}", unit=" documents", disable=None)
            self._name = collection
        self._bar.update(done - self._bar.n)
        now = time.monotonic()
        if done == total or now > self._said + LINE_S:
            self._said = now
            _log.info("index of collection %s: %d of %d documents read again", collection, done, total)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
