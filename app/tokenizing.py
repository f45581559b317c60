"""Texts to token ids in worker threads: a few at a time, and long texts leave room for short ones."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from threading import Event

import anyio

from app.ports import TextModel, Tokenized
from app.whole import abandonable
from model.embedding import Counting

LONG_CHARACTERS = 100_000
"""Texts of more together are long to tokenise: where there are several threads, they may not take all."""
PART_CHARACTERS = 1_000_000
"""Tokenised until it is asked whether anybody still waits."""


class TokenizerThreads:
    """Runs a model's `tokenize` in at most so many threads."""

    def __init__(self, threads: int) -> None:
        self._all = anyio.CapacityLimiter(threads)
        self._long = anyio.CapacityLimiter(max(1, threads - 1))
        self._since: dict[Event, float] = {}

    @property
    def longest_s(self) -> float:
        """Seconds that the slowest part under way has taken so far; negative where there is none."""
        return time.monotonic() - min(self._since.copy().values(), default=math.inf)

    async def tokenize(
        self,
        model: TextModel,
        texts: Sequence[str],
        max_length: int | None,
        count_terms: Counting | None = None,
    ) -> list[Tokenized]:
        """Texts to ids, in order; where nobody waits any more the thread stops after the part at hand."""
        stop = Event()
        limiters = [self._all]
        if sum(map(len, texts)) > LONG_CHARACTERS:
            limiters.insert(0, self._long)
        try:
            return await abandonable(
                partial(
                    self._run,
                    partial(model.tokenize, max_length=max_length, count_terms=count_terms),
                    texts,
                    stop,
                ),
                *limiters,
            )
        finally:
            stop.set()

    def _run(
        self, tokenize: Callable[[Sequence[str]], Sequence[Tokenized]], texts: Sequence[str], stop: Event
    ) -> list[Tokenized]:
        found: list[Tokenized] = []
        try:
            for part in _parts(texts):
                self._since[stop] = time.monotonic()
                found += tokenize(part)
                if stop.is_set():
                    break
        finally:
            self._since.pop(stop, None)
        return found


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Consecutive texts of together about PART_CHARACTERS."""
    first, size = 0, 0
    for place, text in enumerate(texts):
        if size and size + len(text) > PART_CHARACTERS:
            yield texts[first:place]
            first, size = place, 0
        size += len(text)
    yield texts[first:]
