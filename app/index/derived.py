"""What finds candidates: segments on disk and the rows that came since, at one moment.

Legend: D hidden size. Immutable: a change gives another one, which the collection publishes once the rows
are in SQLite, so a search keeps the state that it began with. A replaced or deleted document's row
only dies; it goes when its segment is merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from app.index.bm25 import Asked, drift
from app.index.facts import Keys
from app.index.port import Found
from app.index.recent import Flags, Layout, Recent, Row
from app.index.rows import best
from app.index.segment import Segment, Source
from app.index.workers import Workers
from model.embedding import FloatArray, IntArray, LexicalWeights

SLACK = 1 + 1e-5
"""For what float32 rounds off where impacts are changed from one mean length to another."""
KEYS_A_TABLE_BEARS = 16
"""A table of all keys is the fastest way to look rows up, where it is not much larger than what it serves."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A segment, and which of its rows are the present versions of their documents."""

    rows: Segment
    alive: Flags
    living: int

    @classmethod
    def of(cls, rows: Segment, alive: Flags) -> Part:
        """With its living rows counted."""
        return cls(rows, alive, int(np.count_nonzero(alive)))

    def without(self, gone: Keys) -> Part:
        """With the rows of these documents dead."""
        rows = self.rows.rows_of(gone)
        rows = rows[self.alive[rows]]
        if not rows.size:
            return self
        alive = self.alive.copy()
        alive[rows] = False
        return Part(self.rows, alive, self.living - len(rows))


@dataclass(frozen=True, slots=True, eq=False)
class Usable:
    """Which rows of each part, and of the recent ones, a search may return."""

    parts: Sequence[Flags]
    recent: Flags


@dataclass(frozen=True, slots=True, eq=False)
class Derived:
    """The state of a collection's indexes."""

    parts: tuple[Part, ...]
    recent: Recent
    alive: Flags
    """Which rows of `recent` are present versions."""
    count: int
    """Documents."""
    mean: float = 1.0
    """Where there is BM25: their mean length in tokens."""

    @classmethod
    def empty(cls, layout: Layout) -> Derived:
        """Of no documents."""
        return cls((), Recent.empty(layout), np.empty(0, np.bool_), 0)

    def changed(self, gone: Keys, rows: Sequence[Row], removed: int, mean: float = 1.0) -> Derived:
        """Without the versions of `gone` (ascending), then with these rows; `removed` documents fewer.

        `mean` is the mean length after that.
        """
        parts, alive = self.parts, np.ones(len(self.recent) + len(rows), np.bool_)
        alive[: len(self.alive)] = self.alive
        if gone.size:
            parts = tuple(part.without(gone) for part in parts)
            alive[self.recent.rows_of(gone)] = False
        recent = self.recent.added(rows) if rows else self.recent
        return Derived(parts, recent, alive, self.count - removed, mean)

    def replaced(
        self, old: Sequence[Segment], sealed: int, new: Segment | None, chosen: Sequence[Flags]
    ) -> Derived:
        """With `new` in place of the segments `old` and of the first `sealed` recent rows.

        `chosen` says which rows of each of them, in this order, went into `new`: those that have died since
        are dead in it as well.
        """
        known = {id(part.rows): part for part in self.parts}
        alive = [known[id(one)].alive[flags] for one, flags in zip(old, chosen, strict=False)]
        if sealed:
            alive.append(self.alive[:sealed][chosen[-1]])
        parts = tuple(part for part in self.parts if not any(part.rows is one for one in old))
        if new is not None:
            parts = (*parts, Part.of(new, np.concatenate(alive)))
        if not sealed:
            return replace(self, parts=parts)
        return replace(self, parts=parts, recent=self.recent.after(sealed), alive=self.alive[sealed:].copy())

    def sources(self, parts: Sequence[Part], *, recent: bool) -> list[Source]:
        """The living rows of these parts and, at the end, of the recent rows."""
        found: list[Source] = [(part.rows, part.alive) for part in parts]
        return [*found, (self.recent, self.alive)] if recent else found

    def usable(self, allowed: Keys | None) -> Usable:
        """Which rows a search may return: those that live and are allowed."""
        if allowed is None:
            return Usable([part.alive for part in self.parts], self.alive)
        highest = max((int(keys.max()) for keys in (allowed, self.recent.keys) if keys.size), default=0)
        highest = max([highest, *(int(part.rows.keys[part.rows.order[-1]]) for part in self.parts)])
        if highest > KEYS_A_TABLE_BEARS * (len(allowed) + self.count + 1):
            flags = [part.alive & np.isin(part.rows.keys, allowed) for part in self.parts]
            return Usable(flags, self.alive & np.isin(self.recent.keys, allowed))
        table = np.zeros(highest + 1, np.bool_)
        table[allowed] = True
        return Usable(
            [part.alive & table[part.rows.keys] for part in self.parts], self.alive & table[self.recent.keys]
        )

    def search_vectors(
        self, name: str, query: FloatArray, count: int, usable: Usable, workers: Workers
    ) -> Found:
        """The `count` usable documents of the highest inner products, as each segment finds them."""
        query = np.ascontiguousarray(query, np.float32)
        found = [
            (part.rows.keys, *part.rows.search_vectors(name, query, count, flags, workers))
            for part, flags in zip(self.parts, usable.parts, strict=True)
        ]
        if len(self.recent):
            found.append((self.recent.keys, *self.recent.search_vectors(name, query, count, usable.recent)))
        return _best(found, count)

    def search_weights(
        self, name: str, query: LexicalWeights, count: int, usable: Usable, workers: Workers
    ) -> Found:
        """The `count` usable documents with the highest sums of products, exactly."""
        found = [
            (part.rows.keys, *part.rows.search_weights(name, query, count, flags, workers))
            for part, flags in zip(self.parts, usable.parts, strict=True)
        ]
        if len(self.recent):
            found.append((self.recent.keys, *self.recent.search_weights(name, query, count, usable.recent)))
        return _best(found, count)

    def search_terms(self, name: str, query: Asked, count: int, usable: Usable, workers: Workers) -> Found:
        """The `count` usable documents with the highest bounds of BM25, which no true score is above.

        A segment's impacts are of the mean length of the time when it was written.
        """
        found = []
        for part, flags in zip(self.parts, usable.parts, strict=True):
            rows, scores = part.rows.search_weights(name, query.weights, count, flags, workers)
            scores *= np.float32(drift(part.rows.mean, query.mean) * SLACK)
            found.append((part.rows.keys, rows, scores))
        if len(self.recent):
            found.append((self.recent.keys, *self.recent.search_terms(name, query, count, usable.recent)))
        return _best(found, count)

    def frequencies(self, name: str, terms: IntArray) -> NDArray[np.int64]:
        """How many documents have each of these ascending terms. Shape: [n]."""
        found = self.recent.frequencies(name, terms, self.alive)
        for part in self.parts:
            living = None if part.living == len(part.rows) else part.alive
            found += part.rows.frequencies(name, terms, living)
        return found


def _best(found: Sequence[tuple[Keys, NDArray[np.int64], FloatArray]], count: int) -> Found:
    keys = [keys[rows] for keys, rows, _ in found]
    scores = [scores for _, _, scores in found]
    return best(
        np.concatenate([np.empty(0, np.int64), *keys]),
        np.concatenate([np.empty(0, np.float32), *scores]),
        count,
    )
