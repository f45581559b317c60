"""What is kept in memory for finding candidates: it follows the rows, and is rebuilt from them at a start.

Legend: D hidden size. Immutable as its parts are: a change gives another one, which the collection
publishes once the rows are on the disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from app.index.dense import DenseIndex
from app.index.facts import Keys
from app.index.lexical import LexicalIndex, Postings
from model.embedding import Embedding, FloatArray, LexicalWeights


@dataclass(frozen=True, slots=True, eq=False)
class Derived:
    """The indexes of a collection at one moment."""

    dense: DenseIndex
    lexical: LexicalIndex
    count: int
    """Documents, with or without vectors for either."""
    width: int
    """D."""


def build(rows: Iterable[tuple[int, FloatArray | None, LexicalWeights | None]], width: int) -> Derived:
    """From all rows, in ascending order of key."""
    dense: list[tuple[int, FloatArray]] = []
    lexical: list[tuple[int, LexicalWeights]] = []
    count = 0
    for key, vector, weights in rows:
        count += 1
        if vector is not None:
            dense.append((key, vector))
        if weights is not None:
            lexical.append((key, weights))
    return Derived(
        DenseIndex.build(_keys(dense), _matrix(dense, width)),
        LexicalIndex.build(_keys(lexical), Postings.of([weights for _, weights in lexical])),
        count,
        width,
    )


def changed(before: Derived, gone: Keys, stored: Sequence[tuple[int, Embedding]]) -> Derived:
    """Without `gone`, the keys of what was replaced or deleted, and with what was stored."""
    dense = [(key, one.dense) for key, one in stored if one.dense is not None]
    lexical = [(key, one.sparse) for key, one in stored if one.sparse is not None]
    return Derived(
        before.dense.changed(gone, _keys(dense), _matrix(dense, before.width)),
        before.lexical.changed(gone, _keys(lexical), [weights for _, weights in lexical]),
        before.count - len(gone) + len(stored),
        before.width,
    )


def _keys(pairs: Sequence[tuple[int, object]]) -> Keys:
    return np.array([key for key, _ in pairs], np.int64)


def _matrix(pairs: Sequence[tuple[int, FloatArray]], width: int) -> FloatArray:
    if not pairs:
        return np.empty((0, width), np.float32)
    return np.stack([vector for _, vector in pairs]).astype(np.float32, copy=False)  # [n, D]
