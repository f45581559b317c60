"""BM25 over HTTP: collections that have it, searches by it alone and with the others, and who is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.schemas.documents import CollectionDescription
from app.schemas.search import ManySearchResponse, SearchResponse
from tests.fakes import HIDDEN, FakeModel, counted, token_id
from tests.http_helpers import problem, serving
from tests.index_helpers import bm25, most_bm25

TEXTS = {
    "cat": "The cat sat on the mat.",
    "dog": "A dog barked at the cat, and the dog ran.",
    "long": " ".join(["filler"] * 60) + " needle",
    "blank": " ",
}
NEEDLES = ["needle", "dog cat cat", "the mat, the dog?", "zebra", " "]


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def client(tmp_path: Path, model: FakeModel) -> Iterator[TestClient]:
    with serving(tmp_path, model, passage_max_length=20, query_max_length=8) as client:
        assert client.put("/collections/words", json={"bm25": True}).status_code == 201
        put(
            client, [{"id": name, "text": text, "metadata": {"n": len(name)}} for name, text in TEXTS.items()]
        )
        yield client


def put(client: TestClient, documents: list[dict[str, Any]], name: str = "words") -> None:
    answer = client.post(f"/collections/{name}/documents", json=documents)
    assert answer.status_code == 200 and not answer.json()["failed"], answer.text


def search(client: TestClient, name: str = "words", **body: Any) -> Any:
    answer = client.post(f"/collections/{name}/search", json=body)
    assert answer.status_code == 200, answer.text
    kind = ManySearchResponse if isinstance(body["query"], list) else SearchResponse
    kind.model_validate_json(answer.content)
    return answer.json()


def true(query: str, texts: dict[str, str] | None = None) -> dict[str, float]:
    return bm25(counted(query), {name: counted(text) for name, text in (texts or TEXTS).items()})


@pytest.mark.parametrize("query", NEEDLES)
def test_words_of_the_whole_text_are_found_without_a_forward_pass(
    client: TestClient, model: FakeModel, query: str
) -> None:
    before = len(model.batches)
    answer = search(client, query=query, mode="bm25")
    expected = {name: score for name, score in true(query).items() if score > 0}
    assert {hit["id"]: hit["score"] for hit in answer["hits"]} == pytest.approx(expected, rel=1e-5)
    for place, hit in enumerate(answer["hits"], 1):
        assert hit["scores"] == {"dense": None, "sparse": None, "colbert": None, "bm25": hit["score"]}
        assert hit["ranks"] == {"dense": None, "sparse": None, "colbert": None, "bm25": place}
    assert len(model.batches) == before
    assert answer["usage"] == {"tokens": 0, "texts": 0} and answer["mode"] == "bm25"


def test_a_query_is_cut_for_it_as_for_the_model(client: TestClient) -> None:
    for place, found in ((4, ["long"]), (5, ["long"]), (6, [])):
        query = "zebra " * place + "needle"  # of 8 tokens `<s>` and `</s>` are two
        assert [hit["id"] for hit in search(client, query=query, mode="bm25")["hits"]] == found


def test_it_answers_while_the_model_fails(client: TestClient, model: FakeModel) -> None:
    model.broken = True
    answer = search(client, query=["dog", "needle"], mode="bm25", explain=True, top_k=1)
    assert [one["hits"][0]["id"] for one in answer["results"]] == ["dog", "long"]
    problem(client.post("/collections/words/search", json={"query": "dog"}), 500, "inference_failed")


def test_a_hybrid_with_it(client: TestClient) -> None:
    query = "the dog, the cat"
    weights = {"dense": 0.3, "sparse": 0.1, "colbert": 0.2, "bm25": 0.4}
    most = most_bm25(counted(query), {name: counted(text) for name, text in TEXTS.items()})
    for hit in search(client, query=query, weights=weights)["hits"]:
        scores = hit["scores"]
        assert scores["bm25"] == pytest.approx(true(query)[hit["id"]], rel=1e-5)
        parts = {**scores, "bm25": scores["bm25"] / most}
        assert hit["score"] == pytest.approx(sum(weights[leg] * parts[leg] for leg in weights), rel=1e-5)
    only = search(client, query=query, weights={"bm25": 2}, fusion="rrf")["hits"]
    assert only[0]["score"] == pytest.approx(2 / 61) and only[0]["ranks"]["bm25"] == 1
    # Shown in any search of a text, whatever orders the hits.
    (hit,) = search(client, query="needle", mode="dense", filter={"n": 4}, top_k=1)["hits"]
    assert hit["scores"]["bm25"] > 0


def test_a_collections_own_weights(client: TestClient) -> None:
    body = {"bm25": True, "fusion": {"bm25": 1}}
    made = client.put("/collections/own", json=body)
    CollectionDescription.model_validate_json(made.content)
    assert made.json()["settings"]["fusion"] == {"dense": 0, "sparse": 0, "colbert": 0, "bm25": 1}
    assert client.put("/collections/own", json=body).status_code == 200
    problem(client.put("/collections/own", json={}), 409, "collection_exists")
    put(client, [{"id": "cat", "text": TEXTS["cat"]}, {"id": "dog", "text": TEXTS["dog"]}], "own")
    hits = search(client, "own", query="barked")["hits"]
    assert hits[0]["id"] == "dog" and 0 < hits[0]["score"] < 1 and hits[1]["score"] == 0
    for wrong in ({"fusion": {"bm25": 1}}, {"fusion": {"dense": 1, "bm25": 0.1}, "bm25": False}):
        problem(client.put("/collections/other", json=wrong), 422, "invalid_request", "fusion.bm25")
    problem(client.put("/collections/other", json={"bm25": 1}), 422, "invalid_request", "bm25")


def test_an_explanation_adds_up_to_the_score(client: TestClient) -> None:
    for hit in search(client, query="the dog, the dog", explain=True)["hits"]:
        rows = hit["explanation"]["bm25"]
        assert sum(row["product"] for row in rows) == pytest.approx(hit["scores"]["bm25"], rel=1e-5)
        assert [row["product"] for row in rows] == sorted((row["product"] for row in rows), reverse=True)
        of = counted(TEXTS[hit["id"]])
        for row in rows:
            assert row["id"] == token_id(row["token"])
            assert row["tf"] == of.values[of.indices == row["id"]]
            assert row["query_tf"] == {"the": 2, "dog": 2, ",": 1}[row["token"]]
    (hit,) = search(client, query="needle", explain=True, mode="bm25")["hits"]
    assert [row["token"] for row in hit["explanation"]["bm25"]] == ["needle"]
    assert hit["explanation"]["matched_tokens"] == [] == hit["explanation"]["alignment"]


def test_vectors_without_a_text_have_no_words(client: TestClient) -> None:
    vector = {"dense": [0.5] * HIDDEN}
    for weights in (None, {"dense": 1, "bm25": 5}):
        hits = search(client, query=vector, weights=weights, explain=True)["hits"]
        assert len(hits) == len(TEXTS)
        for hit in hits:
            assert hit["scores"]["bm25"] is None and hit["ranks"]["bm25"] is None
            assert hit["score"] == pytest.approx(hit["scores"]["dense"])
            assert hit["explanation"]["bm25"] == []
    body = {"query": vector, "mode": "bm25"}
    problem(client.post("/collections/words/search", json=body), 422, "invalid_query", "query")
    body = {"query": vector, "weights": {"bm25": 1}}
    problem(client.post("/collections/words/search", json=body), 422, "invalid_query", "query")


def test_texts_are_counted_whoever_made_their_vectors(client: TestClient) -> None:
    vectors = {"dense": [0.1] * HIDDEN, "sparse": {"indices": [7], "values": [1]}, "colbert": [[0.5] * 16]}
    lines = [
        {"id": "own", "text": "a quokka", "embedding": vectors},
        {"id": "some", "title": "Quokka", "text": "and more", "embedding": {"dense": [0.1] * HIDDEN}},
    ]
    answer = client.post(
        "/collections/words/documents",
        content="\n".join(map(json.dumps, lines)),
        headers={"Content-Type": "application/x-ndjson"},
    )
    assert answer.json()["upserted"] == 2
    texts = {**TEXTS, "own": "a quokka", "some": "Quokka. and more"}
    hits = search(client, query="quokka", mode="bm25")["hits"]
    expected = {name: score for name, score in true("quokka", texts).items() if score > 0}
    assert {hit["id"]: hit["score"] for hit in hits} == pytest.approx(expected, rel=1e-5)
    described = client.get("/collections/words").json()
    assert described["settings"]["bm25"] is True
    assert described["bytes"]["bm25"] == 6 * sum(len(counted(text)) for text in texts.values())


def test_collections_without_it_answer_as_ever(client: TestClient, model: FakeModel) -> None:
    made = client.put("/collections/plain").json()
    assert made["settings"]["bm25"] is False and made["bytes"]["bm25"] == 0
    put(client, [{"id": "cat", "text": TEXTS["cat"]}], "plain")
    (hit,) = search(client, "plain", query="cat", explain=True, weights={"dense": 1, "bm25": 0})["hits"]
    assert set(hit["scores"]) == set(hit["ranks"]) == {"dense", "sparse", "colbert"}
    assert set(hit["explanation"]) == {"matched_tokens", "alignment"}
    before = len(model.batches)
    for body, param in (
        ({"query": "cat", "mode": "bm25"}, "mode"),
        ({"query": "cat", "weights": {"dense": 1, "bm25": 0.1}}, "weights"),
        ({"query": {"dense": [0.5] * HIDDEN}, "weights": {"bm25": 1}}, "weights"),
    ):
        said = problem(client.post("/collections/plain/search", json=body), 422, "invalid_query", param)
        assert "made without bm25" in said
    assert len(model.batches) == before  # the model does not work for what cannot be answered


@pytest.mark.parametrize(
    ("body", "param"),
    [({"mode": "bm25"}, "mode"), ({"weights": {"dense": 1, "bm25": 1}}, "weights.bm25")],
)
def test_reranking_has_no_collection_and_so_no_bm25(
    client: TestClient, body: dict[str, Any], param: str
) -> None:
    asked = {"query": "a", "documents": ["b"], **body}
    problem(client.post("/rerank", json=asked), 422, "invalid_request", param)
