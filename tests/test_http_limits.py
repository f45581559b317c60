"""One test for each row of the contract's table of limits, and for each row of the table of errors."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.errors import TABLE, ServiceFault, describe
from app.index import errors as index
from app.service import Service
from tests.fakes import CARD, FakeModel, token_id
from tests.http_helpers import JSON, problem, serving, serving_async


def post_scope(path: str, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    """A request as a server hands it over, for tests that play the server."""
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
        "root_path": "",
        "scheme": "http",
        "server": ("test", 80),
        "http_version": "1.1",
    }


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("data"), max_texts=5, max_body_bytes=4096) as client:
        yield client


@pytest.mark.parametrize(
    "path", ["/embed", "/search", "/rerank", "/tokenize", "/collections/default/documents"]
)
@pytest.mark.parametrize(
    "body", [b"{", b"", b"\xff", b'{"texts": NaN}', b"[" * 100_000, b'{"a":' * 200 + b"1" + b"}" * 200]
)
def test_malformed_json(tmp_path_factory: pytest.TempPathFactory, path: str, body: bytes) -> None:
    with serving(tmp_path_factory.mktemp("data")) as client:
        answer = client.post(path, content=body, headers=JSON)
    if body or "documents" in path:
        problem(answer, 422, "malformed_json")
    else:
        problem(answer, 422, "invalid_request")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"texts": 5}, "texts"),
        ({"texts": None}, "texts"),
        ({"texts": ["a", 5]}, "texts.1"),
        ({"texts": {"a": 1}}, "texts"),
        ({}, "texts"),
        ([], None),
        ({"texts": "a", "kind": "poem"}, "kind"),
        ({"texts": "a", "outputs": ["dense", "vibes"]}, "outputs.1"),
        ({"texts": "a", "outputs": []}, "outputs"),
        ({"texts": "a", "max_length": "5"}, "max_length"),
        ({"texts": "a", "max_length": 5.5}, "max_length"),
        ({"texts": "a", "max_length": True}, "max_length"),
        ({"texts": "a", "max_length": 1}, "max_length"),
        ({"texts": "a", "truncate": 1}, "truncate"),
        ({"texts": "a", "user": "x"}, "user"),
    ],
)
def test_a_wrong_type_field_or_enum_is_named(client: TestClient, body: Any, param: str | None) -> None:
    problem(client.post("/embed", json=body), 422, "invalid_request", param)


@pytest.mark.parametrize(("texts", "param"), [("", "texts"), ([], "texts"), (["a", ""], "texts.1")])
def test_empty_text_and_empty_list(client: TestClient, texts: Any, param: str) -> None:
    problem(client.post("/embed", json={"texts": texts}), 422, "invalid_request", param)


def test_a_text_that_may_not_be_cut(client: TestClient) -> None:
    body = {"texts": ["a", "a b c d"], "max_length": 4, "truncate": False}
    message = problem(client.post("/embed", json=body), 413, "text_too_long", "texts.1")
    assert "6 tokens" in message and "4" in message


def test_more_tokens_than_the_model_takes(client: TestClient) -> None:
    answer = client.post("/embed", json={"texts": "a", "max_length": 513})
    assert "512" in problem(answer, 422, "limit_exceeded", "max_length")


def test_a_body_over_its_limit(client: TestClient) -> None:
    big = json.dumps({"texts": "x" * 5000}).encode()
    assert "4096" in problem(client.post("/embed", content=big, headers=JSON), 413, "body_too_large")
    # Without Content-Length the bytes themselves are counted.
    streamed = client.post("/embed", content=iter([big[:3000], big[3000:]]), headers=JSON)
    problem(streamed, 413, "body_too_large")


def test_a_body_announced_as_too_large_is_not_read(client: TestClient) -> None:
    async def run() -> int:
        async def receive() -> dict[str, Any]:
            raise AssertionError("read")

        statuses: list[int] = []

        async def send(message: Any) -> None:
            statuses.extend([message["status"]] if "status" in message else [])

        headers = [(b"content-type", b"application/json"), (b"content-length", b"5000")]
        await client.app(post_scope("/embed", headers), receive, send)
        return statuses[0]

    assert asyncio.run(run()) == 413


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/embed", {"texts": ["a"] * 6}, "texts"),
        ("/tokenize", {"texts": ["a"] * 6}, "texts"),
        ("/search", {"query": ["a"] * 6}, "query"),
        ("/rerank", {"query": "a", "documents": ["a"] * 6}, "documents"),
        ("/collections/default/documents", [{"text": "a"}] * 6, "documents"),
    ],
)
def test_a_batch_over_its_limit(client: TestClient, path: str, body: Any, param: str) -> None:
    assert "5" in problem(client.post(path, json=body), 422, "limit_exceeded", param)


def test_a_full_queue(tmp_path: Path) -> None:
    async def run() -> None:
        model = FakeModel()
        async with serving_async(tmp_path, model, max_batch_tokens=8, max_queue_tokens=8) as (client, app):
            service: Service = app.state.service
            model.entered.acquire()
            model.gate.clear()
            running = asyncio.create_task(client.post("/embed", json={"texts": "first"}))
            await asyncio.to_thread(model.entered.acquire, timeout=10)
            waiting = asyncio.create_task(client.post("/embed", json={"texts": "a b c d"}))
            while service.batcher.queued_tokens != 6:
                await asyncio.sleep(0.001)
            refused = await client.post("/embed", json={"texts": "a b"})
            problem(refused, 429, "queue_full")
            assert int(refused.headers["Retry-After"]) >= 1
            documents = await client.post("/collections/default/documents", json=[{"text": "a b"}])
            assert documents.status_code == 429 and "Retry-After" in documents.headers
            model.gate.set()
            assert [(await one).status_code for one in (running, waiting)] == [200, 200]

    asyncio.run(run())


def test_a_deadline(tmp_path: Path) -> None:
    async def run() -> None:
        model = FakeModel()
        async with serving_async(tmp_path, model) as (client, app):
            service: Service = app.state.service
            model.entered.acquire()
            model.gate.clear()
            running = asyncio.create_task(client.post("/embed", json={"texts": "first"}))
            await asyncio.to_thread(model.entered.acquire, timeout=10)
            late = await client.post("/embed", json={"texts": "late"}, headers={"X-Request-Timeout": "0.05"})
            problem(late, 504, "deadline_exceeded")
            assert service.batcher.queued_tokens == 0
            model.gate.set()
            assert (await running).status_code == 200
            assert (await client.post("/embed", json={"texts": "a"})).status_code == 200
        assert model.batches[1:] == [
            [3],
            [3],
        ]  # after the probe: the first text and the last, never the late one

    asyncio.run(run())


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf", "1e9", ""])
def test_a_malformed_deadline(client: TestClient, value: str) -> None:
    answer = client.post("/embed", json={"texts": "a"}, headers={"X-Request-Timeout": value})
    problem(answer, 422, "invalid_request", "X-Request-Timeout")


def test_a_client_that_leaves_takes_its_work_along(tmp_path: Path) -> None:
    async def run() -> None:
        model = FakeModel()
        async with serving_async(tmp_path, model) as (client, app):
            service: Service = app.state.service
            model.entered.acquire()
            model.gate.clear()
            running = asyncio.create_task(client.post("/embed", json={"texts": "first"}))
            await asyncio.to_thread(model.entered.acquire, timeout=10)
            leave = asyncio.Event()
            messages = [{"type": "http.request", "body": b'{"texts": "gone"}', "more_body": False}]

            async def receive() -> dict[str, Any]:
                if messages:
                    return messages.pop()
                await leave.wait()
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                raise AssertionError("nobody listens")

            scope = post_scope("/embed", [(b"content-type", b"application/json")])
            gone = asyncio.create_task(app(scope, receive, send))
            while service.batcher.queued_tokens != 3:
                await asyncio.sleep(0.001)
            leave.set()
            await gone
            assert service.batcher.queued_tokens == 0
            model.gate.set()
            await running

    asyncio.run(run())


def test_keys(tmp_path: Path) -> None:
    with serving(tmp_path, api_keys=("writer", "reader:read")) as client:

        def send(method: str, path: str, key: str | None, scheme: str = "Bearer", **rest: Any) -> Any:
            headers = {"Authorization": f"{scheme} {key}"} if key is not None else {}
            return client.request(method, path, headers=headers, **rest)

        for key, scheme in (
            (None, ""),
            ("wrong", "Bearer"),
            ("writer", "Basic"),
            ("reader:read", "Bearer"),
            ("", "Bearer"),
        ):
            for method, path in (("POST", "/embed"), ("GET", "/info"), ("DELETE", "/collections/default")):
                answer = send(method, path, key, scheme, json={"broken": 1})
                problem(answer, 401, "unauthorized")
                assert answer.headers["WWW-Authenticate"] == "Bearer"
        for path in ("/health/live", "/health/ready", "/openapi.json", "/docs"):
            assert client.get(path).status_code == 200
        writes = [
            ("PUT", "/collections/default", {}),
            ("POST", "/collections/default/documents", [{"id": "1", "text": "a"}]),
            ("POST", "/collections/default/documents/delete", {"ids": ["1"]}),
            ("DELETE", "/collections/default/documents/1", None),
            ("DELETE", "/collections/default", None),
        ]
        for method, path, body in writes:
            problem(send(method, path, "reader", json=body), 403, "read_only_key")
        assert [send(method, path, "writer", json=body).status_code for method, path, body in writes] == [
            201,
            200,
            200,
            404,
            200,
        ]
        for key in ("reader", "writer"):
            assert send("POST", "/embed", key, json={"texts": "a"}).status_code == 200
            assert send("POST", "/search", key, "bearer", json={"query": "a"}).status_code == 200
        assert client.get("/info", headers=[(b"Authorization", b"Bearer \xff\xfe")]).status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "code", "param"),
    [
        ("GET", "/collections/none", "collection_not_found", None),
        ("GET", "/collections/Not..A.Name", "collection_not_found", None),
        ("DELETE", "/collections/none", "collection_not_found", None),
        ("GET", "/collections/none/documents/1", "collection_not_found", None),
        ("GET", "/nowhere", "not_found", None),
    ],
)
def test_what_is_not_there(client: TestClient, method: str, path: str, code: str, param: str | None) -> None:
    problem(client.request(method, path), 404, code, param)


def test_a_document_that_is_not_there(client: TestClient) -> None:
    client.post("/collections/default/documents", json=[{"id": "1", "text": "a"}])
    problem(client.get("/collections/default/documents/2"), 404, "document_not_found", "id")


def test_a_method_that_a_route_lacks(client: TestClient) -> None:
    answer = client.get("/embed")
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == "POST"


def test_a_body_of_another_type(client: TestClient) -> None:
    answer = client.post("/embed", content=b'{"texts": "a"}', headers={"Content-Type": "text/plain"})
    problem(answer, 422, "invalid_request", "Content-Type")


@pytest.mark.parametrize("encoding", ["deflate", "br", "ZSTD", "gzip, br", "gzip, gzip", "gzip2"])
@pytest.mark.parametrize("path", ["/embed", "/collections/default/documents"])
def test_a_body_of_an_encoding_that_is_not_read(client: TestClient, path: str, encoding: str) -> None:
    body = gzip.compress(b'{"texts": "a"}')
    answer = client.post(path, content=body, headers={**JSON, "Content-Encoding": encoding})
    problem(answer, 415, "unsupported_encoding", "Content-Encoding")
    plain = client.post("/embed", json={"texts": "a"}, headers={"Content-Encoding": "identity"})
    assert plain.status_code == 200


def test_a_fault_in_a_batch_is_its_own_callers_only(tmp_path: Path) -> None:
    async def run() -> None:
        model = FakeModel(poison={token_id("arsenic")})
        async with serving_async(tmp_path, model) as (client, _):
            texts = ["cat", "arsenic", "dog", "bird"]
            answers = await asyncio.gather(*(client.post("/embed", json={"texts": one}) for one in texts))
            assert [one.status_code for one in answers] == [200, 500, 200, 200]
            problem(answers[1], 500, "inference_failed")
            assert "SECRET" not in answers[1].text
            assert (await client.post("/embed", json={"texts": "cat"})).status_code == 200

    asyncio.run(run())


STRANGE = [
    "\x00",
    "a\x00b",
    "מזל טוב",
    "\u202eabc",
    "👩‍👩‍👧‍👦",
    "\ufeff",
    "\U0010ffff",
    "a" * 300_000,
    "\u0301" * 99,
    "</s><pad>",
]


@pytest.mark.parametrize("text", STRANGE)
def test_strange_texts_are_served(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    with serving(tmp_path_factory.mktemp("data")) as client:
        assert client.post("/embed", json={"texts": text}).status_code == 200
        stored = client.post("/collections/default/documents", json=[{"id": "1", "text": text}])
        assert stored.status_code == 200
        (hit,) = client.post("/search", json={"query": text, "explain": True}).json()["hits"]
        assert hit["text"] == text
        assert client.post("/rerank", json={"query": text, "documents": [text]}).status_code == 200
        assert client.post("/tokenize", json={"texts": text}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/embed", rb'{"texts": ["ok", "\ud800"]}', "texts.1"),
        ("/search", rb'{"query": "\udc00"}', "query"),
        ("/search", rb'{"query": "a", "filter": {"k": "\ud800"}}', "filter.k"),
        ("/embed", rb'{"texts": "a", "\ud800": 1}', None),
        ("/collections/default/documents", rb'[{"text": "a", "metadata": {"k": "\ud800"}}]', "metadata.k"),
        ("/collections/default/documents", rb'{"documents": [{"text": "a"}], "\ud800": 1}', None),
    ],
)
def test_half_a_surrogate_pair(client: TestClient, path: str, body: bytes, param: str | None) -> None:
    problem(client.post(path, content=body, headers=JSON), 422, "invalid_request", param)


@pytest.mark.parametrize(
    ("body", "said"),
    [(b"", "a JSON body is expected"), (b"[]", "an object is expected"), (b'"cat"', "an object is expected")],
)
def test_a_body_that_is_no_object(client: TestClient, body: bytes, said: str) -> None:
    """Pydantic's words for it are `Field required` of no field, and dictionaries, which JSON has not."""
    assert problem(client.post("/search", content=body, headers=JSON), 422, "invalid_request") == said
    assert client.post("/v1/embeddings", content=body, headers=JSON).json()["error"]["message"] == said
    assert client.post("/tei/embed", content=body, headers=JSON).json()["error"] == said


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/search/", "../search"),
        ("/search//", "../../search"),
        ("/collections/?a=b&c", "../collections?a=b&c"),
        ("/collections/a%3Fb/", "../a%3Fb"),
        ("/collections/notes/documents/delete/", None),  # a document's id
        ("/nowhere/", None),
        ("/", None),
        ("//", None),
    ],
)
def test_a_slash_too_many_leads_on_by_a_relative_reference(
    client: TestClient, path: str, location: str | None
) -> None:
    """A whole URL made of `Host` would lead past the TLS of a proxy, and past the prefix that it strips."""
    headers = {"Host": "elsewhere.example"}
    for url, root in ((path, ""), (f"/trivec{path}", "/trivec")):
        behind = TestClient(client.app, root_path=root, follow_redirects=False)
        answer = behind.post(url, json={"query": "a"}, headers=headers)
        assert answer.headers.get("Location") == location
        assert (answer.status_code == 307) is (location is not None)


def test_a_client_that_follows_gets_there(client: TestClient) -> None:
    assert set(client.post("/search/", json={"query": "a"}).json()) >= {"collection", "hits"}
    assert set(client.get("/collections//").json()) == {"collections"}


def test_another_models_collection(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        client.post("/collections/default/documents", json=[{"id": "1", "text": "a"}])
    with serving(tmp_path, FakeModel(card=replace(CARD, fingerprint="0" * 64))) as client:
        problem(client.post("/search", json={"query": "a"}), 409, "model_mismatch")
        problem(client.post("/collections/default/documents", json=[{"text": "a"}]), 409, "model_mismatch")
        problem(client.put("/collections/default"), 409, "model_mismatch")
        assert client.get("/collections/default").status_code == 200
        assert client.get("/collections/default/documents/1").json()["text"] == "a"


def test_an_unexpected_error_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Careless(FakeModel):
        def token_strings(self, ids: Any) -> list[str]:
            raise KeyError("user text: my diagnosis")

    with serving(tmp_path, Careless()) as client, caplog.at_level(logging.DEBUG, "trivec"):
        answer = client.post("/tokenize", json={"texts": "my diagnosis"})
        message = problem(answer, 500, "internal_error")
        assert "diagnosis" not in message and "KeyError" not in answer.text and "/" not in message
    defects = [one for one in caplog.records if one.getMessage() == "unexpected error"]
    assert defects[0].fields["error"] == "KeyError"  # type: ignore[attr-defined]
    assert defects[0].fields["request_id"] == answer.headers["X-Request-ID"]  # type: ignore[attr-defined]
    assert "diagnosis" not in "".join(
        str(vars(one)) for one in caplog.records if one.name.startswith("trivec")
    )


INSTANCES: dict[type[Exception], Exception] = {
    index.CollectionNotFound: index.CollectionNotFound("x"),
    index.CollectionExists: index.CollectionExists("x"),
    index.ModelMismatch: index.ModelMismatch("x", "a", "b"),
    index.InputInvalid: index.InputInvalid("x"),
    index.NameInvalid: index.NameInvalid("x"),
    index.DocumentInvalid: index.DocumentInvalid("x", "text", "no"),
    index.QueryInvalid: index.QueryInvalid("query", "no"),
    index.FilterError: index.FilterError("a", "no"),
    index.StorageFull: index.StorageFull("/secret/path"),
    index.StorageUnavailable: index.StorageUnavailable("/secret/path"),
    index.IndexFault: index.StorageDamaged("/secret/path"),
    Exception: RuntimeError("/secret/path"),
}


@pytest.mark.parametrize("kind", TABLE, ids=lambda kind: kind.__name__)
def test_every_row_of_the_table(kind: type[Exception]) -> None:
    error = kind("words", param="field") if issubclass(kind, ServiceFault) else INSTANCES[kind]
    found = describe(error)
    assert (found.status, found.code) == (TABLE[kind].status, TABLE[kind].code)
    assert found.message and "/secret" not in found.message
    if issubclass(kind, ServiceFault):
        assert (found.message, found.param) == ("words", "field")
    assert (found.retry_after_s is not None) == (found.status == 503)


def test_no_two_rows_share_a_code() -> None:
    codes = [row.code for kind, row in TABLE.items() if kind is not index.InputInvalid]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("padding", [0, 300_000], ids=["small", "parsed in a worker thread"])
def test_a_byte_order_mark_before_json_is_passed_over(tmp_path: Path, padding: int) -> None:
    """As PowerShell and some editors write it; one, and at the very beginning."""
    mark, text = b"\xef\xbb\xbf", json.dumps("cat" + " " * padding).encode()
    bodies = {"/embed": b'{"texts": %s}', "/collections/default/documents": b'[{"text": %s}]'}
    with serving(tmp_path) as client:
        for path, body in bodies.items():
            assert client.post(path, content=mark + body % text, headers=JSON).status_code == 200, path
            twice = client.post(path, content=mark * 2 + body % text, headers=JSON)
            problem(twice, 422, "malformed_json")
