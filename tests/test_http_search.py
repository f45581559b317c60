"""Searching over HTTP: hits, filters, several queries, embeddings as queries, explanations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.schemas.search import ManySearchResponse, SearchResponse
from tests.fakes import COLBERT, HIDDEN
from tests.http_helpers import problem, serving

TEXTS = {
    "cat": "The cat sat on the mat.",
    "dog": "A dog barked.",
    "pets": "Cats, a cat and a dog!",
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("data")) as client:
        client.post(
            "/collections/default/documents",
            json=[
                {"id": name, "text": text, "metadata": {"size": len(name)}} for name, text in TEXTS.items()
            ],
        )
        yield client


def search(client: TestClient, **body: Any) -> Any:
    answer = client.post("/search", json=body)
    assert answer.status_code == 200, answer.text
    (ManySearchResponse if isinstance(body["query"], list) else SearchResponse).model_validate_json(
        answer.content
    )
    return answer.json()


@pytest.mark.parametrize("mode", ["hybrid", "dense", "sparse", "colbert"])
@pytest.mark.parametrize("name", TEXTS)
def test_a_text_finds_itself(client: TestClient, mode: str, name: str) -> None:
    hits = search(client, query=TEXTS[name], mode=mode)["hits"]
    assert hits[0]["id"] == name
    assert hits[0]["text"] == TEXTS[name] and hits[0]["metadata"] == {"size": len(name)}
    if mode != "hybrid":
        assert hits[0]["score"] == hits[0]["scores"][mode]
    assert [one["score"] for one in hits] == sorted((one["score"] for one in hits), reverse=True)


def test_options_reach_the_index(client: TestClient) -> None:
    assert len(search(client, query="cat", top_k=1)["hits"]) == 1
    filtered = search(client, query="cat", filter={"size": {"$gt": 3}}, exact=True)["hits"]
    assert [one["id"] for one in filtered] == ["pets"]
    weights = {"dense": 0, "sparse": 1, "colbert": 0}
    hit = search(client, query="cat", weights=weights)["hits"][0]
    assert hit["score"] == pytest.approx(hit["scores"]["sparse"])
    assert search(client, query="cat", fusion="rrf")["hits"][0]["score"] <= 3 / 61
    assert set(search(client, query="cat", include=[])["hits"][0]) == {"id", "score", "scores", "ranks"}


def test_several_queries_get_a_list_each(client: TestClient) -> None:
    many = search(client, query=["cat mat", "dog barked"], top_k=2)
    assert [one["hits"][0]["id"] for one in many["results"]] == ["cat", "dog"]
    for text, found in zip(["cat mat", "dog barked"], many["results"], strict=True):
        alone = search(client, query=text, top_k=2)["hits"]
        assert [one["id"] for one in alone] == [one["id"] for one in found["hits"]]


@pytest.mark.parametrize("wrapped", [True, False])
def test_an_embedding_is_a_query(client: TestClient, wrapped: bool) -> None:
    (one,) = client.post("/embed", json={"texts": "the dog"}).json()["results"]
    embedding = {name: one[name] for name in ("dense", "sparse", "colbert")}
    answer = search(client, query={"embedding": embedding} if wrapped else embedding)
    by_text = search(client, query="the dog")
    assert [hit["score"] for hit in answer["hits"]] == pytest.approx(
        [hit["score"] for hit in by_text["hits"]]
    )
    assert answer["usage"] == {"tokens": 0, "texts": 0}


def test_an_explanation_adds_up_to_the_scores(client: TestClient) -> None:
    query = "The  dog, a CAT"
    hits = search(client, query=query, explain=True)["hits"]
    assert len(hits) == 3
    for hit in hits:
        matched, alignment = hit["explanation"]["matched_tokens"], hit["explanation"]["alignment"]
        assert sum(one["product"] for one in matched) == pytest.approx(hit["scores"]["sparse"])
        assert [one["product"] for one in matched] == sorted(
            (one["product"] for one in matched), reverse=True
        )
        assert all(
            one["product"] == pytest.approx(one["query_weight"] * one["document_weight"]) for one in matched
        )
        assert sum(one["similarity"] for one in alignment) / len(alignment) == pytest.approx(
            hit["scores"]["colbert"]
        )
        assert [one["query_token"] for one in alignment] == ["the", "dog", ",", "a", "cat", "</s>"]
        for one in alignment[:-1]:
            start, end = one["query_offset"]
            assert query[start:end].lower() == one["query_token"]
            start, end = one["document_offset"]
            assert hit["text"][start:end].lower() in (one["document_token"], "")
    cat = next(one for one in hits if one["id"] == "cat")
    assert cat["explanation"]["alignment"][4]["document_offset"] == [4, 7]
    assert {one["token"] for one in cat["explanation"]["matched_tokens"]} == {"the", "cat"}


def test_rows_that_do_not_fit_the_text_have_no_tokens(client: TestClient) -> None:
    row = [1.0] + [0.0] * (COLBERT - 1)
    client.put("/collections/own")
    document = {"id": "1", "text": "the cat", "embedding": {"colbert": [row, row, row, row, row]}}
    client.post("/collections/own/documents", json=[document])
    answer = client.post(
        "/collections/own/search", json={"query": {"colbert": [row]}, "explain": True, "mode": "colbert"}
    )
    assert answer.json()["hits"][0]["explanation"] == {
        "matched_tokens": [],
        "alignment": [
            {
                "query_token": None,
                "query_offset": None,
                "document_token": None,
                "document_offset": None,
                "similarity": pytest.approx(1),
            }
        ],
    }


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"query": ""}, "invalid_request", "query"),
        ({"query": []}, "invalid_request", "query"),
        ({"query": ["a", ""]}, "invalid_request", "query.1"),
        ({"query": 5}, "invalid_request", "query"),
        ({}, "invalid_request", "query"),
        ({"query": {"dense": [1.0]}}, "invalid_request", "query.dense"),
        ({"query": {"embedding": {"dense": [1.0]}}}, "invalid_request", "query.embedding.dense"),
        ({"query": {"embedding": {}}, "mode": "dense"}, "invalid_query", "query"),
        ({"query": {"dense": [0.5] * HIDDEN}, "mode": "sparse"}, "invalid_query", "query"),
        ({"query": {"text": "a"}}, "invalid_request", "query.text"),
        ({"query": "a", "mode": "best"}, "invalid_request", "mode"),
        ({"query": "a", "top_k": 0}, "invalid_request", "top_k"),
        ({"query": "a", "top_k": True}, "invalid_request", "top_k"),
        ({"query": "a", "top_k": "5"}, "invalid_request", "top_k"),
        ({"query": "a", "top_k": 1001}, "limit_exceeded", "top_k"),
        ({"query": "a", "top_k": 10**300}, "limit_exceeded", "top_k"),
        ({"query": "a", "candidates": 10001}, "limit_exceeded", "candidates"),
        ({"query": "a", "top_k": 10, "candidates": 9}, "invalid_request", "candidates"),
        ({"query": "a", "weights": {"dense": -1}}, "invalid_request", "weights.dense"),
        ({"query": "a", "weights": {"dense": 0, "sparse": 0, "colbert": 0}}, "invalid_request", "weights"),
        ({"query": "a", "filter": {"n": {"$near": 1}}}, "invalid_filter", "filter.n"),
        ({"query": "a", "include": ["vectors"]}, "invalid_request", "include.0"),
        ({"query": "a", "explain": 1}, "invalid_request", "explain"),
        ({"query": "a", "nonsense": 1}, "invalid_request", "nonsense"),
    ],
)
def test_a_wrong_search_names_its_field(
    client: TestClient, body: dict[str, Any], code: str, param: str
) -> None:
    problem(client.post("/search", json=body), 422, code, param)


def test_an_empty_service_has_no_hits(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("empty")) as client:
        assert search(client, query="cat")["hits"] == []
        assert search(client, query=["cat", "dog"])["results"] == [{"hits": []}, {"hits": []}]
        problem(client.post("/search", json={"query": "a", "collection": "x"}), 404, "collection_not_found")
        problem(client.post("/collections/x/search", json={"query": "a"}), 404, "collection_not_found")
