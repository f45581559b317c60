"""bm25s with the documents' M3 weights in place of its BM25 scores. No options.

Its index is a matrix of scores by term and document, which it can load: it gets M3's. A query of bm25s is
a list of terms without weights, so it adds up the documents' weights alone: as fast, but another order than
M3's, and its recall says how far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import bm25s
import numpy as np
from scipy import sparse

from benchmarks.search_sides.protocol import Ask, Place, serve
from benchmarks.synthetic import Batch, Floats, Query


class Bm25sSide:
    """Its fastest engine, Numba; one query runs on one thread."""

    packages = ("bm25s", "numba", "numpy")
    threads = 1
    remarks = ("in memory only; query terms carry no weights in bm25s; one thread for one query",)

    def __init__(self, place: Place) -> None:
        self._vocabulary = place.vocabulary
        self._parts: list[sparse.csr_matrix] = []

    def pack(self, batch: Batch, rows: Sequence[Floats] | None) -> sparse.csr_matrix:
        shape = (len(batch), self._vocabulary)
        return sparse.csr_matrix((batch.weights, batch.terms, batch.starts), shape=shape)

    def add(self, packed: sparse.csr_matrix) -> None:
        self._parts.append(packed)

    def finish(self) -> None:
        matrix = sparse.vstack(self._parts, format="csc")
        self._parts = []
        self._index = bm25s.BM25(backend="numba")
        self._index.scores = {
            "data": matrix.data.astype(np.float32),
            "indices": matrix.indices.astype(np.int32),
            "indptr": matrix.indptr.astype(np.int64),
            "num_docs": matrix.shape[0],
        }
        self._index.nonoccurrence_array = None
        self._index.vocab_dict = {str(term): term for term in range(self._vocabulary)}
        self._index.unique_token_ids_set = set(range(self._vocabulary))
        self._documents = matrix.shape[0]

    def prepare(self, query: Query, ask: Ask) -> tuple[list[list[int]], int]:
        return [query.terms.tolist()], min(ask.k, self._documents)

    def search(self, request: tuple[list[list[int]], int]) -> Any:
        terms, k = request
        return self._index.retrieve(terms, k=k, show_progress=False, return_as="documents")

    def numbers(self, found: Any) -> list[int]:
        return [int(one) for one in found[0]]


if __name__ == "__main__":
    serve(Bm25sSide)
