"""Start, readiness, request ids, logs, shutdown; and bodies that nobody would send, which are never a 500."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from app import main
from app.index.errors import DataFolderInUse
from app.settings import Settings
from app.telemetry import JsonLines
from tests.fakes import HIDDEN, FakeModel
from tests.http_helpers import problem, serving, serving_async


def test_only_liveness_answers_until_a_forward_pass_has_worked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = threading.Event()
    model = FakeModel(broken=True)

    def load_model(_: Settings) -> FakeModel:
        assert loaded.wait(20)
        return model

    monkeypatch.setattr(main, "load_model", load_model)
    with TestClient(main.create_app(Settings(data_dir=tmp_path)), raise_server_exceptions=False) as client:

        def all_refused() -> None:
            for method, path in (
                ("POST", "/embed"),
                ("GET", "/health/ready"),
                ("GET", "/info"),
                ("GET", "/collections"),
            ):
                answer = client.request(method, path)
                problem(answer, 503, "not_ready")
                assert int(answer.headers["Retry-After"]) > 0

        assert client.get("/health/live").status_code == 200
        all_refused()
        loaded.set()
        model.entered.acquire()  # the first forward pass, which fails
        all_refused()
        model.broken = False
        assert client.get("/health/ready").status_code == 200
        assert client.post("/embed", json={"texts": "a"}).status_code == 200


def test_a_model_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()
    seen: list[Exception] = []

    def load_model(_: Settings) -> FakeModel:
        raise ValueError("/models/secret is not a checkpoint")

    def note(error: Exception) -> None:
        seen.append(error)
        failed.set()

    monkeypatch.setattr(main, "load_model", load_model)
    app = main.create_app(Settings(data_dir=tmp_path), on_load_failure=note)
    with TestClient(app, raise_server_exceptions=False) as client:
        assert failed.wait(20) and isinstance(seen[0], ValueError)
        assert client.get("/health/live").status_code == 200
        for answer in (client.get("/health/ready"), client.post("/embed", json={"texts": "a"})):
            assert "secret" not in problem(answer, 500, "load_failed")


def test_readiness_follows_the_last_forward_pass(tmp_path: Path) -> None:
    model = FakeModel()
    with serving(tmp_path, model) as client:
        model.broken = True
        assert client.post("/embed", json={"texts": "a"}).status_code == 500
        problem(client.get("/health/ready"), 503, "not_ready")
        assert client.get("/health/live").status_code == 200
        model.broken = False
        passes = len(model.batches)
        assert client.get("/health/ready").status_code == 200
        assert len(model.batches) == passes + 1  # a fresh one decided
        assert client.get("/health/ready").status_code == 200
        assert len(model.batches) == passes + 1  # and now none is needed


def test_draining_refuses_new_work_and_finishes_the_old(tmp_path: Path) -> None:
    async def run() -> None:
        model = FakeModel()
        async with serving_async(tmp_path, model) as (client, app):
            model.entered.acquire()
            model.gate.clear()
            running = asyncio.create_task(client.post("/embed", json={"texts": "first"}))
            await asyncio.to_thread(model.entered.acquire, timeout=10)
            app.state.service.begin_drain()
            refused = await client.post("/embed", json={"texts": "a"})
            problem(refused, 503, "draining")
            assert "Retry-After" in refused.headers
            problem(await client.get("/health/ready"), 503, "draining")
            model.gate.set()
            assert (await running).status_code == 200

    asyncio.run(run())


def test_documents_outlive_the_process_and_the_folder_has_one_owner(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        client.post("/collections/default/documents", json=[{"id": "1", "text": "the cat"}])
        with pytest.raises(DataFolderInUse), serving(tmp_path):
            pass
    with serving(tmp_path) as client:
        assert client.post("/search", json={"query": "cat"}).json()["hits"][0]["id"] == "1"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("data")) as client:
        client.post("/collections/default/documents", json=[{"id": "1", "text": "cat"}])
        yield client


@pytest.mark.parametrize("path", ["/health/live", "/nowhere", "/embed"])
def test_a_request_id_is_taken_or_made(client: TestClient, path: str) -> None:
    assert client.get(path, headers={"X-Request-ID": "abc-1"}).headers["X-Request-ID"] == "abc-1"
    for strange in (b"x" * 129, b"a\tb", b"\xc3\xa9", b""):
        made = client.get(path, headers=[(b"X-Request-ID", strange)]).headers["X-Request-ID"]
        assert len(made) == 32 and made != strange.decode("latin-1")
    assert client.get(path).headers["X-Request-ID"] != client.get(path).headers["X-Request-ID"]


def test_one_log_line_a_request_and_no_text_in_it(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "trivec"):
        client.post("/embed", json={"texts": ["private words", "x"]}, headers={"X-Request-ID": "log-1"})
        client.get("/collections/default/documents/private-words")
        client.post("/embed", json={"texts": "private words", "private": 1})
    lines = [one for one in caplog.records if one.name == "trivec.requests"]
    written = [json.loads(JsonLines().format(one)) for one in lines]
    assert [(one["route"], one["status"]) for one in written] == [
        ("/embed", 200),
        ("/collections/{name}/documents/{id:rest}", 404),
        ("/embed", 422),
    ]
    first = written[0]
    assert (first["request_id"], first["texts"], first["tokens"]) == ("log-1", 2, 7)
    assert {"queue_ms", "inference_ms", "total_ms"} <= set(first)
    assert "private" not in "".join(JsonLines().format(one) for one in lines)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-5, 5)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["a", "dense", "hybrid", "query", "$in", "$not", "1", "binary", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
vectors = st.lists(st.floats(width=32) | st.integers(), min_size=HIDDEN, max_size=HIDDEN)
embeddings = st.fixed_dictionaries(
    {}, optional={"dense": vectors | anything, "sparse": anything, "colbert": anything}
)
FIELDS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "/embed": (
        "texts",
        {"texts": ["a"]},
        ["kind", "outputs", "max_length", "truncate", "normalize", "encoding", "dtype"],
    ),
    "/search": (
        "query",
        {"query": "a"},
        [
            "mode",
            "weights",
            "fusion",
            "top_k",
            "candidates",
            "filter",
            "explain",
            "include",
            "exact",
            "collection",
        ],
    ),
    "/rerank": ("documents", {"query": "a", "documents": ["b"]}, ["query", "mode", "weights", "top_n"]),
    "/tokenize": ("texts", {"texts": "a"}, ["max_length", "kind"]),
    "/collections/default/documents/delete": ("ids", {}, ["filter"]),
}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_body_is_a_500(client: TestClient, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(list(FIELDS)))
    main_field, sound, others = FIELDS[path]
    body: Any = dict(sound)
    for name in data.draw(
        st.lists(st.sampled_from([main_field, *others, "unknown"]), max_size=2, unique=True)
    ):
        body[name] = data.draw(anything | embeddings)
    if data.draw(st.integers(0, 9)) == 0:
        body = data.draw(anything)
    answer = client.post(
        path, content=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code in (200, 404, 422), (answer.status_code, body, answer.text)
    answer.json()


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"text": st.just("a") | anything},
            optional={
                "id": anything,
                "title": anything,
                "metadata": st.dictionaries(st.text(max_size=4), anything, max_size=3),
                "embedding": embeddings,
            },
        ),
        min_size=1,
        max_size=3,
    )
)
def test_no_document_is_a_500(client: TestClient, documents: list[Any]) -> None:
    content = json.dumps(documents).encode()
    answer = client.post(
        "/collections/default/documents", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code in (200, 422), (answer.status_code, documents, answer.text)
    lines = b"\n".join(json.dumps(one).encode() for one in documents)
    answer = client.post(
        "/collections/default/documents", content=lines, headers={"Content-Type": "application/x-ndjson"}
    )
    assert answer.status_code in (200, 422), (answer.status_code, documents, answer.text)
    assert len(answer.json()["results"]) == len(documents)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(FIELDS)), st.binary(max_size=60))
def test_no_bytes_are_a_500(client: TestClient, path: str, content: bytes) -> None:
    answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
