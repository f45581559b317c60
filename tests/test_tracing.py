"""Requests as OpenTelemetry spans: what belongs to what, what is never in them, nothing without the extra."""

from __future__ import annotations

import asyncio
import http.server
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from starlette.testclient import TestClient

from app.otel import MOST_SPANS, Traced, exporting
from app.settings import traces_wanted
from app.telemetry import JsonLines
from app.tracing import Untraced, configured_tracing
from tests.fakes import FakeModel, token_id
from tests.http_helpers import serving, serving_async
from tests.metrics_helpers import scraped
from tests.server import running_server

ROOT = Path(__file__).parent.parent
DOCUMENTS = "/collections/default/documents"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


class Watched:
    """Tracing into memory."""

    def __init__(self, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()

        def make_provider() -> TracerProvider:
            provider = TracerProvider(shutdown_on_exit=False, **options)
            provider.add_span_processor(SimpleSpanProcessor(self.exporter))
            return provider

        self.tracing = Traced(make_provider)

    def spans(self) -> list[ReadableSpan]:
        """What has ended, in this order, and forget it."""
        found = list(self.exporter.get_finished_spans())
        self.exporter.clear()
        return found


@contextmanager
def tracing(
    folder: Path, model: FakeModel | None = None, **options: Any
) -> Iterator[tuple[TestClient, Watched]]:
    watched = Watched(**options)
    with serving(folder, model, tracing=watched.tracing) as client:
        watched.spans()
        yield client, watched


def tree(spans: list[ReadableSpan]) -> dict[str, Any]:
    """Names below names; the order of siblings is that of their starts."""
    inside: dict[int | None, list[ReadableSpan]] = {}
    for span in sorted(spans, key=lambda one: one.start_time or 0):
        inside.setdefault(span.parent.span_id if span.parent else None, []).append(span)

    def below(span_id: int | None) -> dict[str, Any]:
        return {one.name: below(one.context.span_id) for one in inside.get(span_id, []) if one.context}

    return below(None)


def test_a_search_as_a_trace(tmp_path: Path) -> None:
    with tracing(tmp_path) as (client, watched):
        client.post(DOCUMENTS, json=[{"text": f"cat {number}"} for number in range(20)])
        stored = watched.spans()
        body = {"query": "cat", "filter": {"a": {"$exists": False}}, "top_k": 2, "candidates": 3}
        assert client.post("/search", json=body).status_code == 200
        found = watched.spans()
    model = {"queue": {}, "inference": {}}
    assert tree(stored) == {
        "POST /collections/{name}/documents": {"tokenize": {}, "model": model, "upsert": {}}
    }
    assert tree(found) == {
        "POST /search": {
            "tokenize": {},
            "model": model,
            "index search": {"filter": {}, "candidates": {}, "scoring": {}, "reading": {}},
        }
    }
    (root,) = (one for one in found if one.parent is None)
    assert root.kind == SpanKind.SERVER and root.status.status_code == StatusCode.UNSET
    attributes = dict(root.attributes or {})
    assert attributes["http.route"] == "/search" and attributes["http.request.method"] == "POST"
    assert attributes["http.response.status_code"] == 200 and attributes["trivec.lane"] == "interactive"
    assert (attributes["trivec.texts"], attributes["trivec.tokens"]) == (1, 3)
    for one in found:
        assert one.start_time is not None and one.end_time is not None
        assert root.start_time <= one.start_time <= one.end_time <= root.end_time  # type: ignore[operator]


def test_the_callers_trace_goes_on_and_stands_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tracing(tmp_path) as (client, watched), caplog.at_level(logging.INFO, "trivec.requests"):
        client.post("/embed", json={"texts": "a"}, headers={"traceparent": TRACEPARENT})
        client.get("/health/live")
        continued, own = (one for one in watched.spans() if one.kind == SpanKind.SERVER)
        metrics = client.get("/metrics", headers={"Accept": "application/openmetrics-text"}).text
    lines = [json.loads(JsonLines().format(one)) for one in caplog.records if one.name == "trivec.requests"]
    assert continued.context is not None and continued.parent is not None
    assert format(continued.context.trace_id, "032x") == lines[0]["trace_id"] == TRACE
    assert format(continued.parent.span_id, "016x") == PARENT
    assert own.context is not None and own.parent is None
    assert format(own.context.trace_id, "032x") == lines[1]["trace_id"] != TRACE
    # Prometheus can lead from a slow request to its trace.
    exemplars = {
        sample.exemplar.labels["trace_id"]
        for family in openmetrics(metrics)
        for sample in family.samples
        if sample.exemplar
    }
    assert {one["trace_id"] for one in lines[:2]} <= exemplars


def test_a_trace_that_nobody_keeps(tmp_path: Path) -> None:
    with tracing(tmp_path, sampler=ParentBased(ALWAYS_OFF)) as (client, watched):
        client.post("/embed", json={"texts": "a"})
        unsampled = f"00-{TRACE}-{PARENT}-00"
        client.post("/embed", json={"texts": "a"}, headers={"traceparent": unsampled})
        assert watched.spans() == []
        assert TRACE not in client.get("/metrics", headers={"Accept": "application/openmetrics-text"}).text
        client.post("/embed", json={"texts": "a"}, headers={"traceparent": TRACEPARENT})
        assert len(watched.spans()) == 5


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["traceparent", "tracestate", "baggage"]),
    st.binary(max_size=80) | st.just(TRACEPARENT.encode()) | st.just(b"x=" + b"9" * 9000),
)
def test_no_header_of_a_trace_is_a_500(traced: TestClient, name: str, value: bytes) -> None:
    value = bytes(byte for byte in value if byte >= 32)
    headers = [(name.encode(), value), (b"traceparent", TRACEPARENT.encode())]
    assert traced.get("/health/live", headers=headers).status_code == 200


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with tracing(tmp_path_factory.mktemp("data")) as (client, _):
        yield client


class Explosive(FakeModel):
    """Its tokenizer quotes the text that it stumbles over."""

    def tokenize(self, texts: Any, max_length: int | None, *, count_terms: Any = None) -> Any:
        if "dynamite" in texts[0]:
            raise RuntimeError(f"cannot read {texts[0]}")
        return super().tokenize(texts, max_length)


def test_errors_are_told_by_code_and_type_without_their_words(tmp_path: Path) -> None:
    with tracing(tmp_path, Explosive(poison={token_id("arsenic")})) as (client, watched):
        client.post("/tokenize", json={"texts": "private dynamite"})
        client.post("/embed", json={"texts": "private arsenic"})
        client.get("/collections/none/documents/private-id")
        client.request("PRIVATE", "/private-path?private=1")
        client.app.state.service.database.list = None  # type: ignore[attr-defined]
        client.get("/collections")
        spans = watched.spans()
    roots = {one.name: one for one in spans if one.kind == SpanKind.SERVER}
    told = {
        name: (dict(one.attributes or {})["error.type"], one.status.status_code)
        for name, one in roots.items()
    }
    assert told == {
        "POST /tokenize": ("internal_error", StatusCode.ERROR),
        "POST /embed": ("inference_failed", StatusCode.ERROR),
        "GET /collections/{name}/documents/{id:rest}": ("collection_not_found", StatusCode.UNSET),
        "_OTHER unmatched": ("not_found", StatusCode.UNSET),
        "GET /collections": ("internal_error", StatusCode.ERROR),
    }
    written = "".join(one.to_json() for one in spans).lower()
    assert "private" not in written and "secret" not in written
    assert not any(one.events for one in spans)
    (inside,) = (one for one in spans if one.name == "tokenize" and not one.status.is_ok)
    assert dict(inside.attributes or {})["error.type"] == "RuntimeError"


def test_what_fails_inside_is_marked(tmp_path: Path) -> None:
    async def run() -> None:
        model, watched = FakeModel(), Watched()
        async with serving_async(tmp_path, model, tracing=watched.tracing) as (client, _):
            watched.spans()
            model.entered.acquire()
            model.gate.clear()
            late = await client.post("/embed", json={"texts": "a"}, headers={"X-Request-Timeout": "1"})
            model.gate.set()
            assert late.status_code == 504
        spans = {one.name: one for one in watched.spans()}
        assert spans["POST /embed"].status.status_code == StatusCode.ERROR
        assert spans["model"].status.status_code == StatusCode.ERROR
        assert dict(spans["model"].attributes or {})["error.type"] == "CancelledError"
        assert "queue" not in spans  # nobody knows where the time went

    asyncio.run(run())


def test_a_long_upload_is_no_endless_trace(tmp_path: Path) -> None:
    with tracing(tmp_path) as (client, watched):
        lines = b"\n".join(json.dumps({"text": f"{'word ' * 500}{n}"}).encode() for n in range(600))
        answer = client.post(DOCUMENTS, content=lines, headers={"Content-Type": "application/x-ndjson"})
        assert answer.json()["upserted"] == 600
        spans = watched.spans()
        assert len(spans) == MOST_SPANS + 1
        (root,) = (one for one in spans if one.parent is None)
        assert dict(root.attributes or {})["trivec.spans_dropped"] > 0
        client.post("/embed", json={"texts": "a"})
        assert len(watched.spans()) == 5  # the next request has its own allowance


def test_work_of_nobodys_request_has_no_span(tmp_path: Path) -> None:
    with tracing(tmp_path) as (client, watched):
        client.post(DOCUMENTS, json=[{"text": "cat"}])
        watched.spans()
        assert client.app.state.service.database.get("default").seal(1)  # type: ignore[attr-defined]
        assert watched.spans() == []


def test_requests_at_once_keep_their_spans_apart(tmp_path: Path) -> None:
    async def run() -> None:
        watched = Watched()
        async with serving_async(tmp_path, tracing=watched.tracing) as (client, _):
            await client.post(DOCUMENTS, json=[{"text": "cat"}])
            watched.spans()
            await asyncio.gather(*(client.post("/search", json={"query": "cat"}) for _ in range(20)))
        spans = watched.spans()
        traces: dict[int, list[str]] = {}
        for one in spans:
            assert one.context is not None
            traces.setdefault(one.context.trace_id, []).append(one.name)
        assert len(traces) == 20
        wanted = [
            "POST /search",
            "tokenize",
            "model",
            "queue",
            "inference",
            "index search",
            "scoring",
            "reading",
        ]
        assert all(sorted(names) == sorted(wanted) for names in traces.values())

    asyncio.run(run())


# what the environment says


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
        ({"OTEL_TRACES_EXPORTER": " OTLP,console"}, True),
        ({"OTEL_TRACES_EXPORTER": "console", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "True"}, False),
    ],
)
def test_when_traces_are_wanted(environ: dict[str, str], wanted: bool) -> None:
    assert traces_wanted(environ) is wanted


def test_without_the_variables_nothing_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.http_helpers import serving\n"
        "with serving(Path(sys.argv[1])) as client: client.post('/embed', json={'texts': 'a'})\n"
        "print([one for one in sys.modules if one.startswith(('opentelemetry.sdk', 'app.otel'))])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]", found.stderr


def test_wanted_without_the_extra_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:1")
    assert not isinstance(configured_tracing("1"), Untraced)
    monkeypatch.delitem(sys.modules, "app.otel")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert isinstance(configured_tracing("1"), Untraced)
    assert "trivec[otel]" in caplog.text


def test_variables_that_cannot_be_used_do_not_stop_the_server(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "999999")  # more than its queue holds
    wrong = exporting("1")
    wrong.open()
    with wrong.request({"type": "http", "headers": []}) as span:
        assert span.trace_id is None
    wrong.close(1)
    assert "there are no traces" in caplog.text


def test_the_resource_is_ours_unless_the_operator_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    def name() -> object:
        tracing = exporting("1.2")
        tracing.open()
        assert tracing._provider is not None
        found = dict(tracing._provider.resource.attributes)
        tracing.close(5)
        assert found["service.version"] == "1.2"
        return found["service.name"]

    assert name() == "trivec"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "search-eu")
    assert name() == "search-eu"


class _Collector(http.server.BaseHTTPRequestHandler):
    bodies: list[bytes]

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def test_a_served_application_sends_its_spans(tmp_path: Path) -> None:
    """The real command line, with the standard variables, to a collector that keeps what it gets."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    collector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Collector)
    collector.bodies = []  # type: ignore[attr-defined]
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{collector.server_port}"
    with running_server(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_SERVICE_NAME="mine") as (
        client,
        process,
    ):
        answer = client.post("/embed", json={"texts": "a"}, headers={"traceparent": TRACEPARENT})
        assert answer.status_code == 200
        found = scraped(client)
        assert found("trivec_model_info", engine="tensorflow", name="mini") == 1
        assert found("trivec_attention_scores_needed_total") > 0
        assert found("trivec_attention_scores_needed_total") <= found(
            "trivec_attention_scores_computed_total"
        )
        process.terminate()
        assert process.wait(60) == 0
    collector.shutdown()
    collector.server_close()
    names: dict[str, set[str]] = {}
    for body in collector.bodies:  # type: ignore[attr-defined]
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = {one.key: one.value.string_value for one in resource.resource.attributes}[
                "service.name"
            ]
            assert service == "mine"
            for scope in resource.scope_spans:
                for span in scope.spans:
                    names.setdefault(span.trace_id.hex(), set()).add(span.name)
    assert names[TRACE] == {"POST /embed", "tokenize", "model", "queue", "inference"}


def test_a_collector_that_is_away_holds_up_neither_requests_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.main.TRACES_S", 0.1)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with serving(tmp_path) as client:
        assert client.post("/embed", json={"texts": "a"}).status_code == 200


def test_fastapis_own_telemetry_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take a provider that is set for the process, and send paths with the ids of documents."""
    from opentelemetry import trace

    watched = Watched()
    watched.tracing.open()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", watched.tracing._provider)

    async def run() -> None:
        async with serving_async(tmp_path) as (client, _):
            await client.get(f"{DOCUMENTS}/private-id")

    asyncio.run(run())
    assert watched.spans() == []
