"""Bodies that would cost much more than they weigh: refused by name, before anything is made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from starlette.testclient import TestClient

from app.errors import MalformedJson
from app.index.facts import MAX_PATH_CHARACTERS, MAX_VALUES
from app.main import create_app
from app.schemas.base import MANY_FIELDS
from app.schemas.documents import DeleteRequest, DocumentBody
from app.schemas.native import EmbedRequest, RerankRequest
from app.schemas.search import SearchBody
from app.settings import Settings
from app.wire import MAX_JSON_CONTAINERS, MAX_JSON_DEPTH, parse_json
from tests.http_helpers import JSON, problem, serving

FEW = 8
"""Faults of one body: one for each field, or branch of a union, that is wrong."""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("data")) as client:
        yield client


@pytest.mark.parametrize(
    ("model", "body", "place"),
    [
        (EmbedRequest, {"texts": [1] * 10_000}, ("texts", "<list>", 0)),
        (EmbedRequest, {"texts": ["a", *[""] * 10_000]}, ("texts", "<list>", 1)),
        (EmbedRequest, {"texts": "a", "outputs": ["all"] * 10_000}, ("outputs", 0)),
        (RerankRequest, {"query": "a", "documents": [{"text": 1}] * 10_000}, None),
        (SearchBody, {"query": ["a"], "include": ["x"] * 10_000}, ("include", 0)),
        (SearchBody, {"query": {"colbert": [["a"]] * 10_000}}, None),
        (SearchBody, {"query": {"embedding": {"dense": [[]] * 10_000}}}, None),
        (DeleteRequest, {"ids": [""] * 10_000}, ("ids", 0)),
        (
            DocumentBody,
            {"text": "a", "embedding": {"sparse": {"indices": ["a"] * 10_000, "values": []}}},
            None,
        ),
    ],
)
def test_the_first_fault_of_a_list_is_enough(model: Any, body: Any, place: tuple[object, ...] | None) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    assert caught.value.error_count() <= FEW
    assert place is None or caught.value.errors()[0]["loc"] == place


def _lists(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            yield schema
        for value in schema.values():
            yield from _lists(value)
    elif isinstance(schema, list | tuple):
        for value in schema:
            yield from _lists(value)


def _routes(router: Any) -> Iterator[APIRoute]:
    for one in router.routes:
        if isinstance(one, APIRoute):
            yield one
        elif (
            inner := getattr(one, "original_router", None)
        ) is not None:  # how FastAPI keeps an included one
            yield from _routes(inner)


def test_no_route_looks_for_every_fault_of_a_list(tmp_path: Path) -> None:
    """For routes that are added later too: their bodies derive from `app.schemas.base.IncomingBody`."""
    app = create_app(Settings(data_dir=tmp_path))
    bodies = [route for route in _routes(app) if route.body_field is not None]
    assert len(bodies) >= 6
    for route in bodies:
        adapter: TypeAdapter[Any] = TypeAdapter(route.body_field.field_info.annotation)
        for one in _lists(adapter.core_schema):
            assert one.get("fail_fast"), route.path


@pytest.mark.parametrize("path", ["/embed", "/search", "/rerank", "/tokenize"])
def test_very_many_fields(client: TestClient, path: str) -> None:
    body = {"texts": "a", "query": "a", "documents": ["a"], **{f"field{n}": 1 for n in range(MANY_FIELDS)}}
    assert "too many fields" in problem(client.post(path, json=body), 422, "invalid_request")


def test_very_many_lists_are_not_made(client: TestClient) -> None:
    many = b'{"texts": [' + b"[]," * MAX_JSON_CONTAINERS + b"[]]}"
    for path in ("/embed", "/collections/default/documents"):
        assert str(MAX_JSON_CONTAINERS) in problem(
            client.post(path, content=many, headers=JSON), 422, "malformed_json"
        )
    brackets_of_a_text = json.dumps({"texts": "[" * (MAX_JSON_CONTAINERS + 1)})
    assert client.post("/tokenize", content=brackets_of_a_text, headers=JSON).status_code == 200


def _written(depth: int, texts: list[str]) -> bytes:
    value: Any = {text: [text] for text in texts}
    for _ in range(depth - 2):
        value = [value]
    return json.dumps(value).encode()


@given(st.lists(st.text(alphabet='[]{}"\\a\n'), min_size=1, max_size=60))
def test_depth_is_measured_outside_of_texts(texts: list[str]) -> None:
    parse_json(_written(MAX_JSON_DEPTH, texts))
    with pytest.raises(MalformedJson, match="deeper"):
        parse_json(_written(MAX_JSON_DEPTH + 1, texts))


@given(st.text(alphabet='[]{}"\\a1,: ', max_size=300), st.integers(0, 1))
def test_what_is_no_json_is_said_so(text: str, many: int) -> None:
    body = (text + "[" * 200 * many).encode()
    try:
        json.loads(body)
    except ValueError:
        with pytest.raises(MalformedJson):
            parse_json(body)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"a": [1] * MAX_VALUES}, str(MAX_VALUES)),
        ({"a": [[1] * MAX_VALUES]}, str(MAX_VALUES)),
        ({"a" * (MAX_PATH_CHARACTERS + 1): 1}, "path"),
        ({"a" * MAX_PATH_CHARACTERS: {"b": 1}}, "path"),
    ],
)
def test_metadata_that_takes_minutes(client: TestClient, metadata: Any, reason: str) -> None:
    body = [{"id": "1", "text": "a", "metadata": metadata}]
    answer = client.post("/collections/default/documents", json=body)
    assert answer.status_code == 422 and answer.json()["error"]["code"] == "invalid_document"
    assert reason in answer.json()["error"]["message"] and len(answer.content) < 2000


def test_metadata_within_its_bounds_comes_back(client: TestClient) -> None:
    metadata = {"a" * MAX_PATH_CHARACTERS: 1, "b": [2] * (MAX_VALUES - 10)}
    body = [{"id": "1", "text": "a", "metadata": metadata}]
    assert client.post("/collections/default/documents", json=body).status_code == 200
    assert client.get("/collections/default/documents/1").json()["metadata"] == metadata
