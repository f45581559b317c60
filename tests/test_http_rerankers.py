"""/v1/rerank and /v2/rerank (Jina, Cohere), /v1/embed and /v2/embed (Cohere)."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from app.schemas.cohere import CohereEmbedResponse, CohereFloatsResponse
from app.schemas.rerankers import CohereRerankResponse, JinaRerankResponse
from tests.clients import payloads
from tests.fakes import CARD, HIDDEN, FakeModel
from tests.http_helpers import JSON, dense_vectors, serving, v1_problem, v2_problem

TEXTS = payloads.TEXTS


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("data"), max_texts=5, max_body_bytes=8192) as client:
        yield client


def native(client: TestClient, query: str, documents: list[str]) -> list[tuple[int, float]]:
    """Index and hybrid score from the native route, best first."""
    found = client.post("/rerank", json={"query": query, "documents": documents}).json()["results"]
    return [(one["index"], one["score"]) for one in found]


def places(answer: Any) -> list[tuple[int, float]]:
    assert answer.status_code == 200, answer.text
    return [(one["index"], one["relevance_score"]) for one in answer.json()["results"]]


@pytest.mark.parametrize("name", payloads.RERANK_V1)
def test_what_clients_send_to_v1(client: TestClient, name: str) -> None:
    payload = payloads.RERANK_V1[name]
    answer = client.post("/v1/rerank", json=payload)
    assert places(answer) == native(client, "cat", TEXTS)[: payload.get("top_n")]
    body = JinaRerankResponse.model_validate_json(answer.content)
    assert (body.model, body.meta.api_version.version) == ("fake", "1")
    assert body.usage.total_tokens == 3 + 5 + 5
    assert body.id == answer.headers["X-Request-ID"]
    assert [one.document.text for one in body.results if one.document] == [
        TEXTS[one.index] for one in body.results
    ]


@pytest.mark.parametrize("name", payloads.RERANK_V2)
def test_what_clients_send_to_v2(client: TestClient, name: str) -> None:
    payload = payloads.RERANK_V2[name]
    answer = client.post("/v2/rerank", json=payload)
    assert places(answer) == native(client, "cat", TEXTS)[: payload.get("top_n")]
    CohereRerankResponse.model_validate_json(answer.content)
    assert set(answer.json()) == {"id", "results", "meta"}
    assert set(answer.json()["results"][0]) == {"index", "relevance_score"}
    assert answer.json()["meta"] == {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}


def test_scores_are_those_of_the_native_route(client: TestClient) -> None:
    documents = ["dog", "a cat", "the cat sat on the mat", "cat", "dog"]
    wanted = native(client, "cat mat", documents)
    body = {"query": {"text": "cat mat"}, "documents": [{"text": one} for one in documents]}
    for path in ("/v1/rerank", "/v2/rerank"):
        assert places(client.post(path, json=body)) == wanted
    assert [index for index, _ in wanted][-2:] == [0, 4]  # equal scores keep their order


@pytest.mark.parametrize(("path", "by_default"), [("/v1/rerank", True), ("/v2/rerank", False)])
def test_documents_are_returned_where_they_are_wanted(
    client: TestClient, path: str, by_default: bool
) -> None:
    for asked, wanted in ((True, True), (False, False), (None, by_default)):
        body = {"query": "cat", "documents": TEXTS, "return_documents": asked}
        (best, *_) = client.post(path, json=body).json()["results"]
        assert best.get("document") == ({"text": TEXTS[0]} if wanted else None)


def test_documents_are_cut(client: TestClient) -> None:
    body = {"query": "cat", "documents": ["the dog and the cat"], "max_tokens_per_doc": 4}
    answer = client.post("/v2/rerank", json=body)
    assert answer.headers["X-Truncated-Texts"] == "1"
    assert places(answer) == native(client, "cat", ["the dog"])
    whole = client.post("/v2/rerank", json={**body, "max_tokens_per_doc": 100_000})
    assert places(whole) == native(client, "cat", ["the dog and the cat"])
    assert "X-Truncated-Texts" not in whole.headers


def test_a_model_with_one_output(tmp_path: Path) -> None:
    with serving(tmp_path, FakeModel(card=replace(CARD, outputs=("dense",), colbert_dim=0))) as client:
        (found,) = places(client.post("/v2/rerank", json={"query": "cat", "documents": ["cat"]}))
        assert found == (0, pytest.approx(1, abs=1e-5))
        assert client.post("/v1/embeddings", json={"input": "cat"}).status_code == 200


BAD_RERANKS: list[tuple[Any, str | None]] = [
    ({}, "query"),
    ([], None),
    ({"query": "", "documents": ["a"]}, "query"),
    ({"query": "a"}, "documents"),
    ({"query": "a", "documents": []}, "documents"),
    ({"query": "a", "documents": "a"}, "documents"),
    ({"query": "a", "documents": ["a", ""]}, "documents.1"),
    ({"query": "a", "documents": [{"title": "a"}]}, "documents.0.text"),
    ({"query": "a", "documents": [5]}, "documents.0"),
    ({"query": "a", "documents": ["a"], "top_n": 0}, "top_n"),
    ({"query": "a", "documents": ["a"], "top_n": "1"}, "top_n"),
    ({"query": "a", "documents": ["a"], "return_documents": 1}, "return_documents"),
    ({"query": "a", "documents": ["a"], "max_tokens_per_doc": 1}, "max_tokens_per_doc"),
    ({"query": "a", "documents": ["a"], "rank_fields": ["title"]}, "rank_fields"),
]


@pytest.mark.parametrize(("body", "param"), BAD_RERANKS)
def test_what_cannot_be_reranked_is_named(client: TestClient, body: Any, param: str | None) -> None:
    v1_problem(client.post("/v1/rerank", json=body), 400, "invalid_request", param)
    v2_problem(client.post("/v2/rerank", json=body), 400, "invalid_request", param)


def test_limits_and_json(client: TestClient) -> None:
    many = {"query": "a", "documents": ["a"] * 6}
    v1_problem(client.post("/v1/rerank", json=many), 400, "limit_exceeded", "documents")
    v2_problem(client.post("/v2/rerank", json=many), 400, "limit_exceeded", "documents")
    broken = rb'{"query": "\ud800", "documents": ["a"]}'
    v2_problem(client.post("/v2/rerank", content=broken, headers=JSON), 400, "invalid_request", "query")
    v2_problem(client.post("/v2/rerank", content=b"[", headers=JSON), 400, "malformed_json")
    big = {"query": "a", "documents": ["x" * 9000]}
    v2_problem(client.post("/v2/rerank", json=big), 413, "body_too_large")
    assert client.post("/v2/rerank", json={"query": "a", "documents": ["a"], "new": 1}).status_code == 200


def test_cohere_embeds_in_every_format(client: TestClient) -> None:
    exact = dense_vectors(client, TEXTS)
    answer = client.post("/v2/embed", json=payloads.COHERE_EMBED)
    body = CohereEmbedResponse.model_validate_json(answer.content)
    assert body.texts == TEXTS and body.meta.billed_units.input_tokens == 10
    found = answer.json()["embeddings"]
    np.testing.assert_array_equal(np.array(found["float"], np.float32), exact)
    decoded = [np.frombuffer(base64.b64decode(one), "<f4") for one in found["base64"]]
    np.testing.assert_array_equal(decoded, exact)
    bits = np.packbits(exact > 0, axis=1)
    assert found["ubinary"] == bits.tolist()
    assert found["binary"] == (bits.astype(int) - 128).tolist()
    assert found["uint8"] == (np.array(found["int8"]) + 128).tolist()
    largest = np.abs(exact).max(axis=1, keepdims=True)
    np.testing.assert_allclose(np.array(found["int8"]) / 127 * largest, exact, atol=largest.max() / 250)


@pytest.mark.parametrize("name", payloads.COHERE_EMBED_V1_BODIES)
def test_cohere_embeds_in_version_1(client: TestClient, name: str) -> None:
    answer = client.post("/v1/embed", json=payloads.COHERE_EMBED_V1_BODIES[name])
    if name == "cohere-1":
        CohereFloatsResponse.model_validate_json(answer.content)
        rows = answer.json()["embeddings"]
    else:
        CohereEmbedResponse.model_validate_json(answer.content)
        rows = answer.json()["embeddings"]["float"]
    np.testing.assert_array_equal(np.array(rows, np.float32), dense_vectors(client, TEXTS))


def test_cohere_inputs_of_parts(client: TestClient) -> None:
    inputs = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
    answer = client.post("/v2/embed", json={"inputs": inputs, "embedding_types": []})
    np.testing.assert_array_equal(
        np.array(answer.json()["embeddings"]["float"], np.float32), dense_vectors(client, TEXTS)
    )
    assert answer.json()["texts"] == TEXTS


def test_cohere_lengths(tmp_path: Path) -> None:
    with serving(tmp_path, query_max_length=4, passage_max_length=6) as client:

        def read(**fields: Any) -> int:
            answer = client.post("/v2/embed", json={"texts": ["a b c d e f g"], **fields})
            assert answer.headers["X-Truncated-Texts"] == "1"
            return int(answer.json()["meta"]["billed_units"]["input_tokens"])

        assert (read(), read(input_type="search_query"), read(input_type="search_document")) == (6, 4, 6)
        assert (read(max_tokens=5), read(truncate="END")) == (5, 6)
        for word, code in (("NONE", "text_too_long"), ("START", "invalid_request")):
            answer = client.post("/v2/embed", json={"texts": ["a", "a b c d e"], "truncate": word})
            v2_problem(answer, 400, code, "texts.1")


BAD_EMBEDS: list[tuple[Any, str | None]] = [
    ({}, "texts"),
    ({"texts": []}, "texts"),
    ({"texts": "a"}, "texts"),
    ({"texts": ["a", ""]}, "texts.1"),
    ({"images": ["data:"]}, "images"),
    ({"texts": ["a"], "inputs": [{"content": [{"type": "text", "text": "a"}]}]}, "inputs"),
    ({"inputs": [{"content": [{"type": "image_url", "image_url": {}}]}]}, "inputs.0.content.0.type"),
    ({"texts": ["a"], "embedding_types": ["hex"]}, "embedding_types.0"),
    ({"texts": ["a"], "truncate": "MIDDLE"}, "truncate"),
    ({"texts": ["a"], "max_tokens": 1}, "max_tokens"),
    ({"texts": ["a"], "output_dimension": HIDDEN // 2}, "output_dimension"),
]


@pytest.mark.parametrize(("body", "param"), BAD_EMBEDS)
def test_what_cannot_be_embedded_is_named(client: TestClient, body: Any, param: str | None) -> None:
    v1_problem(client.post("/v1/embed", json=body), 400, "invalid_request", param)
    v2_problem(client.post("/v2/embed", json=body), 400, "invalid_request", param)


def test_cohere_limits(tmp_path: Path) -> None:
    with serving(tmp_path, max_texts=2, max_json_numbers=2 * HIDDEN) as client:
        many = client.post("/v2/embed", json={"texts": ["a"] * 3})
        v2_problem(many, 400, "limit_exceeded", "texts")
        assert client.post("/v2/embed", json={"texts": ["a"] * 2}).status_code == 200
        large = client.post("/v2/embed", json={"texts": ["a"] * 2, "embedding_types": ["float", "int8"]})
        v2_problem(large, 400, "limit_exceeded", "embedding_types")
        twice = client.post("/v2/embed", json={"texts": ["a"] * 2, "embedding_types": ["float", "float"]})
        assert twice.status_code == 200
