"""LanceDB on disk, as its users run a hybrid query with ColBERT. No options.

It has no learned sparse vectors: full text search (BM25) over the text is its lexical leg. Vector and text
search are fused by its own RRF; then the token vectors of the best `candidates` are fetched and ordered by
MaxSim in NumPy. Its own multivector search over those candidates took ten times as long. Brute force, as
is usual below 100,000 rows, with scalar indexes on what filters ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.rerankers import RRFReranker
from numpy.typing import NDArray

from benchmarks.encode_sides.protocol import cores
from benchmarks.search_sides.protocol import FILTERS, Ask, Place, serve
from benchmarks.synthetic import Batch, Floats, Query


class LancedbSide:
    """One table with a dense vector, a list of token vectors (float16), text and metadata."""

    packages = ("lancedb", "pyarrow", "numpy")
    threads = cores()
    remarks = (
        "no learned sparse vectors: BM25 of the text instead, so its candidates differ",
        "ordered by MaxSim alone, computed in NumPy by the user; two requests",
    )

    def __init__(self, place: Place) -> None:
        self._width = place.width
        fields = [
            ("number", pa.int64()),
            ("text", pa.string()),
            ("dense", pa.list_(pa.float32(), place.width)),
            ("colbert", pa.list_(pa.list_(pa.float16(), place.width))),
            ("lang", pa.string()),
            ("tenant", pa.string()),
            ("year", pa.int64()),
            ("half", pa.bool_()),
        ]
        self._schema = pa.schema(fields)
        database = lancedb.connect(str(place.folder / "lancedb"))
        self._table = database.create_table("benchmark", schema=self._schema, mode="overwrite")
        self._reranker = RRFReranker()

    def pack(self, batch: Batch, rows: Sequence[Floats] | None) -> pa.Table:
        assert rows is not None
        columns: dict[str, Any] = {
            "number": list(range(batch.first, batch.first + len(batch))),
            "text": list(batch.texts),
            "dense": list(batch.dense),
            "colbert": [list(one.astype("float16")) for one in rows],
        }
        for name in ("lang", "tenant", "year", "half"):
            columns[name] = [one[name] for one in batch.metadata]
        return pa.table(columns, schema=self._schema)

    def add(self, packed: pa.Table) -> None:
        self._table.add(packed)

    def finish(self) -> None:
        self._table.create_fts_index("text", stem=False, remove_stop_words=False)
        for name in ("number", "lang", "tenant", "year", "half"):
            self._table.create_scalar_index(name)
        self._table.optimize()

    def prepare(self, query: Query, ask: Ask) -> tuple[Query, Ask, str | None]:
        return query, ask, _filter(ask.filter)

    def search(self, request: tuple[Query, Ask, str | None]) -> Any:
        query, ask, allowed = request
        legs = self._table.search(query_type="hybrid", vector_column_name="dense")
        legs = legs.vector(query.dense).text(query.text).distance_type("dot").select(["number"])
        if allowed is not None:
            legs = legs.where(allowed, prefilter=True)
        candidates = legs.rerank(self._reranker).limit(ask.candidates).to_arrow()["number"].to_pylist()
        if not candidates:
            return []
        listed = ",".join(map(str, candidates))
        fetched = self._table.search().where(f"number IN ({listed})").limit(len(candidates))
        found = fetched.select(["number", "text", "colbert"]).to_arrow().combine_chunks()
        scores = self._maxsim(query.rows, found["colbert"])
        best = np.argsort(-scores, kind="stable")[: ask.k]
        return [int(one) for one in found["number"].to_numpy()[best]]

    def _maxsim(self, query: Floats, column: pa.ChunkedArray) -> NDArray[np.float32]:
        scores = []
        for chunk in column.chunks:
            stored = chunk.flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, self._width)
            similar = stored.astype(np.float32) @ query.T  # [rows, 32]
            starts = chunk.offsets.to_numpy()[:-1]
            scores.append(np.maximum.reduceat(similar, starts - starts[0], axis=0).mean(axis=1))
        return np.concatenate(scores)

    def numbers(self, found: list[int]) -> list[int]:
        return found


def _filter(name: str | None) -> str | None:
    if name is None:
        return None
    one = FILTERS[name]
    value = f"'{one.value}'" if isinstance(one.value, str) else str(one.value).lower()
    return f"{one.field} {one.operator} {value}"


if __name__ == "__main__":
    serve(LancedbSide)
