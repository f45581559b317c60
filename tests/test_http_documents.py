"""Collections and documents over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from app.index.collection import Collection, Database
from app.main import create_app
from app.schemas.documents import CollectionDescription, UpsertResponse
from app.settings import Settings
from tests.fakes import COLBERT, HIDDEN, FakeModel, token_id
from tests.http_helpers import JSON, problem, serving

NDJSON = {"Content-Type": "application/x-ndjson"}
DOCUMENTS = "/collections/default/documents"


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with serving(tmp_path) as client:
        yield client


def test_a_collection_is_made_described_listed_and_dropped(client: TestClient) -> None:
    settings = {"colbert": "float32", "fusion": {"dense": 1, "sparse": 0.3, "colbert": 0}}
    made = client.put("/collections/notes", json=settings)
    assert made.status_code == 201
    CollectionDescription.model_validate_json(made.content)
    assert made.json()["settings"] == {
        "dense_index": "auto",
        "colbert_pooling": 1,
        "colbert_candidates": False,
        "bm25": False,
        **settings,
    }
    assert client.put("/collections/notes", json=settings).status_code == 200
    client.post("/collections/notes/documents", json=[{"id": "1", "text": "cat"}])
    described = client.get("/collections/notes").json()
    assert described["count"] == 1 and described["bytes"]["dense"] == 4 * HIDDEN
    assert [one["name"] for one in client.get("/collections").json()["collections"]] == ["notes"]
    assert client.delete("/collections/notes").json() == {"deleted": 1}
    problem(client.get("/collections/notes"), 404, "collection_not_found")


def test_a_collection_without_a_body_takes_the_defaults(client: TestClient) -> None:
    assert client.put("/collections/plain").json()["settings"]["colbert"] == "float16"


def test_a_document_is_there_when_the_answer_comes(client: TestClient) -> None:
    answer = client.post(
        DOCUMENTS, json={"documents": [{"id": "1", "text": "the cat", "metadata": {"n": [1, {"a": None}]}}]}
    )
    UpsertResponse.model_validate_json(answer.content)
    assert answer.json()["results"] == [
        {"index": 0, "id": "1", "status": "upserted", "tokens": 4, "truncated": False}
    ]
    assert client.get(f"{DOCUMENTS}/1").json() == {
        "id": "1",
        "text": "the cat",
        "metadata": {"n": [1, {"a": None}]},
        "tokens": 4,
        "truncated": False,
        "outputs": ["colbert", "dense", "sparse"],
    }


def test_a_title_goes_before_the_text(client: TestClient) -> None:
    client.post(
        DOCUMENTS, json=[{"id": "1", "title": "Pets", "text": "cat"}, {"id": "2", "title": "", "text": "cat"}]
    )
    assert client.get(f"{DOCUMENTS}/1").json()["text"] == "Pets. cat"
    assert client.get(f"{DOCUMENTS}/2").json()["text"] == "cat"


@pytest.mark.parametrize("doc_id", ["a/b", "a b", "ü/漢字/🙂", "delete", "?x=1#y", "100%", "..", "a//b"])
def test_an_id_may_be_any_text(client: TestClient, doc_id: str) -> None:
    client.post(DOCUMENTS, json=[{"id": doc_id, "text": "cat"}])
    # Clients and proxies fold `..` in a path away, so it is asked for with its dots escaped.
    path = f"{DOCUMENTS}/{quote(doc_id, safe='').replace('..', '%2E%2E')}"
    if doc_id != "..":
        assert client.get(path).json()["id"] == doc_id
    answer = client.post(f"{DOCUMENTS}/delete", json={"ids": [doc_id]})
    assert answer.json() == {"deleted": 1}


def test_ids_are_made_where_there_are_none(client: TestClient) -> None:
    results = client.post(DOCUMENTS, json=[{"text": "cat"}, {"text": "cat"}]).json()["results"]
    assert len({one["id"] for one in results}) == 2
    assert client.get(f"{DOCUMENTS}/{results[0]['id']}").status_code == 200


BAD: list[tuple[Any, str, str]] = [
    ({"id": "x", "text": ""}, "invalid_request", "text"),
    ({"id": "x"}, "invalid_request", "text"),
    ({"id": "x", "text": 5}, "invalid_request", "text"),
    ({"id": "", "text": "a"}, "invalid_request", "id"),
    ({"id": "é" * 300, "text": "a"}, "invalid_document", "id"),
    ({"id": "x", "text": "a", "colour": 1}, "invalid_request", "colour"),
    ({"id": "x", "text": "a", "metadata": []}, "invalid_request", "metadata"),
    ({"id": "x", "text": "a", "metadata": {"n": 10**40}}, "invalid_document", "metadata"),
    ({"id": "x", "text": "a", "embedding": {"dense": [1.0]}}, "invalid_request", "embedding.dense"),
    (
        {"id": "x", "text": "a", "embedding": {"dense": [1e300] * HIDDEN}},
        "invalid_request",
        "embedding.dense",
    ),
    (
        {"id": "x", "text": "a", "embedding": {"colbert": [[1e30] * COLBERT]}},
        "invalid_document",
        "embedding.colbert",
    ),
    (
        {"id": "x", "text": "a", "embedding": {"sparse": {"indices": [5, 5], "values": [1, 1]}}},
        "invalid_request",
        "embedding.sparse",
    ),
    (
        {"id": "x", "text": "a", "embedding": {"sparse": {"indices": [10**9], "values": [1]}}},
        "invalid_request",
        "embedding.sparse.indices",
    ),
    ("text", "invalid_request", ""),
]


@pytest.mark.parametrize(("document", "code", "param"), BAD)
def test_a_bad_document_has_its_own_error_and_the_others_are_stored(
    client: TestClient, document: Any, code: str, param: str
) -> None:
    good = {"id": "good", "text": "cat"}
    answer = client.post(DOCUMENTS, json=[document, good])
    assert answer.status_code == 200, answer.text
    UpsertResponse.model_validate_json(answer.content)
    body = answer.json()
    assert (body["upserted"], body["failed"]) == (1, 1)
    error = body["results"][0]["error"]
    assert (error["code"], error["param"] or "") == (code, param)
    assert body["results"][1]["id"] == "good"
    alone = client.post(DOCUMENTS, json=[document])
    assert alone.status_code == 422 and alone.json()["error"]["code"] == code
    assert alone.json()["results"][0]["error"] == error


@pytest.mark.parametrize("padding", [0, 300_000], ids=["small", "parsed in a worker thread"])
def test_half_a_surrogate_pair_is_one_documents_fault(client: TestClient, padding: int) -> None:
    """Scraped texts hold such halves, and Python's JSON writes them as escapes without a word."""
    documents = [
        {"id": "0", "text": "a cat" + " " * padding},
        {"id": "1", "text": "half \ud83d"},
        {"id": "\udc00", "text": "b"},
        {"id": "3", "text": "c", "metadata": {"k": ["\ud800"]}},
        {"id": "4", "text": "whole \U0001f600"},
    ]
    for body in (documents, {"documents": documents}):
        answer = client.post(DOCUMENTS, content=json.dumps(body), headers=JSON)
        assert answer.status_code == 200
        stored = UpsertResponse.model_validate_json(answer.content)
        assert (stored.upserted, stored.failed) == (2, 3)
        params = [one.error.param if one.error else None for one in stored.results]
        assert params == [None, "text", "id", "metadata.k.0", None]
    assert client.get(f"{DOCUMENTS}/4").json()["text"] == "whole \U0001f600"


def test_bad_metadata_costs_no_forward_pass(tmp_path: Path) -> None:
    model = FakeModel()
    with serving(tmp_path, model) as client:
        before = len(model.batches)
        client.post(DOCUMENTS, json=[{"text": "a", "metadata": {"n": 10**40}}])
        assert len(model.batches) == before


def test_a_text_that_breaks_the_model_fails_alone(tmp_path: Path) -> None:
    with serving(tmp_path, FakeModel(poison={token_id("arsenic")})) as client:
        body = client.post(
            DOCUMENTS, json=[{"text": "cat"}, {"id": "p", "text": "arsenic"}, {"text": "dog"}]
        ).json()
        assert body["upserted"] == 2
        assert body["results"][1]["error"]["code"] == "inference_failed"
        alone = client.post(DOCUMENTS, json=[{"text": "arsenic"}])
        assert alone.status_code == 500 and "SECRET" not in alone.text


def test_vectors_of_the_client_are_kept_and_the_rest_is_computed(tmp_path: Path) -> None:
    model = FakeModel()
    with serving(tmp_path, model) as client:
        dense = [1.0] + [0.0] * (HIDDEN - 1)
        client.post(DOCUMENTS, json=[{"id": "1", "text": "the cat", "embedding": {"dense": dense}}])
        assert model.asked[-1] == {"sparse", "colbert"}
        query = {"embedding": {"dense": dense}}
        (hit,) = client.post("/search", json={"query": query, "mode": "dense"}).json()["hits"]
        assert hit["score"] == pytest.approx(1)
        (hit,) = client.post("/search", json={"query": "the cat"}).json()["hits"]
        assert hit["scores"]["colbert"] == pytest.approx(1, abs=2e-3)


def test_long_documents_are_cut_and_say_so(tmp_path: Path) -> None:
    with serving(tmp_path, passage_max_length=8) as client:
        (result,) = client.post(DOCUMENTS, json=[{"text": "word " * 50}]).json()["results"]
        assert (result["tokens"], result["truncated"]) == (8, True)


def test_ndjson_is_stored_line_by_line(tmp_path: Path) -> None:
    with serving(tmp_path, max_body_bytes=1024, max_batch_tokens=64, max_texts=10) as client:
        lines = [json.dumps({"id": str(n), "text": f"word{n} cat"}).encode() for n in range(600)]
        lines[3] = b"{broken"
        lines[4] = b'{"text": "' + b"x" * 2000 + b'"}'
        lines[5] = rb'{"text": "\ud800"}'
        body = b"\n".join(lines[:300]) + b"\n\r\n\n" + b"\n".join(lines[300:])
        assert len(body) > 1024
        chunks = [body[place : place + 777] for place in range(0, len(body), 777)]
        answer = client.post(DOCUMENTS, content=iter(chunks), headers=NDJSON)
        assert answer.status_code == 200
        report = answer.json()
        assert (report["upserted"], report["failed"]) == (597, 3)
        assert [one["index"] for one in report["results"]] == list(range(600))
        assert [report["results"][n]["error"]["code"] for n in (3, 4, 5)] == [
            "malformed_json",
            "malformed_json",
            "invalid_request",
        ]
        assert client.get("/collections/default").json()["count"] == 597
        assert client.get(f"{DOCUMENTS}/599").json()["text"] == "word599 cat"


def test_documents_are_deleted_by_id_and_by_filter(client: TestClient) -> None:
    client.post(DOCUMENTS, json=[{"id": str(n), "text": "cat", "metadata": {"n": n}} for n in range(5)])
    assert client.delete(f"{DOCUMENTS}/0").json() == {"deleted": 1}
    problem(client.delete(f"{DOCUMENTS}/0"), 404, "document_not_found", "id")
    assert client.post(f"{DOCUMENTS}/delete", json={"ids": ["0", "1"]}).json() == {"deleted": 1}
    assert client.post(f"{DOCUMENTS}/delete", json={"filter": {"n": {"$gte": 3}}}).json() == {"deleted": 2}
    assert client.get("/collections/default").json()["count"] == 1
    for body in ({}, {"ids": ["1"], "filter": {"n": 1}}):
        problem(client.post(f"{DOCUMENTS}/delete", json=body), 422, "invalid_request", "ids")
    problem(client.post(f"{DOCUMENTS}/delete", json={"filter": {}}), 422, "invalid_request", "filter")


@pytest.mark.parametrize("body", [[], {}, {"documents": []}, {"documents": {}}, 5, "x"])
def test_an_upsert_needs_documents(client: TestClient, body: Any) -> None:
    problem(client.post(DOCUMENTS, json=body), 422, "invalid_request", "documents")


def test_one_document_by_itself_is_told_that_a_list_is_expected(client: TestClient) -> None:
    answer = client.post(DOCUMENTS, json={"id": "1", "text": "a"})
    assert "a list" in problem(answer, 422, "invalid_request", "documents")
    answer = client.post(DOCUMENTS, json={"documents": [{"text": "a"}], "refresh": True})
    problem(answer, 422, "invalid_request", "refresh")


def test_what_is_no_document_is_told_in_json_s_terms(client: TestClient) -> None:
    answer = client.post(DOCUMENTS, json=["a text", {"text": "a", "metadata": ["lang"]}])
    said = [one["error"] for one in answer.json()["results"]]
    assert [one["message"] for one in said] == ["an object is expected"] * 2
    assert [one["param"] for one in said] == [None, "metadata"]


def test_a_collection_that_is_dropped_while_all_are_listed(tmp_path: Path) -> None:
    class Dropping(Database):
        def list(self) -> list[Collection]:
            found = super().list()
            if any(one.name == "b" for one in found):
                self.drop("b")
            return found

    settings = Settings(data_dir=tmp_path)
    app = create_app(settings, model=FakeModel(), database=Dropping(tmp_path))
    with TestClient(app, raise_server_exceptions=False) as client:
        client.put("/collections/a")
        client.put("/collections/c")
        assert client.put("/collections/b").status_code == 201
        listed = client.get("/collections")
        assert listed.status_code == 200
        assert [one["name"] for one in listed.json()["collections"]] == ["a", "c"]


def test_only_the_default_collection_is_made_on_demand(client: TestClient) -> None:
    answer = client.post("/collections/other/documents", json=[{"text": "a"}])
    problem(answer, 404, "collection_not_found")


EVIL_IDS = [
    "victim\n", "\nvictim", "vic\ntim", "victim\r\n", "victim\n\n", "victim\u2028", "victim/",
    "/victim", "victim//", "victim%", "victim?", "victim#x", "victim/..", "victim/.", " victim",
    "VICTIM", "victim\x00",
    "victim/../victim", "é" * 256, "victim;x", "victim\t",
]  # fmt: skip


@pytest.mark.parametrize("doc_id", EVIL_IDS, ids=ascii)
def test_an_id_addresses_that_document_and_no_other(client: TestClient, doc_id: str) -> None:
    client.post(DOCUMENTS, json=[{"id": "victim", "text": "cat"}])
    path = f"{DOCUMENTS}/{quote(doc_id, safe='').replace('.', '%2E')}"
    problem(client.delete(path), 404, "document_not_found", "id")
    problem(client.get(path), 404, "document_not_found", "id")
    client.post(DOCUMENTS, json=[{"id": doc_id, "text": "dog"}])
    assert client.get(path).json()["id"] == doc_id
    assert client.delete(path).json() == {"deleted": 1}
    assert client.get(f"{DOCUMENTS}/victim").json()["text"] == "cat"


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n", " "])
def test_a_name_with_an_ending_is_no_other_collection(client: TestClient, ending: str) -> None:
    client.post(DOCUMENTS, json=[{"id": "1", "text": "cat"}])
    name = quote(f"default{ending}", safe="")
    for method, path in (("GET", name), ("DELETE", name), ("PUT", name), ("GET", f"{name}/documents/1")):
        answer = client.request(method, f"/collections/{path}")
        assert answer.status_code in (404, 405, 422), (method, path, answer.text)
    assert client.post(f"/collections/{name}/search", json={"query": "cat"}).status_code in (404, 422)
    assert client.get("/collections/default").json()["count"] == 1


def test_a_title_may_stand_alone(client: TestClient) -> None:
    documents = [{"id": "1", "title": "Pets", "text": ""}, {"id": "2", "title": "Pets", "text": " \n"}]
    assert client.post(DOCUMENTS, json=documents).json()["upserted"] == 2
    for place in (1, 2):
        assert client.get(f"{DOCUMENTS}/{place}").json()["text"] == "Pets"
    for empty in ({"title": "", "text": ""}, {"title": None, "text": ""}, {"title": " ", "text": ""}):
        answer = client.post(DOCUMENTS, json=[empty])
        problem_of = answer.json()["results"][0]["error"]
        assert (answer.status_code, problem_of["param"]) == (422, "text")


@pytest.mark.parametrize("kind", ["application/x-ndjson", "application/jsonl", "application/ndjson"])
def test_a_byte_order_mark_is_no_part_of_the_first_line(client: TestClient, kind: str) -> None:
    body = b"\xef\xbb\xbf" + b'{"id": "1", "text": "cat"}\n{"id": "2", "text": "\xef\xbb\xbfdog"}'
    for chunks in ([body], [body[:1], body[1:2], body[2:]], [body[:30]]):
        answer = client.post(DOCUMENTS, content=iter(chunks), headers={"Content-Type": kind})
        assert answer.status_code == 200 and answer.json()["failed"] == 0, answer.text
    assert client.get(f"{DOCUMENTS}/2").json()["text"] == "\ufeffdog"
    lone = client.post(DOCUMENTS, content=b"\xef\xbb\xbf" * 2 + b'{"text": "a"}', headers=NDJSON)
    assert lone.json()["error"]["code"] == "malformed_json"


def test_weights_left_out_are_0(client: TestClient) -> None:
    made = client.put("/collections/one", json={"fusion": {"dense": 1}})
    assert made.json()["settings"]["fusion"] == {"dense": 1, "sparse": 0, "colbert": 0}
    plain = client.put("/collections/two", json={"fusion": None}).json()["settings"]["fusion"]
    assert plain == {"dense": 0.4, "sparse": 0.2, "colbert": 0.4}
    problem(client.put("/collections/three", json={"fusion": {}}), 422, "invalid_request", "fusion")
    too_much = client.put("/collections/three", json={"fusion": {"dense": 1e300}})
    problem(too_much, 422, "invalid_request", "fusion.dense")
    client.post("/collections/one/documents", json=[{"id": "1", "text": "the cat"}])
    for weights in (None, {"dense": 1_000_000}):
        (hit,) = client.post("/collections/one/search", json={"query": "cat", "weights": weights}).json()[
            "hits"
        ]
        assert hit["score"] == pytest.approx(hit["scores"]["dense"])
    (hit,) = client.post("/collections/one/search", json={"query": "cat", "weights": {"sparse": 2}}).json()[
        "hits"
    ]
    assert hit["score"] == pytest.approx(hit["scores"]["sparse"])
    for weights, param in (({}, "weights"), ({"sparse": 0}, "weights"), ({"sparse": 1e7}, "weights.sparse")):
        for path in ("/search", "/rerank"):
            body = {"query": "a", "weights": weights, **({"documents": ["a"]} if path == "/rerank" else {})}
            problem(client.post(path, json=body), 422, "invalid_request", param)


def test_a_refusal_does_not_repeat_long_names(client: TestClient) -> None:
    long = "n" * 200_000
    filters: list[Any] = [
        {f"${long}": 1}, {long: {}}, {long: {long: 1}}, {long: {"$in": long}}, {long: [[1]]},
        {"$and": {long: 1}}, {"a": {f"${long}": 1}}, {long: 10**30}, {"$and": [{long: {"$not": 1}}]},
    ]  # fmt: skip
    for source in filters:
        answer = client.post("/search", json={"query": "a", "filter": source})
        assert answer.status_code == 422 and len(answer.content) < 1000, (
            len(answer.content),
            answer.text[:99],
        )
    for metadata in ({long: 10**30}, {"a": {long: 10**30}}):
        answer = client.post(DOCUMENTS, json=[{"text": "a", "metadata": metadata}])
        assert answer.status_code == 422 and len(answer.content) < 1000
