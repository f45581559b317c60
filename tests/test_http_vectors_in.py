"""Vectors that clients supply as base64: read as they were written, refused by name where they do not fit."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.fakes import COLBERT, HIDDEN, FakeModel
from tests.http_helpers import problem, serving

DOCUMENTS = "/collections/c/documents"
TEXT = "the cat sat 长城"


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def client(tmp_path: Path, model: FakeModel) -> Iterator[TestClient]:
    with serving(tmp_path, model) as client:
        client.put("/collections/c", json={"colbert": "float32"})
        yield client


def packed(numbers: Any, dtype: str = "<f4") -> str:
    return base64.b64encode(np.asarray(numbers, dtype).tobytes()).decode()


def embedded(client: TestClient, **how: str) -> dict[str, Any]:
    """What /embed gives, without what is not of the vectors."""
    (one,) = client.post("/embed", json={"texts": TEXT, **how}).json()["results"]
    return {name: value for name, value in one.items() if name not in ("index", "tokens", "truncated")}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("ndjson", [False, True])
def test_what_embed_wrote_can_be_stored_and_searched_with(
    client: TestClient, model: FakeModel, dtype: str, ndjson: bool
) -> None:
    given = {**embedded(client, encoding="base64", dtype=dtype), "dtype": dtype}
    assert isinstance(given["dense"], str) and isinstance(given["colbert"], str)
    passes = len(model.batches)
    document = {"id": "a", "text": TEXT, "embedding": given}
    kind = "application/x-ndjson" if ndjson else "application/json"
    body = json.dumps(document if ndjson else [document])
    stored = client.post(DOCUMENTS, content=body, headers={"Content-Type": kind}).json()
    assert stored["failed"] == 0, stored
    hits = []
    for query in (given, {"embedding": given}, embedded(client)):
        (hit,) = client.post("/collections/c/search", json={"query": query}).json()["hits"]
        hits.append(hit["scores"])
    assert len(model.batches) == passes + 1  # for the last query's /embed alone
    assert hits[0] == hits[1]
    for name in ("dense", "sparse", "colbert"):
        assert hits[0][name] == pytest.approx(hits[2][name], abs=1e-6 if dtype == "float32" else 2e-3)
    assert hits[0]["dense"] == pytest.approx(1, abs=2e-3)


def test_rows_come_in_order_and_little_endian(client: TestClient) -> None:
    rows = np.eye(COLBERT, dtype=np.float32)[:3]
    document = {"id": "a", "text": "x", "embedding": {"colbert": packed(rows), "colbert_shape": [3, COLBERT]}}
    assert client.post(DOCUMENTS, json=[document]).json()["failed"] == 0
    for place, row in enumerate(np.eye(COLBERT)[:4].tolist()):
        search = {"query": {"colbert": [row]}, "mode": "colbert", "explain": True, "candidates": 10}
        (hit,) = client.post("/collections/c/search", json=search).json()["hits"]
        assert hit["score"] == (1 if place < 3 else 0)


def test_outputs_may_be_mixed_and_the_rest_is_computed(client: TestClient, model: FakeModel) -> None:
    vector = [1.0] + [0.0] * (HIDDEN - 1)
    document = {"id": "a", "text": "the cat", "embedding": {"dense": packed(vector)}}
    assert client.post(DOCUMENTS, json=[document]).json()["failed"] == 0
    assert model.asked[-1] == {"sparse", "colbert"}
    search = {"query": {"dense": vector, "colbert": packed(np.ones((2, COLBERT)))}, "weights": {"dense": 1}}
    (hit,) = client.post("/collections/c/search", json=search).json()["hits"]
    assert hit["scores"]["dense"] == 1 and hit["scores"]["colbert"] is not None


GOOD = packed([0.5] * HIDDEN)
ROWS = packed(np.ones((2, COLBERT)))
BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"dense": "no base64!"}, "dense", "base64 of little-endian float32"),
    ({"dense": GOOD[:-1]}, "dense", "base64 of little-endian float32"),
    ({"dense": f"{GOOD[:20]}\n{GOOD[20:]}"}, "dense", "base64 of little-endian float32"),
    ({"dense": "长城"}, "dense", "base64 of little-endian float32"),
    ({"dense": "\x00"}, "dense", "base64 of little-endian float32"),
    ({"dense": ""}, "dense", f"0 bytes, where a vector of this model has {4 * HIDDEN} as float32"),
    ({"dense": packed([0.5] * (HIDDEN - 1))}, "dense", f"{4 * HIDDEN - 4} bytes"),
    ({"dense": packed([0.5] * HIDDEN, "<f2")}, "dense", "`dtype` says which"),
    ({"dense": GOOD, "dtype": "float16"}, "dense", "2 vectors, where one is expected"),
    ({"dense": packed([0.5] * (2 * HIDDEN))}, "dense", "2 vectors, where one is expected"),
    ({"dense": packed([np.nan] * HIDDEN)}, "dense", "NaN or infinite"),
    ({"dense": packed([np.inf] * HIDDEN, "<f2"), "dtype": "float16"}, "dense", "NaN or infinite"),
    ({"dense": 5}, "dense", "a list of numbers or base64 is expected"),
    ({"dense": {"base64": GOOD}}, "dense", "a list of numbers or base64 is expected"),
    ({"dense": [0.5] * (HIDDEN - 1) + ["0.5"]}, f"dense.{HIDDEN - 1}", "valid number"),
    ({"dense": GOOD, "dtype": "int8"}, "dtype", "float16"),
    ({"colbert": ""}, "colbert", "0 bytes"),
    ({"colbert": ROWS[:-8] + "AAA="}, "colbert", "bytes, where a vector"),
    ({"colbert": ROWS, "colbert_shape": [3, COLBERT]}, "colbert_shape", f"2 rows of {COLBERT}"),
    ({"colbert": ROWS, "colbert_shape": [2]}, "colbert_shape", "at least 2"),
    ({"colbert": ROWS, "colbert_shape": ["2", COLBERT]}, "colbert_shape.0", "valid integer"),
    ({"colbert": []}, "colbert", "at least 1"),
    ({"colbert": [[1.0], "x"]}, "colbert.1", "valid list"),
]


@pytest.mark.parametrize(("embedding", "param", "message"), BAD)
def test_what_does_not_fit_is_named(
    client: TestClient, embedding: dict[str, Any], param: str, message: str
) -> None:
    found = client.post(DOCUMENTS, json=[{"text": "a", "embedding": embedding}, {"text": "b"}]).json()
    error = found["results"][0]["error"]
    assert (error["code"], error["param"]) == ("invalid_request", f"embedding.{param}")
    assert message in error["message"] and found["upserted"] == 1
    for query, where in ((embedding, "query"), ({"embedding": embedding}, "query.embedding")):
        answer = client.post("/collections/c/search", json={"query": query})
        assert message in problem(answer, 422, "invalid_request", f"{where}.{param}")


def test_a_token_twice_is_told_as_such(client: TestClient) -> None:
    """Their order is free, so a word about order would mislead."""
    weights = {"indices": [7, 5, 7], "values": [1, 1, 1]}
    answer = client.post("/search", json={"query": {"sparse": weights}})
    assert problem(answer, 422, "invalid_request", "query.sparse") == "lexical indices must be distinct"


def test_half_a_surrogate_pair_is_no_base64(client: TestClient) -> None:
    body = b'{"query": {"dense": "\\ud800"}}'
    answer = client.post("/collections/c/search", content=body, headers={"Content-Type": "application/json"})
    problem(answer, 422, "invalid_request", "query.dense")


def test_the_schema_says_so(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()["components"]["schemas"]["EmbeddingBody"]["properties"]
    for name in ("dense", "colbert"):
        assert "base64" in schema[name]["description"] and '"string"' in json.dumps(schema[name])
    assert schema["dtype"]["enum"] == ["float32", "float16"]
