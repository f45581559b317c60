"""The OpenAPI document is true: a server answers every operation as it says, whatever is sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.testclient import TestClient

from app.error_formats import FORMATS
from app.schemas.documents import UpsertRefusal
from tests.fakes import token_id
from tests.hostile.openapi import LEAKS, UNSAID, Findings, excuse, explore
from tests.hostile.server import RAISE, Obedient, hostile_server
from tests.http_helpers import serving

SEED = 20_261_123
FEW, MANY = 12, 300
"""Examples of each operation beside schemathesis's own, which are some eighty of each."""
KEY = "writer"


def _sound(found: Findings) -> None:
    assert not found.failures, f"{len(found.failures)} kinds of failures:\n{found.report()}"
    assert found.operations - set(found.served) == set(), "operations that never succeeded"


@pytest.mark.parametrize("key", [None, KEY])
def test_every_operation(tmp_path: Path, key: str | None) -> None:
    environment = {"TRIVEC_API_KEYS": f"{KEY},reader:read"} if key else {}
    with hostile_server(tmp_path, environment=environment) as server:
        found = explore(server, seed=SEED, examples=FEW if key is None else 4, key=key)
        assert "unexpected error" not in server.lines
    _sound(found)
    assert found.requests > 1000


@pytest.mark.slow
@pytest.mark.parametrize("key", [None, KEY])
def test_every_operation_at_length(tmp_path: Path, seed: int, key: str | None) -> None:
    environment = {"TRIVEC_API_KEYS": f"{KEY},reader:read"} if key else {}
    with hostile_server(tmp_path, environment=environment) as server:
        found = explore(server, seed=seed, examples=MANY, key=key, stateful=True)
        assert "unexpected error" not in server.lines
    _sound(found)
    print(found.requests, "requests", dict(found.excused))


def _document(tmp_path: Path, **knobs: Any) -> dict[str, Any]:
    with serving(tmp_path, **knobs) as client:
        return dict(client.get("/openapi.json").json())


def _operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_the_document_is_valid(tmp_path: Path) -> None:
    document = _document(tmp_path)
    assert document["openapi"].startswith("3.1")
    faults = [fault.message for fault in OpenAPIV31SpecValidator(document).iter_errors()]
    assert faults == []
    names = [operation["operationId"] for _, _, operation in _operations(document)]
    assert len(set(names)) == len(names)


def test_a_server_without_keys_asks_for_none(tmp_path: Path) -> None:
    for _, path, operation in _operations(_document(tmp_path / "open")):
        assert "security" not in operation, path
    open_to_all = {"/health/live", "/health/ready", "/tei", "/tei/health"}
    for method, path, operation in _operations(_document(tmp_path / "closed", api_keys=(KEY,))):
        free = path in open_to_all and method == "GET"
        assert operation.get("security") == (None if free else [{"HTTPBearer": []}]), (method, path)


def test_no_form_of_errors_that_is_never_sent(tmp_path: Path) -> None:
    """FastAPI declares 422 in a form of its own for whatever route does not declare it."""
    document = _document(tmp_path)
    assert "HTTPValidationError" not in json.dumps(document)
    for method, path, operation in _operations(document):
        statuses = set(operation["responses"])
        if path.startswith(("/v1/", "/v2/")):
            assert {"400", "401", "413", "415", "429", "500", "503", "504"} <= statuses, (method, path)
            assert "422" not in statuses, (method, path)
        assert not {"4XX", "5XX", "default"} & statuses, (method, path)


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/collections/default", {"GET", "HEAD", "PUT", "DELETE"}),
        ("/collections/default/documents/1", {"GET", "HEAD", "DELETE"}),
        ("/collections/default/documents/delete", {"GET", "HEAD", "POST", "DELETE"}),
        ("/collections/default/documents", {"POST"}),
        ("/collections", {"GET", "HEAD"}),
        ("/embed", {"POST"}),
        ("/tei", {"GET", "HEAD", "POST"}),
        ("/docs", {"GET", "HEAD"}),
        ("/openapi.json", {"GET", "HEAD"}),
    ],
)
def test_a_refused_method_hears_of_all_that_the_path_has(
    tmp_path: Path, path: str, methods: set[str]
) -> None:
    with serving(tmp_path) as client:
        answer = client.patch(path)
        assert answer.status_code == 405
        assert set(answer.headers["Allow"].split(", ")) == methods
        behind_a_proxy = TestClient(client.app, root_path="/trivec")
        assert set(behind_a_proxy.patch(f"/trivec{path}").headers["Allow"].split(", ")) == methods


def test_health_of_the_imitated_api_is_an_empty_answer(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        document = client.get("/openapi.json").json()
        for path in ("/tei", "/tei/health"):
            assert "content" not in document["paths"][path]["get"]["responses"]["200"]
            answer = client.get(path)
            assert (answer.status_code, answer.content) == (200, b"")
            assert "Content-Type" not in answer.headers


def test_the_refusal_of_an_upsert_has_the_results_that_are_documented(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        document = client.get("/openapi.json").json()
        responses = document["paths"]["/collections/{name}/documents"]["post"]["responses"]
        refused = client.post("/collections/default/documents", json=[{"text": ""}])
    assert refused.status_code == 422 and refused.json()["results"][0]["index"] == 0
    UpsertRefusal.model_validate_json(refused.content)
    for status in ("401", "403", "404", "409", "413", "422", "429", "503", "504", "507"):
        schema = responses[status]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/UpsertRefusal"}, status


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/tei/embed", {"inputs": ""}, "inputs"),
        ("/tei/embed", {"inputs": []}, "inputs"),
        ("/tei/embed", {"inputs": [[]]}, "inputs"),
        ("/tei/embed", {"inputs": "a", "prompt_name": "query"}, "prompt_name"),
        ("/tei/rerank", {"query": "a", "texts": []}, "texts"),
        ("/tei/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, "inputs"),
        ("/tei/tokenize", {"inputs": [""]}, "inputs"),
        ("/tei/decode", {"ids": [[]]}, "ids"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": "a", "late_chunking": True}, "late_chunking"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "rank_fields": ["title"]}, "rank_fields"),
        ("/v2/embed", {"texts": ["a"], "images": ["a"]}, "images"),
        ("/collections/default/documents", [], None),
    ],
)
def test_what_a_handler_refuses_is_in_the_document(
    tmp_path: Path, path: str, body: Any, field: str | None
) -> None:
    """Handlers check these, for clients look for their words; the document must say them all the same."""
    with serving(tmp_path) as client:
        document = client.get("/openapi.json").json()
        assert 400 <= client.post(path, json=body).status_code < 500
    place = path if path in document["paths"] else "/collections/{name}/documents"
    schema = document["paths"][place]["post"]["requestBody"]["content"]["application/json"]["schema"]
    validator = Draft202012Validator({**schema, "components": document["components"]})
    faults = list(validator.iter_errors(body))
    assert faults
    if field is not None:
        assert {fault.absolute_path[0] for fault in faults if fault.absolute_path} == {field}


@pytest.mark.parametrize(
    ("path", "field"),
    [("/tei/embed", "inputs"), ("/v1/embeddings", "input"), ("/tei/v1/embeddings", "input")],
)
def test_a_fraction_among_token_ids_is_named(tmp_path: Path, path: str, field: str) -> None:
    """Also the first of them: it decides what the list is taken for."""
    with serving(tmp_path) as client:
        for ids, place in (([7.5, 8], 0), ([7, 8.5], 1), ([7.0, 8.5], 1)):
            said = json.dumps(client.post(path, json={field: ids}).json())
            assert f"{field}.{place}: Input should be a valid integer" in said


def test_the_model_of_these_tests_fails_on_its_own_words_only(tmp_path: Path) -> None:
    """Ids are hashes of words, so among many thousand words some have the id of one that it obeys."""
    model, chance = Obedient(tmp_path), "w72813"
    assert token_id(chance) == RAISE
    (tokens,) = model.tokenize([chance], None)
    assert len(model.forward([tokens.ids], ["dense"])) == 1
    (tokens,) = model.tokenize(["zzraise"], None)
    with pytest.raises(RuntimeError):
        model.forward([tokens.ids], ["dense"])


def test_excuses_are_told_from_faults() -> None:
    """An excuse that fits everything would hide what schemathesis finds."""
    label = "POST /search"
    for said in (
        "invalid_request: there is no such field",
        "invalid_request: Input should be a valid string",
        "limit_exceeded: ",
        "internal_error: something went wrong inside the service; its log names this request id",
        "invalid_request: Field required",
    ):
        code, message = said.split(": ", 1)
        body = json.dumps({"error": {"code": code, "message": message}}).encode()
        assert excuse("positive_data_acceptance", label, body) is None, said
    allowed = json.dumps({"error": {"code": "x", "message": "this model takes at most 512 tokens"}}).encode()
    assert excuse("positive_data_acceptance", label, allowed)
    for check in ("not_a_server_error", "response_schema_conformance", "negative_data_rejection"):
        assert excuse(check, label, allowed) is None
    assert all(why and all(words) for why, words in UNSAID.items())


@pytest.mark.parametrize("form", ["native", *FORMATS])
@pytest.mark.parametrize(
    "told",
    [
        "Traceback (most recent call last)",
        "KeyError: 'a'",
        "sqlite3.OperationalError",
        "/usr/lib/python3/site.py",
        "/home/me/data/trivec.sqlite",
        "<app.Service object at 0x7f3a1c2b>",
        'File "app/main.py"',
        "line 5, in handler",
    ],
)
def test_what_would_be_a_leak_is_seen(form: str, told: str) -> None:
    body = {"native": {"error": {"message": told}}}.get(form, {"message": told, "error": told})
    assert LEAKS.search(json.dumps(body))


@pytest.mark.parametrize(
    "told",
    [
        "the body is not UTF-8",
        "the body must be application/json or application/x-ndjson",
        "texts.0: the text has 3 tokens, the limit is 2",
        "in LangChain, set check_embedding_ctx_length=False",
        "the data folder does not answer; try again",
        "Validation",
    ],
)
def test_what_is_no_leak(told: str) -> None:
    assert not LEAKS.search(told)
