"""SciPy: all documents as one CSR matrix, a query as one product and a selection of the best. No options."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from benchmarks.search_sides.protocol import Ask, Place, serve
from benchmarks.synthetic import Batch, Floats, Query


class ScipySide:
    """The product walks over all documents on one thread: SciPy has no more."""

    packages = ("scipy", "numpy")
    threads = 1
    remarks = ("in memory only; one thread, as SciPy has it",)

    def __init__(self, place: Place) -> None:
        self._vocabulary = place.vocabulary
        self._parts: list[sparse.csr_matrix] = []

    def pack(self, batch: Batch, rows: Sequence[Floats] | None) -> sparse.csr_matrix:
        shape = (len(batch), self._vocabulary)
        return sparse.csr_matrix((batch.weights, batch.terms, batch.starts), shape=shape)

    def add(self, packed: sparse.csr_matrix) -> None:
        self._parts.append(packed)

    def finish(self) -> None:
        self._matrix = sparse.vstack(self._parts, format="csr")
        self._parts = []

    def prepare(self, query: Query, ask: Ask) -> tuple[Floats, int]:
        vector = np.zeros(self._vocabulary, np.float32)
        vector[query.terms] = query.weights
        return vector, ask.k

    def search(self, request: tuple[Floats, int]) -> NDArray[np.int64]:
        vector, k = request
        scores = self._matrix @ vector
        best = np.argpartition(-scores, min(k, len(scores) - 1))[:k]
        return best[np.argsort(-scores[best])]

    def numbers(self, found: NDArray[np.int64]) -> list[int]:
        return [int(one) for one in found]


if __name__ == "__main__":
    serve(ScipySide)
