"""Spans by the OpenTelemetry SDK. Imported only where traces are wanted; needs the extra `otel`.

The SDK itself reads the standard OTEL_* variables: collector, headers, sampling, resource, batches. Its
provider is kept here and never made global, so that each application has its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry import context, propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from starlette.datastructures import Headers
from starlette.types import Scope

from app.tracing import Fact, Outcome, RequestSpan

_log = logging.getLogger("trivec.tracing")

MOST_SPANS = 100
"""Parts of one request: an upload of millions of documents must not be a trace of millions of spans."""


@dataclass(slots=True)
class _Budget:
    left: int = MOST_SPANS
    dropped: int = 0


class _ServerSpan:
    """Fits `RequestSpan`."""

    def __init__(self, span: Span, budget: _Budget) -> None:
        found = span.get_span_context()
        self.trace_id: str | None = trace.format_trace_id(found.trace_id) if found.is_valid else None
        self.sampled = bool(found.trace_flags.sampled)
        self._span, self._budget = span, budget

    def finish(self, outcome: Outcome) -> None:
        span = self._span
        span.update_name(f"{outcome.method} {outcome.route}")
        span.set_attribute("http.request.method", outcome.method)
        span.set_attribute("http.route", outcome.route)
        span.set_attribute("http.response.status_code", outcome.status)
        for name, fact in outcome.facts.items():
            span.set_attribute(f"trivec.{name}", fact)
        if self._budget.dropped:
            span.set_attribute("trivec.spans_dropped", self._budget.dropped)
        if outcome.code:
            span.set_attribute("error.type", outcome.code)
        if outcome.status >= 500:
            span.set_status(Status(StatusCode.ERROR))


class Traced:
    """Fits `Tracing`."""

    def __init__(self, make_provider: Callable[[], TracerProvider], version: str | None = None) -> None:
        """`make_provider` is called by `open`, and its provider is shut down by `close`."""
        self._make_provider = make_provider
        self._version = version
        self._provider: TracerProvider | None = None
        self._tracer: Tracer = trace.NoOpTracer()
        self._budgets = context.create_key("trivec-budget")

    def open(self) -> None:
        """See `Tracing`. Variables that cannot be used are logged, and there are no traces."""
        try:
            self._provider = self._make_provider()
        except (ValueError, OSError) as error:
            _log.error("there are no traces, OTEL_* variables cannot be used: %s", error)
            return
        self._tracer = self._provider.get_tracer("trivec", self._version)

    def close(self, timeout_s: float) -> None:
        """See `Tracing`. A collector that does not answer is left after the time."""
        provider, self._provider, self._tracer = self._provider, None, trace.NoOpTracer()
        if provider is not None:
            # A daemon: its retries must not keep the process from ending.
            ending = threading.Thread(target=provider.shutdown, name="trivec-traces", daemon=True)
            ending.start()
            ending.join(timeout_s)

    @contextmanager
    def request(self, scope: Scope) -> Iterator[RequestSpan]:
        """See `Tracing`."""
        budget = _Budget()
        parent = context.set_value(self._budgets, budget, propagate.extract(Headers(scope=scope)))
        span = self._tracer.start_span(
            "HTTP",
            context=parent,
            kind=SpanKind.SERVER,
            attributes={
                "url.scheme": str(scope.get("scheme", "http")),
                "network.protocol.version": str(scope.get("http_version", "1.1")),
            },
        )
        token = context.attach(trace.set_span_in_context(span, parent))
        try:
            yield _ServerSpan(span, budget)
        finally:
            context.detach(token)
            span.end()

    @contextmanager
    def span(self, name: str, **facts: Fact) -> Iterator[None]:
        """See `Tracing`. Of an exception only its type is told."""
        if not self._may():
            yield
            return
        with self._tracer.start_as_current_span(
            name, attributes=_named(facts), record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except BaseException as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(Status(StatusCode.ERROR))
                raise

    def interval(self, name: str, began: float, ended: float, **facts: Fact) -> None:
        """See `Tracing`."""
        if self._may():
            zero = time.time_ns() - time.monotonic_ns()
            span = self._tracer.start_span(name, start_time=zero + int(began * 1e9), attributes=_named(facts))
            span.end(zero + int(ended * 1e9))

    def _may(self) -> bool:
        """Whether one more span belongs to the request under way, if there is one."""
        budget = context.get_value(self._budgets)
        if not isinstance(budget, _Budget):
            return False
        if not budget.left:
            budget.dropped += 1
            return False
        budget.left -= 1
        return True


def _named(facts: dict[str, Fact]) -> dict[str, Fact]:
    return {f"trivec.{name}": fact for name, fact in facts.items()}


def exporting(version: str) -> Traced:
    """Spans to the collector that OpenTelemetry's variables name, by OTLP over HTTP."""

    def make_provider() -> TracerProvider:
        # What the operator's variables say of the resource goes before our own words.
        ours = Resource({"service.name": "trivec", "service.version": version})
        resource = Resource.create(dict(ours.merge(OTELResourceDetector().detect()).attributes))
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return provider

    return Traced(make_provider, version)
