"""Seismic: an approximate inverted index for learned sparse vectors, in Rust. No options.

Default build; a query looks at all of its 12 terms, with heap factor 0.8. Its recall stands beside its speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import seismic

from benchmarks.encode_sides.protocol import cores
from benchmarks.search_sides.protocol import Ask, Place, serve
from benchmarks.synthetic import QUERY_TERMS, Batch, Floats, Query

HEAP_FACTOR = 0.8


class SeismicSide:
    """Built on all cores; one query runs on one thread."""

    packages = ("pyseismic-lsr", "numpy")
    threads = 1
    remarks = ("approximate; in memory only; float16 weights; one thread for one query",)

    def __init__(self, place: Place) -> None:
        self._dataset = seismic.SeismicDatasetLV()

    def pack(self, batch: Batch, rows: Sequence[Floats] | None) -> tuple[Any, ...]:
        return batch.ids, batch.terms.astype(np.int64), batch.weights, batch.starts

    def add(self, packed: tuple[Any, ...]) -> None:
        self._dataset.add_documents_by_id(*packed)

    def finish(self) -> None:
        self._index = seismic.SeismicIndexLV.build_from_dataset(self._dataset, num_threads=cores())
        del self._dataset

    def prepare(self, query: Query, ask: Ask) -> dict[str, Any]:
        return {
            "query_id": "q",
            "query_components": np.array([str(term) for term in query.terms], seismic.get_seismic_string()),
            "query_values": query.weights,
            "k": ask.k,
            "query_cut": QUERY_TERMS,
            "heap_factor": HEAP_FACTOR,
        }

    def search(self, request: dict[str, Any]) -> Any:
        return self._index.search(**request)

    def numbers(self, found: Any) -> list[int]:
        return [int(one[2][1:]) for one in found]


if __name__ == "__main__":
    serve(SeismicSide)
