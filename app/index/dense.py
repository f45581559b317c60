"""Dense candidates: the documents with the highest inner product, exactly (FAISS, flat).

Legend: N rows, D hidden size. Immutable, so any number of threads search without a lock: FAISS itself is
not safe while rows are added. It proposes candidates; `search.py` scores them from the stored vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from app.index.facts import Keys
from app.index.rows import Rows, Tail, best
from model.embedding import FloatArray

MERGE_ROWS = 4096
"""Rows outside the main part, or dead, that are worth a merge at least."""


@dataclass(frozen=True, slots=True, eq=False)
class DenseIndex:
    """An exact inner-product index over the living dense vectors of a collection."""

    rows: Rows
    main: faiss.IndexFlatIP
    tail: Tail
    vectors: FloatArray
    """The tail's rows. Shape: [N - main, D]."""

    @classmethod
    def build(cls, keys: Keys, vectors: FloatArray) -> DenseIndex:
        """From all vectors at once. Shapes: [N] in ascending order, [N, D]."""
        width = vectors.shape[1]
        main = faiss.IndexFlatIP(width)
        main.add(np.ascontiguousarray(vectors, np.float32))
        empty = np.empty((0, width), np.float32)
        return cls(Rows.of(keys), main, Tail((empty,)), empty)

    def changed(self, gone: Keys, keys: Keys, vectors: FloatArray) -> DenseIndex:
        """Without the documents `gone`, then with `keys` and their vectors [n, D]."""
        rows = self.rows.changed(gone, keys)
        tail, (grown,) = self.tail.appended(len(self.vectors), (vectors,))
        if not rows.due(MERGE_ROWS):
            return DenseIndex(rows, self.main, tail, grown)
        everything = np.concatenate([_matrix(self.main), grown])[rows.alive]  # [N, D]
        living = rows.keys[rows.alive]
        order = np.argsort(living)
        return DenseIndex.build(living[order], everything[order])

    def search(self, query: FloatArray, count: int, allowed: Keys | None = None) -> tuple[Keys, FloatArray]:
        """At most `count` living, allowed documents with the highest scores; equals by ascending key.

        Shapes: [D] -> [n], [n].
        """
        query = np.ascontiguousarray(query, np.float32)
        usable = self.rows.usable(allowed)
        if not count or not usable.any():
            return np.empty(0, np.int64), np.empty(0, np.float32)
        in_main, in_tail = usable[: self.rows.main], usable[self.rows.main :]
        places, scores = _search_main(self.main, query, count, in_main)
        keys = np.concatenate([self.rows.keys[places], self.rows.keys[self.rows.main :][in_tail]])
        scores = np.concatenate([scores, self.vectors[in_tail] @ query])
        return best(keys, scores, count)


def _search_main(
    index: faiss.IndexFlatIP, query: FloatArray, count: int, usable: NDArray[np.bool_]
) -> tuple[Keys, FloatArray]:
    """Row numbers and scores of the best `count` rows and of all that tie with the last of them."""
    available = int(np.count_nonzero(usable))
    parameters = None
    if available < len(usable):
        bitmap = np.packbits(usable, bitorder="little")
        selector = faiss.IDSelectorBitmap(len(usable), faiss.swig_ptr(bitmap))
        parameters = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
    fetched = min(count + 1, available)
    while fetched:
        scores, places = index.search(query[np.newaxis], fetched, params=parameters)
        # Which of equal scores FAISS keeps at the edge is its own affair: look on until the edge is clear.
        if fetched == available or scores[0, -1] < scores[0, count - 1]:
            return places[0].astype(np.int64), scores[0]
        fetched = min(4 * fetched, available)
    return np.empty(0, np.int64), np.empty(0, np.float32)


def _matrix(index: faiss.IndexFlatIP) -> FloatArray:
    """The vectors of a flat index, without a copy. Shape: [N, D]."""
    if not index.ntotal:
        return np.empty((0, index.d), np.float32)
    pointed: FloatArray = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(-1, index.d)
    return pointed
