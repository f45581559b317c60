"""FAISS on the dense vectors. Options: `index`, "flat" or "hnsw"."""

from __future__ import annotations

from collections.abc import Sequence

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.encode_sides.protocol import cores
from benchmarks.search_sides.protocol import Ask, Place, serve
from benchmarks.synthetic import Batch, Floats, Query

LINKS, BUILD_DEPTH, SEARCH_DEPTH = 32, 128, 128


class FaissSide:
    """Inner products of unit vectors."""

    packages = ("faiss-cpu", "numpy")
    remarks = ("in memory only",)

    def __init__(self, place: Place) -> None:
        faiss.omp_set_num_threads(cores())
        # One query walks a graph on one thread.
        self.threads = 1 if place.options["index"] == "hnsw" else cores()
        if place.options["index"] == "flat":
            self._index = faiss.IndexFlatIP(place.width)
        else:
            self._index = faiss.IndexHNSWFlat(place.width, LINKS, faiss.METRIC_INNER_PRODUCT)
            self._index.hnsw.efConstruction = BUILD_DEPTH
            self._index.hnsw.efSearch = SEARCH_DEPTH

    def pack(self, batch: Batch, rows: Sequence[Floats] | None) -> Floats:
        return np.ascontiguousarray(batch.dense)

    def add(self, packed: Floats) -> None:
        self._index.add(packed)

    def finish(self) -> None:
        """Nothing is left to do."""

    def prepare(self, query: Query, ask: Ask) -> tuple[Floats, int]:
        return query.dense[None], ask.k

    def search(self, request: tuple[Floats, int]) -> NDArray[np.int64]:
        return self._index.search(*request)[1]

    def numbers(self, found: NDArray[np.int64]) -> list[int]:
        return [int(one) for one in found[0] if one >= 0]


if __name__ == "__main__":
    serve(FaissSide)
