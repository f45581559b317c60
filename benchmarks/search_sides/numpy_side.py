"""MaxSim in NumPy: the best that a user writes in a few lines. No options.

It is given its candidates, the best 100 by dense and by lexical score, and only orders them: a lower bound
of what a whole search costs without an index of token rows. The rows are in memory as float32, one array
for each document: multiplied one by one, which is faster than all in one, and than float16 converted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.encode_sides.protocol import cores
from benchmarks.search_sides.protocol import Ask, Place, serve
from benchmarks.search_sides.truth import lexical_scores
from benchmarks.synthetic import Batch, Floats, Query


class NumpySide:
    """A product of each candidate's rows with the query's."""

    packages = ("numpy",)
    threads = cores()
    remarks = ("in memory only; candidates are given, not searched", "no filters")

    def __init__(self, place: Place) -> None:
        self._vocabulary = place.vocabulary
        self._batches: list[Batch] = []
        self._rows: list[Floats] = []

    def pack(self, batch: Batch, rows: Sequence[Floats] | None) -> tuple[Batch, list[Floats]]:
        assert rows is not None
        return batch, list(rows)

    def add(self, packed: tuple[Batch, list[Floats]]) -> None:
        self._batches.append(packed[0])
        self._rows += packed[1]

    def finish(self) -> None:
        """Nothing is left to do."""

    def prepare(self, query: Query, ask: Ask) -> tuple[Floats, NDArray[np.int64], int]:
        dense = np.concatenate([batch.dense @ query.dense for batch in self._batches])
        lexical = np.concatenate(
            [lexical_scores(batch, [query], self._vocabulary)[0] for batch in self._batches]
        )
        legs = [np.argsort(-scores, kind="stable")[: ask.candidates] for scores in (dense, lexical)]
        return query.rows, np.union1d(*legs), ask.k

    def search(self, request: tuple[Floats, NDArray[np.int64], int]) -> NDArray[np.int64]:
        query, candidates, k = request
        scores = np.array([(self._rows[one] @ query.T).max(axis=0).mean() for one in candidates])
        return candidates[np.argsort(-scores)[:k]]

    def numbers(self, found: NDArray[np.int64]) -> list[int]:
        return [int(one) for one in found]


if __name__ == "__main__":
    serve(NumpySide)
