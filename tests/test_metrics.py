"""GET /metrics: counts rise as they should, labels are bounded, nothing of a client's words, nobody waits."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from app import main, scrape
from app.index import measure, upkeep
from app.index.errors import StorageUnavailable
from app.index.measure import CollectionMeasure, DerivedMeasure
from app.index.storage import FILE_NAME
from app.metrics import Metrics
from app.scrape import OTHERS, ServiceCollector
from app.service import Service
from app.settings import Settings
from app.telemetry import Telemetry
from app.tracing import Untraced
from tests.fakes import FakeModel, token_id
from tests.http_helpers import JSON, problem, serving, serving_async
from tests.metrics_helpers import Scrape, scraped
from tests.test_http_limits import post_scope

DOCUMENTS = "/collections/default/documents"
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("data")) as client:
        yield client


# requests


def ask(method: str, path: str, **rest: Any) -> Callable[[TestClient], Any]:
    return lambda client: client.request(method, path, **rest)


def broken_inside(client: TestClient) -> Any:
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    found, service.database.list = service.database.list, None  # type: ignore[assignment,method-assign]
    try:
        return client.get("/collections")
    finally:
        service.database.list = found  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("send", "route", "status", "code"),
    [
        (ask("POST", "/embed", json={"texts": "a"}), "/embed", 200, ""),
        (ask("HEAD", "/health/live"), "/health/live", 200, ""),
        (ask("GET", "/openapi.json"), "/openapi.json", 200, ""),
        (ask("GET", "/docs"), "/docs", 200, ""),
        (ask("GET", "/nowhere"), "unmatched", 404, "not_found"),
        (ask("GET", "/collections/none"), "/collections/{name}", 404, "collection_not_found"),
        (ask("GET", "/embed"), "/embed", 405, "method_not_allowed"),
        (ask("POST", "/embed", json={"texts": 5}), "/embed", 422, "invalid_request"),
        (ask("POST", "/embed", content=b"{", headers=JSON), "/embed", 422, "malformed_json"),
        (
            ask("POST", "/embed", json={"texts": "a b c", "max_length": 3, "truncate": False}),
            "/embed",
            413,
            "text_too_long",
        ),
        (
            ask("POST", "/embed", content=b"x", headers={**JSON, "Content-Length": "999999999"}),
            "/embed",
            413,
            "body_too_large",
        ),
        # Refused before a route was looked for.
        (ask("GET", "/info", headers={"X-Request-Timeout": "soon"}), "unmatched", 422, "invalid_request"),
        (ask("POST", "/embed", json={"texts": "arsenic"}), "/embed", 500, "inference_failed"),
        (broken_inside, "/collections", 500, "internal_error"),
        # Errors in the form of other APIs, and with their statuses.
        (ask("POST", "/v1/embeddings", json={"model": "m"}), "/v1/embeddings", 400, "invalid_request"),
        (ask("POST", "/tei/embed", json={"inputs": ""}), "/tei/embed", 400, "empty_input"),
        (ask("GET", "/v1/nowhere"), "unmatched", 404, "not_found"),
        (ask("POST", DOCUMENTS, json=[{"text": 5}]), "/collections/{name}/documents", 422, "invalid_request"),
    ],
)
def test_each_kind_of_answer_is_counted(
    tmp_path: Path, send: Callable[[TestClient], Any], route: str, status: int, code: str
) -> None:
    with serving(tmp_path, FakeModel(poison={token_id("arsenic")})) as client:
        answer = send(client)
        after = scraped(client)
    assert answer.status_code == status, answer.text
    labels = {"route": route, "method": answer.request.method, "status": str(status), "code": code}
    assert after("trivec_requests_total", **labels) == 1
    assert after("trivec_requests_total") == 1
    assert after("trivec_request_seconds_count", route=route) == 1
    assert after("trivec_errors_total") == after("trivec_errors_total", code=code) == (1 if code else 0)
    assert after("trivec_sent_bytes_total", route=route) == answer.num_bytes_downloaded
    assert after("trivec_requests_in_flight") == 1  # the scrape itself


def test_refused_keys_are_counted_and_needed_for_a_scrape(tmp_path: Path) -> None:
    with serving(tmp_path, api_keys=("writer", "reader:read")) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic reader"}):
            problem(client.get("/metrics", headers=headers), 401, "unauthorized")
        problem(
            client.put("/collections/a", headers={"Authorization": "Bearer reader"}), 403, "read_only_key"
        )
        found = scraped(client, Authorization="Bearer reader")
        assert found("trivec_requests_total", route="/metrics", status="401", code="unauthorized") == 3
        assert found("trivec_requests_total", status="403", code="read_only_key") == 1
        assert "writer" not in client.get("/metrics", headers={"Authorization": "Bearer writer"}).text


def test_full_queues_deadlines_and_clients_that_leave(tmp_path: Path) -> None:
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

            held = Scrape.of(await client.get("/metrics"))
            assert held("trivec_queue_tokens", lane="interactive") == 6
            assert held("trivec_queue_texts", lane="interactive") == 1
            assert held("trivec_queue_tokens", lane="bulk") == 0
            assert held("trivec_requests_in_flight") == 3
            assert held("trivec_forward_busy_seconds") > 0

            assert (await client.post("/embed", json={"texts": "a b"})).status_code == 429
            late = await client.post("/embed", json={"texts": "late"}, headers={"X-Request-Timeout": "30"})
            assert late.status_code == 429
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            late = await client.post("/embed", json={"texts": "late"}, headers={"X-Request-Timeout": "1"})
            assert late.status_code == 504
            await leave(app, service)
            model.gate.set()
            await running

            after = Scrape.of(await client.get("/metrics"))
            embed = {"route": "/embed", "method": "POST"}
            assert after("trivec_requests_total", **embed, status="429", code="queue_full") == 2
            assert after("trivec_requests_total", **embed, status="504", code="deadline_exceeded") == 1
            assert after("trivec_requests_total", **embed, status="499", code="client_gone") == 2
            assert after("trivec_requests_total", **embed, status="200", code="") == 1
            assert after("trivec_requests_in_flight") == 1
            # The probe, the one that was served, and three that left the queue without an answer.
            assert after("trivec_queue_wait_seconds_count", lane="interactive") == 5
            assert after("trivec_batch_texts_count", lane="interactive") == 2

    async def leave(app: Any, service: Service) -> None:
        gone = asyncio.Event()
        messages = [{"type": "http.request", "body": b'{"texts": "gone"}', "more_body": False}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            raise AssertionError("nobody listens")

        scope = post_scope("/embed", [(b"content-type", b"application/json")])
        request = asyncio.create_task(app(scope, receive, send))
        while service.batcher.queued_tokens != 3:
            await asyncio.sleep(0.001)
        gone.set()
        await request

    asyncio.run(run())


def test_an_answer_that_breaks_off_is_an_error() -> None:
    """Its status has been sent as 200, so only the code can say it."""
    metrics = Metrics()

    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("private words")

    client = TestClient(Telemetry(breaks, metrics=metrics, tracing=Untraced()), raise_server_exceptions=False)
    client.get("/")
    text = metrics.exposition("")[0].decode()
    assert (
        'trivec_requests_total{code="internal_error",method="GET",route="unmatched",status="200"} 1.0' in text
    )
    assert "private" not in text


def test_bodies_are_measured(client: TestClient) -> None:
    before = scraped(client)
    body = json.dumps({"texts": ["ab", "cd"]}).encode()
    chunked = client.post("/embed", content=iter([body[:5], body[5:]]), headers=JSON)
    after = scraped(client)
    received = after("trivec_received_bytes_total", route="/embed")
    assert received - before("trivec_received_bytes_total", route="/embed") == len(body)
    sent = after("trivec_sent_bytes_total", route="/embed") - before(
        "trivec_sent_bytes_total", route="/embed"
    )
    assert sent == chunked.num_bytes_downloaded


# labels


def test_a_thousand_paths_make_no_series_and_leave_no_word(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with serving(tmp_path) as client:
        client.post(DOCUMENTS, json=[{"id": "secret-id", "text": "secret-text"}])

        def traffic(count: int) -> None:
            for _ in range(count):
                word = "".join(rng.choice("abcdefghij/%-~") for _ in range(12))
                word = f"secret{word}".replace("%", "%C3%A9")
                client.get(f"/{word}")
                client.get(f"{DOCUMENTS}/{word}")
                client.delete(f"/collections/{word.replace('/', 'x')}")
                client.request(f"SECRET{rng.randrange(10**9)}", f"/embed/{word}")
                client.request(f"SECRET{rng.randrange(10**9)}", "/embed")
                client.get("/info", headers={"X-Request-ID": word, "X-Request-Timeout": "secret"})

        traffic(20)
        few = client.get("/metrics")
        traffic(200)
        many = client.get("/metrics")
    before, after = Scrape.of(few), Scrape.of(many)
    assert after("trivec_requests_total") > 1200
    # The first scrape alone is new in the second.
    new = {key for key in after.values.keys() - before.values.keys() if ("route", "/metrics") not in key[1]}
    assert not new
    assert "secret" not in many.text.lower()
    assert after.labels("trivec_requests_total", "method") <= {"GET", "POST", "DELETE", "_OTHER"}


def test_a_route_is_named_with_the_prefix_of_its_router_and_mount(tmp_path: Path) -> None:
    app = main.create_app(Settings(data_dir=tmp_path), model=FakeModel())
    router = APIRouter()

    @router.get("/things/{id}")
    async def thing(id: str) -> str:
        return id

    async def inner(request: Any) -> PlainTextResponse:
        return PlainTextResponse("inner")

    below = FastAPI()
    below.include_router(router, prefix="/deep")
    app.include_router(router, prefix="/v9")
    app.mount("/sub", Starlette(routes=[Route("/one/{id}", inner)]))
    app.mount("/other", below)
    app.mount("/bare", PlainTextResponse("bare"))
    with TestClient(app) as client:
        for path in ("/v9/things/x", "/sub/one/x", "/sub/none/x", "/other/deep/things/x", "/bare/x/y"):
            client.get(path)
        found = scraped(client).labels("trivec_requests_total", "route")
    assert found == {
        "/v9/things/{id}",
        "/sub/one/{id}",
        "/sub",
        "/other/deep/things/{id}",
        "/bare",
    }


# the model


def test_lanes_batches_tokens_and_cut_texts(tmp_path: Path) -> None:
    with serving(tmp_path, max_batch_tokens=100) as client:
        before = scraped(client)
        client.post("/embed", json={"texts": ["a b c d e", "a"], "max_length": 4})
        client.post(DOCUMENTS, json=[{"text": "word " * 60}, {"text": "other " * 60}])
        client.post("/tokenize", json={"texts": "a b c d e", "max_length": 4})
        after = scraped(client)

    def rise(name: str, **labels: str) -> float:
        return after(name, **labels) - before(name, **labels)

    assert rise("trivec_texts_total", lane="interactive") == 2
    assert rise("trivec_tokens_total", lane="interactive") == 7
    assert rise("trivec_batch_texts_count", lane="interactive") == 1
    assert rise("trivec_batch_tokens_sum", lane="interactive") == 7
    assert rise("trivec_texts_total", lane="bulk") == 2
    assert rise("trivec_batch_tokens_sum", lane="bulk") == rise("trivec_tokens_total", lane="bulk") == 124
    assert rise("trivec_batch_texts_bucket", lane="bulk", le="1.0") == 2  # each document filled a batch
    assert rise("trivec_inference_seconds_count", lane="bulk") == 2
    assert rise("trivec_queue_wait_seconds_count", lane="bulk") == 1  # both were one entry into the queue
    assert rise("trivec_truncated_texts_total") == 1  # /tokenize embeds nothing
    assert rise("trivec_forward_failures_total") == 0


def test_failed_passes_are_counted_each(tmp_path: Path) -> None:
    with serving(tmp_path, FakeModel(poison={token_id("arsenic")})) as client:
        client.post("/embed", json={"texts": ["cat", "arsenic", "dog"]})
        found = scraped(client)
        # All three together, then the one alone.
        assert found("trivec_forward_failures_total") == 2
        assert found("trivec_batch_texts_sum", lane="interactive") == 1 + 3
        assert found("trivec_ready") == 1  # one bad text makes nobody unready


class Padded(FakeModel):
    """Knows what its attention computes, as the engines do."""

    attention_scores = (75, 100)


def test_padding_is_told_where_the_model_knows_it(tmp_path: Path) -> None:
    with serving(tmp_path / "1", Padded()) as client:
        found = scraped(client)
        assert found("trivec_attention_scores_needed_total") == 75
        assert found("trivec_attention_scores_computed_total") == 100
        assert found("trivec_padding_share") == 0.25
    with serving(tmp_path / "2") as client:
        assert not scraped(client).has("trivec_padding_share")


def test_the_cache_of_queries_is_counted(tmp_path: Path) -> None:
    with serving(tmp_path, query_cache_bytes=1 << 20) as client:
        client.post(DOCUMENTS, json=[{"text": "cat"}])
        texts = scraped(client)("trivec_texts_total")
        for _ in range(3):
            client.post("/search", json={"query": "cat"})
        found = scraped(client)
    assert found("trivec_cache_misses_total") == 1 and found("trivec_cache_hits_total") == 2
    assert found("trivec_cache_bytes") > 0
    assert found("trivec_texts_total") == texts + 1


def test_passes_for_which_memory_does_not_suffice(tmp_path: Path) -> None:
    with serving(tmp_path, FakeModel(memory=5), max_batch_tokens=100) as client:
        assert scraped(client)("trivec_batch_limit_tokens") == 100
        assert client.post("/embed", json={"texts": ["a b", "c d"]}).status_code == 200
        found = scraped(client)
    assert found("trivec_forward_failures_total") == 1
    assert found("trivec_batch_limit_tokens") == 4  # half of what did not fit


# the index


def test_documents_bytes_and_refusals(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        client.put("/collections/notes", json={})
        client.post(
            "/collections/notes/documents",
            json=[{"id": "1", "text": "the cat"}, {"id": "2", "text": 5}, {"id": "3", "text": "a dog"}],
        )
        client.post(
            "/collections/notes/documents",
            content=b'{"id": "9"}\n',
            headers={"Content-Type": "application/x-ndjson"},
        )
        client.delete("/collections/notes/documents/3")
        client.post("/collections/notes/search", json={"query": "cat", "filter": {"a": 1}})
        client.post("/collections/notes/search", json={"query": ["cat", "dog"], "top_k": 1, "candidates": 1})
        described = client.get("/collections/notes").json()
        found = scraped(client)
    assert found("trivec_collections") == 1
    assert found("trivec_documents", collection="notes") == 1
    assert found("trivec_recent_documents", collection="notes") == 1
    assert found("trivec_dead_rows", collection="notes") == 1
    for part, size in described["bytes"].items():
        assert found("trivec_index_bytes", collection="notes", part=part) == size
    assert found("trivec_documents_stored_total") == 2
    assert found("trivec_document_errors_total", code="invalid_request") == 2
    assert found("trivec_change_seconds_count", change="upsert") == 1
    assert found("trivec_change_seconds_count", change="delete") == 1
    assert found("trivec_search_seconds_count") == 3
    assert found("trivec_search_stage_seconds_count", stage="filter") == 1
    assert found("trivec_search_stage_seconds_count", stage="scoring") == 3
    assert found("trivec_search_stage_seconds_count", stage="reading") == 3
    assert found("trivec_database_bytes") > 0 and found("trivec_disk_free_bytes") > 0
    assert found("trivec_storage_up") == 1


def test_damaged_rows_are_counted(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        client.post(DOCUMENTS, json=[{"id": str(number), "text": f"cat {number}"} for number in range(3)])
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection, connection:
        connection.execute("UPDATE documents SET text = 'cat 9' WHERE doc_id = '1'")
    with serving(tmp_path) as client:
        assert scraped(client)("trivec_damaged_rows") == 0
        for _ in range(2):
            assert len(client.post("/search", json={"query": "cat"}).json()["hits"]) == 2
        assert scraped(client)("trivec_damaged_rows", collection="default") == 1


def test_candidates_are_timed(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        client.post(DOCUMENTS, json=[{"text": f"word{number} cat"} for number in range(40)])
        client.post("/search", json={"query": "cat", "top_k": 3, "candidates": 5})
        found = scraped(client)
    assert found("trivec_search_stage_seconds_count", stage="candidates") == 1
    assert found("trivec_search_stage_seconds_count", stage="scoring") == 1


def test_upkeep_is_timed_and_its_failures_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path) as client:
        service: Service = client.app.state.service  # type: ignore[attr-defined]
        client.post(DOCUMENTS, json=[{"text": f"word{number}"} for number in range(8)])
        collection = service.database.get("default")

        def no_disk(*_: Any) -> Any:
            raise OSError("no space")

        with monkeypatch.context() as broken:
            broken.setattr("app.index.collection.write", no_disk)
            with pytest.raises(OSError, match="no space"):
                collection.seal(1)
        failed = scraped(client)
        assert failed("trivec_upkeep_failures_total", work="seal") == 1
        assert failed("trivec_segments", collection="default") == 0
        assert collection.seal(1) and not collection.seal(1)
        client.post(DOCUMENTS, json=[{"text": f"other{number}"} for number in range(8)])
        collection.seal(1)
        monkeypatch.setattr(upkeep, "FANOUT", 2)
        segments = scraped(client)
        assert segments("trivec_segments", collection="default") == 2
        assert segments("trivec_recent_documents", collection="default") == 0
        assert segments("trivec_index_bytes", collection="default", part="segments") > 0
        assert collection.merge(idle=False)
        merged = scraped(client)
    assert merged("trivec_segments", collection="default") == 1
    assert merged("trivec_upkeep_seconds_count", work="seal") == 3
    assert merged("trivec_upkeep_seconds_count", work="merge") == 1
    assert merged("trivec_upkeep_failures_total") == 1


def test_collections_beyond_the_bound_share_their_series(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        for number in range(5):
            client.put(f"/collections/c{number}", json={})
            documents = [{"text": f"{place}"} for place in range(number + 1)]
            client.post(f"/collections/c{number}/documents", json=documents)
        service: Service = client.app.state.service  # type: ignore[attr-defined]
        families = {one.name: one for one in ServiceCollector(service, "1", most_collections=2).collect()}
        counts = {one.labels["collection"]: one.value for one in families["trivec_documents"].samples}
        assert counts == {"c4": 5, "c3": 4, OTHERS: 1 + 2 + 3}
        texts = [
            one.value
            for one in families["trivec_index_bytes"].samples
            if one.labels == {"collection": OTHERS, "part": "text"}
        ]
        assert texts == [6]


def test_a_drop_under_way_holds_no_scrape_up(tmp_path: Path) -> None:
    """A drop keeps the lock of the collections' table until all of its documents are deleted."""
    with serving(tmp_path) as client:
        client.post(DOCUMENTS, json=[{"text": "cat"}])
        service: Service = client.app.state.service  # type: ignore[attr-defined]
        with service.database._lock:
            assert scraped(client)("trivec_documents", collection="default") == 1
        client.delete("/collections/default")
        assert not scraped(client).has("trivec_documents")


def test_a_collection_that_goes_meanwhile_is_left_out(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        client.post(DOCUMENTS, json=[{"text": "cat"}])
        database = client.app.state.service.database  # type: ignore[attr-defined]
        collection = database.get("default")
        database.drop("default")
        found = measure.measured(database._storage, tmp_path, [collection.measurable()])
        assert found.collections == []


def test_an_index_that_does_not_answer_costs_its_own_figures_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path) as client:
        service: Service = client.app.state.service  # type: ignore[attr-defined]

        def fails() -> Any:
            raise StorageUnavailable("/some/path does not answer")

        monkeypatch.setattr(service.database, "measure", fails)
        answer = client.get("/metrics")
        found = Scrape.of(answer)
        assert found("trivec_storage_up") == 0 and not found.has("trivec_collections")
        assert found("trivec_ready") == 1 and "/some/path" not in answer.text


# scraping


def test_a_scrape_that_waits_for_the_disk_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrape, "PATIENCE_S", 0.01)

    async def run() -> None:
        async with serving_async(tmp_path) as (client, app):
            database = app.state.service.database
            entered, gate, sound = threading.Event(), threading.Event(), database.measure

            def slow() -> Any:
                entered.set()
                assert gate.wait(20)
                return sound()

            monkeypatch.setattr(database, "measure", slow)
            hanging = asyncio.create_task(client.get("/metrics"))
            await asyncio.to_thread(entered.wait, 10)
            assert (await client.post("/embed", json={"texts": "a"})).status_code == 200
            other = Scrape.of(await client.get("/metrics"))
            assert other("trivec_storage_up") == 0 and other("trivec_requests_in_flight") == 2
            assert not hanging.done()
            gate.set()
            assert Scrape.of(await hanging)("trivec_storage_up") == 1

    asyncio.run(run())


def test_scrapes_under_load(tmp_path: Path) -> None:
    """Many at once, while documents come and go and searches run: each is whole, and counts never fall."""

    async def run() -> None:
        async with serving_async(tmp_path) as (client, _):

            async def write(number: int) -> None:
                for place in range(10):
                    await client.post(DOCUMENTS, json=[{"id": f"{number}-{place}", "text": f"cat {place}"}])
                    await client.post("/search", json={"query": "cat"})
                    await client.delete(f"{DOCUMENTS}/{number}-{place}")

            async def watch() -> list[float]:
                return [
                    Scrape.of(await client.get("/metrics"))("trivec_documents_stored_total")
                    for _ in range(10)
                ]

            *_, first, second = await asyncio.gather(
                *(write(number) for number in range(3)), watch(), watch()
            )
            assert first == sorted(first) and second == sorted(second)
            last = Scrape.of(await client.get("/metrics"))
            assert last("trivec_documents_stored_total") == last("trivec_search_seconds_count") == 30
            assert last("trivec_documents") == 0

    asyncio.run(run())


def test_it_answers_while_the_model_loads_or_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, failed = threading.Event(), threading.Event()

    def load_model(_: Settings) -> FakeModel:
        assert go.wait(20)
        raise ValueError("no such checkpoint")

    monkeypatch.setattr(main, "load_model", load_model)
    app = main.create_app(Settings(data_dir=tmp_path), on_load_failure=lambda _: failed.set())
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.post("/embed", json={"texts": "a"}).status_code == 503
        early = scraped(client)
        assert early("trivec_ready") == 0 and not early.has("trivec_model_info")
        assert early("trivec_requests_total", status="503", code="not_ready") == 1
        go.set()
        assert failed.wait(20)
        assert scraped(client)("trivec_ready") == 0


def test_it_answers_during_the_shutdown(client: TestClient, tmp_path: Path) -> None:
    with serving(tmp_path) as leaving:
        assert scraped(leaving)("trivec_ready") == 1
        leaving.app.state.service.begin_drain()  # type: ignore[attr-defined]
        assert scraped(leaving)("trivec_ready") == 0
    assert scraped(client)("trivec_ready") == 1  # another application of the same process


def test_a_pass_that_hangs_is_not_ready(tmp_path: Path) -> None:
    async def run() -> None:
        model = FakeModel()
        async with serving_async(tmp_path, model, request_timeout_s=1) as (client, _):
            model.entered.acquire()
            model.gate.clear()
            late = asyncio.create_task(client.post("/embed", json={"texts": "a"}))
            await asyncio.to_thread(model.entered.acquire, timeout=10)
            assert (await late).status_code == 504
            patient = {"X-Request-Timeout": "10"}
            while Scrape.of(await client.get("/metrics", headers=patient))("trivec_ready") == 1:
                await asyncio.sleep(0.01)
            model.gate.set()
            while Scrape.of(await client.get("/metrics", headers=patient))("trivec_ready") == 0:
                await asyncio.sleep(0.01)

    asyncio.run(run())


def test_applications_of_one_process_count_apart(tmp_path: Path) -> None:
    with serving(tmp_path / "1") as one, serving(tmp_path / "2") as two:
        one.post("/embed", json={"texts": "a"})
        one.post(DOCUMENTS, json=[{"text": "cat"}])
        assert scraped(one)("trivec_requests_total") == 2
        assert scraped(two)("trivec_requests_total") == 0
        assert scraped(one)("trivec_change_seconds_count", change="upsert") == 1
        assert scraped(two)("trivec_change_seconds_count") == 0


def test_an_application_may_start_again(tmp_path: Path) -> None:
    app = main.create_app(Settings(data_dir=tmp_path), model=FakeModel())
    for start in range(2):
        with TestClient(app) as client:
            found = scraped(client)  # twice the same series would be refused
            assert found("trivec_storage_up") == 1 and found("trivec_requests_total") == start


class BadModel(FakeModel):
    """Has no card: it cannot even be probed."""

    def tokenize(self, texts: Any, max_length: int | None, *, count_terms: Any = None) -> Any:
        raise RuntimeError("no tokenizer")


def test_a_start_that_fails_leaves_nothing_registered(tmp_path: Path) -> None:
    model = BadModel()
    app = main.create_app(Settings(data_dir=tmp_path), model=model)
    with pytest.raises(RuntimeError), TestClient(app):
        pass
    model.tokenize = FakeModel().tokenize  # type: ignore[method-assign]
    with TestClient(app) as client:
        assert scraped(client)("trivec_ready") == 1


# formats


def test_the_format_follows_accept(client: TestClient) -> None:
    plainly = client.get("/metrics")
    assert plainly.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "_created" not in plainly.text
    asked = client.get("/metrics", headers={"Accept": PROMETHEUS_3})
    assert asked.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert asked.text.endswith("# EOF\n")
    names = {family.name.removesuffix("_info") for family in openmetrics(asked.text)}
    assert names == {
        family.name.removesuffix("_total").removesuffix("_info") for family in plain(plainly.text)
    }
    assert client.head("/metrics").status_code == 200 and not client.head("/metrics").content


@pytest.mark.parametrize("version", ["abc", "1.x", "9" * 5000, "²", "", "-1", '1.1."é', "2.0.0"])
@pytest.mark.parametrize("kind", ["text/plain", "application/openmetrics-text"])
def test_a_strange_version_is_passed_over(client: TestClient, kind: str, version: str) -> None:
    header = f"{kind}; version={version}".encode("latin-1")
    answer = client.get("/metrics", headers=[(b"Accept", header)])
    assert answer.status_code == 200
    assert not version or version not in answer.headers["Content-Type"]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "text/plain",
                "application/openmetrics-text",
                "*/*",
                ";",
                ",",
                "version=",
                "escaping=",
                "q=",
                "=",
            ]
        )
        | st.sampled_from(["1.0.0", "abc", "1.x", "0.0.4", "9" * 5000, "-1", "²", "é", '"', "version =2.0.0"])
        | st.text(st.characters(max_codepoint=255, exclude_categories=["Cc"]), max_size=4),
        max_size=8,
    )
)
def test_no_accept_header_is_a_500(client: TestClient, parts: list[str]) -> None:
    header = "".join(parts).encode("latin-1")
    answer = client.get("/metrics", headers=[(b"Accept", header)])
    assert answer.status_code == 200
    kind = answer.headers["Content-Type"]
    assert kind.startswith(("text/plain; version=", "application/openmetrics-text; version=1.0.0"))
    (openmetrics if kind.startswith("application") else plain)(answer.text)


def test_every_name_has_the_prefix_and_follows_the_conventions(client: TestClient) -> None:
    for family in plain(client.get("/metrics").text):
        assert family.name.startswith(("trivec_", "process_", "python_")), family.name
        assert family.documentation, family.name
        if family.name.startswith("trivec_") and family.type == "counter":
            assert all(one.name.endswith("_total") for one in family.samples)
        assert not family.name.endswith(("_ms", "_mb"))


def test_sums_of_measures() -> None:
    """What the collector adds up, without a service."""
    derived = DerivedMeasure(recent=1, segments=2, dead_rows=3, segment_bytes=4)
    shown = [
        ("a", CollectionMeasure("a", 1, {"text": 1}, None, 0)),
        (OTHERS, CollectionMeasure("b", 2, {}, derived, 0)),
    ]
    found = {
        (one.name, *sorted(one.labels.values())): one.value
        for family in scrape._collections(iter(shown))
        for one in family.samples
    }
    assert found["trivec_documents", "a"] == 1 and found["trivec_documents", OTHERS] == 2
    assert ("trivec_segments", "a") not in found and found["trivec_segments", OTHERS] == 2
