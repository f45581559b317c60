"""The contract's table of limits, row by row, for Trivec's own routes and for each API that is imitated.

A row's test asks all routes that it is about and expects what clients of that route's API know. What is
special about one route stands in the tests of that route.
"""

from __future__ import annotations

import ast
import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.error_formats import FORMATS, error_format
from tests.fakes import CARD, FakeModel, token_id
from tests.http_helpers import JSON, problem, serving, serving_async, v1_problem
from tests.text_routes import DOCUMENTS, EMBEDDING, ROUTES, Route, refused

ROOT = Path(__file__).parent.parent
EVERY = pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
IDS = {"ids": lambda route: route.path}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    model = FakeModel(card=replace(CARD, max_length=8))
    with serving(tmp_path_factory.mktemp("data"), model, max_texts=5, max_body_bytes=4096) as client:
        yield client


@EVERY
def test_malformed_json(client: TestClient, route: Route) -> None:
    for body in (b"{", b"\xff", b'{"a": NaN}', b"[" * 200):
        refused(route, client.post(route.path, content=body, headers=JSON), 422, "malformed_json")


@EVERY
def test_a_wrong_type_an_unknown_field_or_word(client: TestClient, route: Route) -> None:
    """APIs that are imitated get fields of every release of their clients: those are ignored."""
    assert route.wrong
    for body, param in route.wrong:
        code = "invalid_filter" if param == "filter.k" else "invalid_request"
        refused(route, client.post(route.path, json=body), 422, code, param)
    if route.api != "native":
        assert client.post(route.path, json={**route.body(["a"]), "of_tomorrow": 1}).status_code == 200


@EVERY
def test_empty_texts_and_lists(client: TestClient, route: Route) -> None:
    none = route.send(client, [])
    code = "invalid_request" if route.path == "/tei/v1/embeddings" else "empty"
    refused(route, none, 422, code, route.param)
    empty = route.send(client, ["a", ""])
    if route.path == DOCUMENTS:
        good, bad = empty.json()["results"]
        assert good["status"] == "upserted" and bad["error"]["param"] == "text"
    elif route.path == "/tei/rerank":
        assert empty.status_code == 200  # as a text of white space
    else:
        refused(route, empty, 422, code, f"{route.param}.1")


@EVERY
def test_white_space_is_the_empty_sequence(client: TestClient, route: Route) -> None:
    assert route.send(client, [" ", "\u3000\n", "\u2028"]).status_code == 200
    found = client.post("/tokenize", json={"texts": [" \t\n\u3000"]}).json()["results"][0]
    assert found["count"] == 2 and found["tokens"] == ["<s>", "</s>"]


@pytest.mark.parametrize("route", [one for one in ROUTES if one.uncut is not None], **IDS)
def test_a_text_that_is_too_long_and_may_not_be_cut(client: TestClient, route: Route) -> None:
    long = "a b c d e f g h i j"
    answer = client.post(route.path, json={**route.body(["a", long]), **(route.uncut or {})})
    said = refused(route, answer, 413, "text_too_long", f"{route.param}.1")
    assert "12" in said and "8" in said


@EVERY
def test_a_body_over_its_limit(client: TestClient, route: Route) -> None:
    large = json.dumps(route.body(["x" * 5000])).encode()
    for body in (large, iter([large[:3000], large[3000:]])):
        answer = client.post(route.path, content=body, headers=JSON)
        assert "4096" in refused(route, answer, 413, "body_too_large")


@EVERY
def test_a_batch_over_its_limit(client: TestClient, route: Route) -> None:
    said = refused(route, route.send(client, ["a"] * 6), 422, "limit_exceeded", route.param)
    assert "6" in said and "5" in said
    most = 4 if route.path == "/tei/similarity" else 5  # the source sentence counts too
    assert route.send(client, ["a"] * most).status_code == 200


def test_top_k_over_its_limit(client: TestClient) -> None:
    for path in ("/search", "/collections/default/search"):
        for name, value, limit in (("top_k", 1001, "1000"), ("candidates", 10_001, "10000")):
            client.put("/collections/default")
            answer = client.post(path, json={"query": "a", name: value})
            assert limit in problem(answer, 422, "limit_exceeded", name)


@contextmanager
def held(model: FakeModel) -> Iterator[None]:
    """The model at work on what comes next until the block ends."""
    model.entered.acquire()
    model.gate.clear()
    try:
        yield
    finally:
        model.gate.set()


@pytest.mark.parametrize("route", EMBEDDING, **IDS)
def test_a_full_queue(tmp_path: Path, route: Route) -> None:
    async def run() -> None:
        model = FakeModel()
        async with serving_async(tmp_path, model, max_batch_tokens=8, max_queue_tokens=8) as (client, app):
            await client.put("/collections/default")
            with held(model):
                running = asyncio.create_task(client.post("/embed", json={"texts": "first"}))
                await asyncio.to_thread(model.entered.acquire, timeout=10)
                waiting = asyncio.create_task(client.post("/embed", json={"texts": "a b c d"}))
                while app.state.service.batcher.queued_tokens != 6:
                    await asyncio.sleep(0.001)
                answer = await route.send(client, ["x y z"])
                refused(route, answer, 429, "queue_full")
                assert int(answer.headers["Retry-After"]) >= 1
            assert [(await one).status_code for one in (running, waiting)] == [200, 200]

    asyncio.run(run())


def test_a_model_that_is_not_ready(tmp_path: Path) -> None:
    with serving(tmp_path, FakeModel(broken=True)) as client:
        for route in ROUTES:
            answer = route.send(client, ["a"])
            refused(route, answer, 503, "not_ready")
            assert int(answer.headers["Retry-After"]) >= 1


def test_a_shutdown(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        client.app.state.service.begin_drain()  # type: ignore[attr-defined]
        for route in ROUTES:
            answer = route.send(client, ["a"])
            refused(route, answer, 503, "draining")
            assert int(answer.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("route", EMBEDDING, **IDS)
def test_a_deadline(tmp_path: Path, route: Route) -> None:
    async def run() -> None:
        model = FakeModel()
        async with serving_async(tmp_path, model) as (client, app):
            await client.put("/collections/default")
            with held(model):
                running = asyncio.create_task(client.post("/embed", json={"texts": "first"}))
                await asyncio.to_thread(model.entered.acquire, timeout=10)
                answer = await route.send(client, ["too late"], headers={"X-Request-Timeout": "0.05"})
                refused(route, answer, 504, "deadline_exceeded")
                assert app.state.service.batcher.queued_tokens == 0
            assert (await running).status_code == 200
            assert (await client.post("/embed", json={"texts": "a b c d e f"})).status_code == 200
        # After the probe: the first text and the last, never the late one.
        assert model.batches[1:] == [[3], [8]]

    asyncio.run(run())


@EVERY
def test_keys(tmp_path: Path, route: Route) -> None:
    with serving(tmp_path, api_keys=("writer", "reader:read")) as client:
        for key in (None, "wrong", "reader:read", "write"):
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            answer = route.send(client, ["a"], headers=headers)
            refused(route, answer, 401, "unauthorized")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert route.send(client, ["a"], headers={"Authorization": "Bearer writer"}).status_code == 200
        answer = route.send(client, ["a"], headers={"Authorization": "Bearer reader"})
        if route.writes:
            refused(route, answer, 403, "read_only_key")
        else:
            assert answer.status_code == 200


def test_what_is_not_there(client: TestClient) -> None:
    client.put("/collections/default")
    for method, path, code, param in (
        ("GET", "/collections/none", "collection_not_found", None),
        ("DELETE", "/collections/none", "collection_not_found", None),
        ("POST", "/collections/none/search", "collection_not_found", None),
        ("POST", "/collections/none/documents", "collection_not_found", None),
        ("POST", "/collections/none/documents/delete", "collection_not_found", None),
        ("GET", f"{DOCUMENTS}/none", "document_not_found", "id"),
        ("DELETE", f"{DOCUMENTS}/none", "document_not_found", "id"),
        ("GET", "/nowhere", "not_found", None),
    ):
        bodies = {"search": {"query": "a"}, "documents": [{"text": "a"}], "delete": {"ids": ["a"]}}
        body = bodies.get(path.rsplit("/", 1)[1]) if method == "POST" else None
        problem(client.request(method, path, json=body), 404, code, param)
    v1_problem(client.get("/v1/models/gpt-5"), 404, "model_not_found", "model")
    for route in (one for one in ROUTES if one.api != "native"):
        refused(route, client.get(f"/{route.api}/nowhere"), 404, "not_found")


@pytest.mark.parametrize("route", EMBEDDING, **IDS)
def test_a_fault_inside_one_batch(tmp_path: Path, route: Route) -> None:
    """500 for its own callers only, 424 where text-embeddings-inference says so; the next batch works."""

    async def run() -> None:
        model = FakeModel(poison={token_id("arsenic")})
        async with serving_async(tmp_path, model) as (client, _):
            await client.put("/collections/default")
            texts = ["cat", "arsenic", "dog", "bird"]
            answers = await asyncio.gather(*(route.send(client, [one]) for one in texts))
            assert [one.status_code for one in answers[:1] + answers[2:]] == [200, 200, 200]
            refused(route, answers[1], 500, "inference_failed")
            assert "SECRET" not in answers[1].text and "/some/path" not in answers[1].text
            assert (await route.send(client, ["cat"])).status_code == 200

    asyncio.run(run())


@EVERY
def test_half_pairs_and_nul(client: TestClient, route: Route) -> None:
    body = json.dumps(route.body(["a", "\ud800"])).encode()
    answer = client.post(route.path, content=body, headers=JSON)
    if route.path == DOCUMENTS:
        good, bad = answer.json()["results"]
        assert answer.status_code == 200 and good["status"] == "upserted"
        assert (bad["error"]["code"], bad["error"]["param"]) == ("invalid_request", "text")
        said = bad["error"]["message"]
    else:
        said = refused(route, answer, 422, "invalid_request", f"{route.param}.1")
    assert "surrogate" in said
    assert route.send(client, ["\x00", "a\x00b", "\u202eשלום", "👩\u200d👧"]).status_code == 200


ROWS: Mapping[str, tuple[str, ...]] = {
    "malformed JSON, wrong type, unknown field or enum -> 422, naming the field": (
        "test_malformed_json",
        "test_a_wrong_type_an_unknown_field_or_word",
        "tests/test_http_limits.py::test_a_wrong_type_field_or_enum_is_named",
    ),
    "empty text or empty list -> 422; white space alone is the empty sequence": (
        "test_empty_texts_and_lists",
        "test_white_space_is_the_empty_sequence",
    ),
    "text longer than max_length with truncate=false -> text_too_long with count and limit": (
        "test_a_text_that_is_too_long_and_may_not_be_cut",
    ),
    "body, batch or top_k over its limit -> 413 / 422 with the limit": (
        "test_a_body_over_its_limit",
        "test_a_batch_over_its_limit",
        "test_top_k_over_its_limit",
        "tests/test_http_limits.py::test_a_body_announced_as_too_large_is_not_read",
    ),
    "queue full -> 429 with Retry-After": ("test_a_full_queue",),
    "model not ready, or draining -> 503 with Retry-After": (
        "test_a_model_that_is_not_ready",
        "test_a_shutdown",
    ),
    "deadline passed -> 504; the work is dropped from the queue": (
        "test_a_deadline",
        "tests/test_http_limits.py::test_a_malformed_deadline",
    ),
    "missing or wrong API key -> 401; keys may be read-only": ("test_keys",),
    "unknown collection or id -> 404": ("test_what_is_not_there",),
    "a fault inside one batch -> 500 for its own callers only": ("test_a_fault_inside_one_batch",),
    "lone surrogates, NUL, 10 MB of one letter, RTL, emoji -> handled, never 500": (
        "test_half_pairs_and_nul",
        "tests/hostile/test_no_texts.py::test_what_is_no_text_is_refused_wherever_it_stands",
        "tests/hostile/test_no_texts.py::test_ten_megabytes",
        "tests/hostile/test_texts.py::test_what_gives_vectors",
    ),
}
"""The contract's rows -> the tests that hold Trivec to them."""


@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_its_tests(row: str) -> None:
    for node in ROWS[row]:
        file, _, name = node.rpartition("::")
        tree = ast.parse((ROOT / file if file else Path(__file__)).read_text(encoding="utf-8"))
        assert name in {one.name for one in tree.body if isinstance(one, ast.FunctionDef)}, node


def test_every_route_that_takes_texts_is_asked(client: TestClient) -> None:
    """A route that is added later belongs into `ROUTES`."""
    paths = client.get("/openapi.json").json()["paths"]
    posts = {path for path, methods in paths.items() if "post" in methods}
    asked = {route.path.replace("/default/", "/{name}/") for route in ROUTES}
    without = {"/collections/{name}/search", "/collections/{name}/documents/delete", "/tei/decode"}
    assert posts - asked == without
    assert {route.api for route in ROUTES} == {"native", *FORMATS}
    assert all(error_format(route.path) is FORMATS.get(route.api, error_format("/")) for route in ROUTES)
