"""Answers that would not fit into memory: refused before the model works, or before they are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.index.collection import Database
from app.settings import Settings
from app.sizes import vector_bytes
from model.embedding import OUTPUTS
from tests.fakes import CARD, COLBERT, HIDDEN, FakeModel
from tests.http_helpers import problem, serving, v1_problem

LIMIT = 20_000
TEXT = "cat " * 50
TEXT_BYTES = 4 * (HIDDEN + 2 * 52 + 51 * COLBERT)
"""Of all its vectors."""
FIT = LIMIT // TEXT_BYTES
SAFETENSORS = {"Accept": "application/vnd.safetensors"}


@pytest.fixture(scope="module")
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, model: FakeModel) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("data"), model, max_answer_bytes=LIMIT) as client:
        yield client


def test_four_gigabytes_are_too_many_by_default(tmp_path: Path) -> None:
    card = FakeModel().card.__class__(**{**_fields(), "hidden_size": 1024, "colbert_dim": 1024})
    size = vector_bytes([512] * 2048, frozenset(OUTPUTS), card)
    assert 4.2e9 < size < 4.4e9 > Settings(data_dir=tmp_path).max_answer_bytes


def _fields() -> dict[str, Any]:
    return {name: getattr(CARD, name) for name in CARD.__dataclass_fields__}


@pytest.mark.parametrize("headers", [{}, SAFETENSORS])
def test_embeddings(client: TestClient, model: FakeModel, headers: dict[str, str]) -> None:
    ask = {"texts": [TEXT] * FIT, "encoding": "base64"}
    assert client.post("/embed", json=ask, headers=headers).status_code == 200
    passes = len(model.batches)
    ask["texts"] = [TEXT] * (FIT + 1)
    message = problem(client.post("/embed", json=ask, headers=headers), 413, "answer_too_large")
    assert str((FIT + 1) * TEXT_BYTES) in message and str(LIMIT) in message
    assert len(model.batches) == passes
    fewer = {**ask, "outputs": ["dense", "sparse"]}
    assert client.post("/embed", json=fewer, headers=headers).status_code == 200


def test_adapters_and_reranking(client: TestClient, model: FakeModel) -> None:
    many = [TEXT] * (FIT + 1)
    passes = len(model.batches)
    refused = client.post("/tei/embed_all", json={"inputs": [TEXT] * 7})
    assert refused.status_code == 413 and refused.json()["error_type"] == "Validation"
    assert client.post("/tei/embed_all", json={"inputs": [TEXT] * 5}).status_code == 200
    words = " ".join(f"word{n}" for n in range(400))
    refused = client.post("/tei/embed_sparse", json={"inputs": [words] * 7})
    assert refused.status_code == 413 and str(LIMIT) in refused.json()["error"]
    assert client.post("/tei/embed_sparse", json={"inputs": [words] * 6}).status_code == 200
    refused = client.post("/tei/rerank", json={"query": "cat", "texts": many})
    assert refused.status_code == 413
    problem(client.post("/rerank", json={"query": "cat", "documents": many}), 413, "answer_too_large")
    v1_problem(
        client.post("/v1/rerank", json={"query": "cat", "documents": many, "model": "m"}),
        413,
        "answer_too_large",
    )
    numbers = LIMIT // 4 // HIDDEN
    body = {"input": ["cat"] * (numbers + 1), "model": "m", "encoding_format": "base64"}
    v1_problem(client.post("/v1/embeddings", json=body), 413, "answer_too_large")
    body["input"] = ["cat"] * numbers
    assert client.post("/v1/embeddings", json=body).status_code == 200
    body = {"texts": ["cat"] * (numbers + 1), "model": "m", "input_type": "search_query"}
    assert client.post("/v2/embed", json=body).status_code == 413
    assert client.post("/search", json={"query": many}).status_code == 200  # nothing is stored, nothing asked
    assert len(model.batches) > passes


def _stored(client: TestClient, name: str, count: int, text: str, metadata: Any = None) -> None:
    assert client.put(f"/collections/{name}").status_code == 201
    documents = [{"id": str(n), "text": text, "metadata": metadata or {}} for n in range(count)]
    for one in documents:
        assert client.post(f"/collections/{name}/documents", json=[one]).status_code == 200


def _search(client: TestClient, name: str, query: Any, **fields: Any) -> Any:
    return client.post(f"/collections/{name}/search", json={"query": query, **fields})


def test_upserts_are_not_bound(client: TestClient) -> None:
    documents = [{"id": str(n), "text": TEXT} for n in range(3 * FIT)]
    client.put("/collections/many")
    answer = client.post("/collections/many/documents", json=documents)
    assert answer.status_code == 200 and answer.json()["failed"] == 0


def test_queries(client: TestClient, model: FakeModel) -> None:
    _stored(client, "queried", 1, "cat")
    passes = len(model.batches)
    many = [f"{n} {TEXT}" for n in range(FIT + 1)]
    problem(_search(client, "queried", many, include=[]), 413, "answer_too_large")
    assert len(model.batches) == passes


def test_texts_of_hits(client: TestClient) -> None:
    _stored(client, "texts", 5, "cat " + "x" * 5000)
    assert len(_search(client, "texts", "cat", top_k=3).json()["hits"]) == 3
    problem(_search(client, "texts", "cat", top_k=5), 413, "answer_too_large", "top_k")
    # Many queries share the bound.
    assert len(_search(client, "texts", ["cat"], top_k=2, include=["text"]).json()["results"]) == 1
    refused = _search(client, "texts", ["cat"] * 3, top_k=2, include=["text"])
    assert "fewer queries" in problem(refused, 413, "answer_too_large", "top_k")


def test_metadata_of_hits(client: TestClient) -> None:
    _stored(client, "metadata", 3, "cat", {"a": ["x" * 1000] * 8, "b": {"c": "y" * 100}})
    assert len(_search(client, "metadata", "cat", top_k=1, include=["metadata"]).json()["hits"]) == 1
    problem(
        _search(client, "metadata", "cat", top_k=3, include=["metadata"]), 413, "answer_too_large", "top_k"
    )


@pytest.mark.parametrize("query", ["cat", {"dense": [1.0] * HIDDEN}])
def test_explained_hits(client: TestClient, query: Any) -> None:
    """An explanation needs all of a document's vectors, whatever the query has."""
    name = "explained" if isinstance(query, str) else "explained-vectors"
    _stored(client, name, 3 * FIT, TEXT)
    assert len(_search(client, name, query, top_k=FIT, include=[], explain=True).json()["hits"]) == FIT
    refused = _search(client, name, query, top_k=3 * FIT, include=[], explain=True)
    assert "explain" in problem(refused, 413, "answer_too_large", "top_k")
    assert _search(client, name, query, top_k=3 * FIT, include=[]).status_code == 200


def test_without_a_bound_all_is_read(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        _stored(client, "all", 70, TEXT)
        hits = _search(client, "all", "cat", top_k=70, explain=True).json()["hits"]
        assert len(hits) == 70 and all(one["explanation"]["alignment"] for one in hits)
        assert {one["text"] for one in hits} == {TEXT}
    Database(tmp_path).close()


def test_tokens(tmp_path: Path) -> None:
    with serving(tmp_path, max_json_numbers=400) as client:
        assert client.post("/tokenize", json={"texts": ["cat " * 98]}).status_code == 200
        problem(client.post("/tokenize", json={"texts": ["cat " * 49] * 2}), 422, "limit_exceeded", "texts")


def test_the_limit_is_told(client: TestClient) -> None:
    assert client.get("/info").json()["limits"]["max_answer_bytes"] == LIMIT
