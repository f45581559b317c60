"""qdrant-client's local mode, in memory, as its users run a hybrid query with ColBERT. No options.

Dense and sparse each prefetch `candidates` documents, MaxSim orders their union: one request. Local mode is
brute force in Python and NumPy; a Qdrant server is another thing and is not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qdrant_client import QdrantClient, models

from benchmarks.encode_sides.protocol import cores
from benchmarks.search_sides.protocol import FILTERS, Ask, Place, serve
from benchmarks.synthetic import Batch, Floats, Query

NAME = "benchmark"


class QdrantSide:
    """Three named vectors of each point."""

    packages = ("qdrant-client", "numpy")
    threads = cores()
    remarks = (
        "local mode: brute force, in memory, no payload index",
        "ordered by MaxSim alone; dense and sparse scores of the hits are not given",
    )

    def __init__(self, place: Place) -> None:
        self._client = QdrantClient(":memory:")
        rows = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
        self._client.create_collection(
            NAME,
            vectors_config={
                "dense": models.VectorParams(size=place.width, distance=models.Distance.DOT),
                "colbert": models.VectorParams(
                    size=place.width, distance=models.Distance.DOT, multivector_config=rows
                ),
            },
            sparse_vectors_config={"sparse": models.SparseVectorParams()},
        )

    def pack(self, batch: Batch, rows: Sequence[Floats] | None) -> list[models.PointStruct]:
        assert rows is not None
        points = []
        for place in range(len(batch)):
            terms, weights = batch.lexical(place)
            vectors: dict[str, Any] = {
                "dense": batch.dense[place].tolist(),
                "sparse": models.SparseVector(indices=terms.tolist(), values=weights.tolist()),
                "colbert": rows[place].tolist(),
            }
            payload = {"text": batch.texts[place], **batch.metadata[place]}
            points.append(models.PointStruct(id=batch.first + place, vector=vectors, payload=payload))
        return points

    def add(self, packed: list[models.PointStruct]) -> None:
        self._client.upsert(NAME, packed)

    def finish(self) -> None:
        """Nothing is left to do."""

    def prepare(self, query: Query, ask: Ask) -> dict[str, Any]:
        allowed = _filter(ask.filter)
        sparse = models.SparseVector(indices=query.terms.tolist(), values=query.weights.tolist())
        legs = [(query.dense.tolist(), "dense"), (sparse, "sparse")]
        return {
            "prefetch": [
                models.Prefetch(query=vector, using=name, limit=ask.candidates, filter=allowed)
                for vector, name in legs
            ],
            "query": query.rows.tolist(),
            "using": "colbert",
            "limit": ask.k,
            "query_filter": allowed,
        }

    def search(self, request: dict[str, Any]) -> Any:
        return self._client.query_points(NAME, **request)

    def numbers(self, found: Any) -> list[int]:
        return [int(point.id) for point in found.points]


def _filter(name: str | None) -> models.Filter | None:
    if name is None:
        return None
    one = FILTERS[name]
    if one.operator == "=":
        held = models.FieldCondition(key=one.field, match=models.MatchValue(value=one.value))
    else:
        held = models.FieldCondition(key=one.field, range=models.Range(gte=float(one.value)))
    return models.Filter(must=[held])


if __name__ == "__main__":
    serve(QdrantSide)
