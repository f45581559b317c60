"""What finds candidates: segments on disk and the rows that came since, at one moment.

Legend: D hidden size. Immutable: a change gives another one, which the collection publishes once the rows
are in SQLite, so a search keeps the state that it began with. A replaced or deleted document's row
only dies; it goes when its segment is merged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from app.index.facts import Keys
from app.index.port import Found
from app.index.recent import Flags, Layout, Recent, Row
from app.index.rows import best
from app.index.segment import Segment, Source
from app.index.workers import Workers
from model.embedding import FloatArray, LexicalWeights


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
class Derived:
    """The state of a collection's indexes."""

    parts: tuple[Part, ...]
    recent: Recent
    alive: Flags
    """Which rows of `recent` are present versions."""
    count: int
    """Documents."""

    @classmethod
    def empty(cls, layout: Layout) -> Derived:
        """Of no documents."""
        return cls((), Recent.empty(layout), np.empty(0, np.bool_), 0)

    def changed(self, gone: Keys, rows: Sequence[Row], removed: int) -> Derived:
        """Without the versions of `gone` (ascending), then with these rows; `removed` documents fewer."""
        parts, alive = self.parts, np.ones(len(self.recent) + len(rows), np.bool_)
        alive[: len(self.alive)] = self.alive
        if gone.size:
            parts = tuple(part.without(gone) for part in parts)
            alive[self.recent.rows_of(gone)] = False
        recent = self.recent.added(rows) if rows else self.recent
        return Derived(parts, recent, alive, self.count - removed)

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

    def search_vectors(
        self, name: str, query: FloatArray, count: int, allowed: Keys | None, workers: Workers
    ) -> Found:
        """The `count` allowed documents of the highest inner products, as each segment finds them."""
        query = np.ascontiguousarray(query, np.float32)
        return self._search(
            lambda part, usable: part.rows.search_vectors(name, query, count, usable, workers),
            lambda usable: self.recent.search_vectors(name, query, count, usable),
            count,
            allowed,
        )

    def search_weights(
        self, name: str, query: LexicalWeights, count: int, allowed: Keys | None, workers: Workers
    ) -> Found:
        """The `count` allowed documents with the highest sums of products, exactly."""
        return self._search(
            lambda part, usable: part.rows.search_weights(name, query, count, usable, workers),
            lambda usable: self.recent.search_weights(name, query, count, usable),
            count,
            allowed,
        )

    def _search(
        self,
        of_part: Callable[[Part, Flags], tuple[NDArray[np.int64], FloatArray]],
        of_recent: Callable[[Flags], tuple[NDArray[np.int64], FloatArray]],
        count: int,
        allowed: Keys | None,
    ) -> Found:
        keys: list[Keys] = [np.empty(0, np.int64)]
        scores: list[FloatArray] = [np.empty(0, np.float32)]
        for part in self.parts:
            rows, found = of_part(part, _usable(part.rows.keys, part.alive, allowed))
            keys.append(part.rows.keys[rows])
            scores.append(found)
        if len(self.recent):
            rows, found = of_recent(_usable(self.recent.keys, self.alive, allowed))
            keys.append(self.recent.keys[rows])
            scores.append(found)
        return best(np.concatenate(keys), np.concatenate(scores), count)


def _usable(keys: Keys, alive: Flags, allowed: Keys | None) -> Flags:
    return alive if allowed is None else alive & np.isin(keys, allowed)
