"""Milvus Lite through pymilvus, as its users run a hybrid query of dense and sparse vectors. No options.

It stores no multi-vectors, so there is no ColBERT score: two of the three legs, fused by its WeightedRanker.
Each leg's score counts as it is (`norm_score` off), weighted as Trivec weighs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pymilvus import AnnSearchRequest, DataType, MilvusClient, WeightedRanker

from benchmarks.encode_sides.protocol import cores
from benchmarks.search_sides.protocol import FILTERS, Ask, Place, serve
from benchmarks.synthetic import Batch, Floats, Query

NAME = "benchmark"


class MilvusSide:
    """A local file; HNSW on dense, inverted lists on sparse vectors."""

    packages = ("milvus-lite", "pymilvus", "faiss-cpu", "numpy")
    threads = cores()
    remarks = ("no multi-vectors: no ColBERT score at all",)

    def __init__(self, place: Place) -> None:
        self._client = MilvusClient(str(place.folder / "milvus.db"))
        schema = MilvusClient.create_schema(auto_id=False)
        schema.add_field("number", DataType.INT64, is_primary=True)
        schema.add_field("text", DataType.VARCHAR, max_length=4096)
        schema.add_field("dense", DataType.FLOAT_VECTOR, dim=place.width)
        schema.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
        schema.add_field("lang", DataType.VARCHAR, max_length=8)
        schema.add_field("tenant", DataType.VARCHAR, max_length=8)
        schema.add_field("year", DataType.INT64)
        schema.add_field("half", DataType.BOOL)
        self._client.create_collection(NAME, schema=schema)

    def pack(self, batch: Batch, rows: Sequence[Floats] | None) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for place, text in enumerate(batch.texts):
            terms, weights = batch.lexical(place)
            sparse = dict(zip(terms.tolist(), weights.tolist(), strict=True))
            dense = batch.dense[place].tolist()
            number = batch.first + place
            found.append(
                {"number": number, "text": text, "dense": dense, "sparse": sparse, **batch.metadata[place]}
            )
        return found

    def add(self, packed: list[dict[str, Any]]) -> None:
        self._client.upsert(NAME, packed)

    def finish(self) -> None:
        self._client.flush(NAME)
        indexes = self._client.prepare_index_params()
        indexes.add_index(
            "dense", index_type="HNSW", metric_type="IP", params={"M": 32, "efConstruction": 128}
        )
        indexes.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
        for name in ("lang", "tenant", "year", "half"):
            indexes.add_index(name, index_type="INVERTED")
        self._client.create_index(NAME, indexes)
        self._client.load_collection(NAME)

    def prepare(self, query: Query, ask: Ask) -> dict[str, Any]:
        sparse = dict(zip(query.terms.tolist(), query.weights.tolist(), strict=True))
        allowed = {"expr": _filter(ask.filter)} if ask.filter else {}
        legs = [(query.dense.tolist(), "dense", {"ef": max(128, ask.candidates)}), (sparse, "sparse", {})]
        return {
            "reqs": [
                AnnSearchRequest(
                    [vector], name, {"metric_type": "IP", "params": params}, limit=ask.candidates, **allowed
                )
                for vector, name, params in legs
            ],
            "ranker": WeightedRanker(0.4, 0.2, norm_score=False),
            "limit": ask.k,
            "output_fields": ["text"],
        }

    def search(self, request: dict[str, Any]) -> Any:
        return self._client.hybrid_search(NAME, **request)

    def numbers(self, found: Any) -> list[int]:
        return [int(hit["number"]) for hit in found[0]]


def _filter(name: str) -> str:
    one = FILTERS[name]
    value = f'"{one.value}"' if isinstance(one.value, str) else str(one.value).lower()
    return f"{one.field} {'==' if one.operator == '=' else one.operator} {value}"


if __name__ == "__main__":
    serve(MilvusSide)
