"""What the dense and the lexical index share: rows that are added, die and are found again by key.

An index is an immutable value: a change gives another one, and a search keeps the one it began with.
Rows are numbered through a main part, built once, and a tail that grows. A replaced or deleted
document's row only dies; it goes when tail and main are merged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.index.facts import Keys
from model.embedding import FloatArray


class Tail:
    """Arrays of equal length that only grow, so that older views stay true while newer rows are written.

    Appending to any but the newest view copies it first: two successors never share a row.
    """

    __slots__ = ("_store", "_used")

    def __init__(self, columns: tuple[NDArray[Any], ...]) -> None:
        self._store = columns
        self._used = len(columns[0])

    def appended(
        self, length: int, columns: tuple[NDArray[Any], ...]
    ) -> tuple[Tail, tuple[NDArray[Any], ...]]:
        """The first `length` rows and then `columns`: where they are kept, and views of them."""
        total = length + len(columns[0])
        tail: Tail = self
        if length != self._used or total > len(self._store[0]):
            roomy = tuple(np.empty((max(64, 2 * total), *old.shape[1:]), old.dtype) for old in self._store)
            for new, old in zip(roomy, self._store, strict=True):
                new[:length] = old[:length]
            tail = Tail(roomy)
        for store, column in zip(tail._store, columns, strict=True):
            store[length:total] = column
        tail._used = total
        return tail, tuple(store[:total] for store in tail._store)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Which key each row holds and whether it lives: main rows in ascending order of key, then the tail's."""

    keys: Keys
    alive: NDArray[np.bool_]
    main: int
    """Rows of the main part."""
    living: int

    @classmethod
    def of(cls, keys: Keys) -> Rows:
        """All rows in the main part."""
        return cls(keys, np.ones(len(keys), np.bool_), len(keys), len(keys))

    def changed(self, gone: Keys, added: Keys) -> Rows:
        """The rows of `gone` dead, new ones for `added`. Copies a flag and a key for each row."""
        alive = np.concatenate([self.alive, np.ones(len(added), np.bool_)])
        # The main part is sorted; the tail is short.
        at = np.searchsorted(self.keys[: self.main], gone)
        at = at[at < self.main]
        alive[at[np.isin(self.keys[at], gone)]] = False
        tail = slice(self.main, len(self.keys))
        alive[tail] &= ~np.isin(self.keys[tail], gone)
        keys = np.concatenate([self.keys, added])
        return Rows(keys, alive, self.main, int(np.count_nonzero(alive)))

    def usable(self, allowed: Keys | None) -> NDArray[np.bool_]:
        """Rows that a search may return; `allowed` is ascending and distinct. Shape: [rows]."""
        return self.alive if allowed is None else self.alive & np.isin(self.keys, allowed)

    def due(self, least: int) -> bool:
        """Whether tail and main should be merged: the tail costs each search, merging costs a copy of all."""
        dead_or_new = len(self.keys) - self.main + len(self.keys) - self.living
        return dead_or_new > max(least, self.main // 10)


def best(keys: Keys, scores: FloatArray, count: int) -> tuple[Keys, FloatArray]:
    """The `count` highest scores, highest first, equals in ascending order of key."""
    if len(scores) > 4 * count:
        # Sorting all is dear; everything that ties with the last place stays in.
        worst = np.partition(scores, len(scores) - count)[len(scores) - count]
        near = scores >= worst
        keys, scores = keys[near], scores[near]
    order = np.lexsort((keys, -scores))[:count]
    return keys[order], scores[order]
