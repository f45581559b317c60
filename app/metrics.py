"""What Prometheus reads at `GET /metrics`: counts and times, kept for one application object.

Label values come from this program: route templates, methods, codes of errors, lanes. None comes from a
client, so their number is bounded. What is only looked up when somebody asks is in `app/scrape.py`.
Thread-safe, as prometheus_client is.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Metric,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder

from app.endings import Reason
from app.index.timing import Change, Stage, Upkeep, Work
from app.lanes import Lane

REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
QUEUE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
INDEX_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
UPKEEP_SECONDS = (0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800)
BATCH_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
BATCH_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

_VERSION = re.compile(r"version\s*=\s*([^;,]*)")
_KNOWN_VERSIONS = ("0.0.1", "0.0.4", "1.0.0")


class _Registry(CollectorRegistry):
    """Without the time at which each series began, which the plain format writes as a second series."""

    def collect(self) -> Iterator[Metric]:
        for metric in super().collect():
            metric.samples = [one for one in metric.samples if not one.name.endswith("_created")]
            yield metric


class Metrics:
    """The counters of one application. Fits `app.observer.Observer`."""

    def __init__(self) -> None:
        self.registry = _Registry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)

        self._requests = counter(
            "trivec_requests_total",
            "Requests answered, by route template, method, status and, where it is an error, its code. "
            "Status 499 was never sent: the client had left.",
            ["route", "method", "status", "code"],
        )
        self._request_seconds = histogram(
            "trivec_request_seconds",
            "From a request's arrival to the last byte of its answer.",
            ["route"],
            buckets=REQUEST_SECONDS,
        )
        self._in_flight = gauge(
            "trivec_requests_in_flight",
            "Requests that came and are not answered yet; a scrape is one.",
        )
        self._received = counter("trivec_received_bytes_total", "Bytes of request bodies read.", ["route"])
        self._sent = counter("trivec_sent_bytes_total", "Bytes of answers' bodies.", ["route"])
        self._errors = counter(
            "trivec_errors_total", "Requests that ended with an error, by its code.", ["code"]
        )
        self._document_errors = counter(
            "trivec_document_errors_total",
            "Documents of uploads that were not stored, by the code of their own error.",
            ["code"],
        )
        self._documents_stored = counter(
            "trivec_documents_stored_total", "Documents of uploads that are durable and searchable."
        )

        self._connections = gauge(
            "trivec_connections", "Open connections, those of this scrape among them; `trivec serve` only."
        )
        self._idle_connections = gauge("trivec_idle_connections", "Of these, those without a request.")
        self._connections_limit = gauge(
            "trivec_connections_limit",
            "Open connections beyond which an idle one is closed or the new one is refused.",
        )
        self._connections_closed = counter(
            "trivec_connections_closed_total",
            "Connections that the server refused or closed by itself, by reason.",
            ["reason"],
        )

        self._queue_wait = histogram(
            "trivec_queue_wait_seconds",
            "From a request's entry into the queue to the batch that took its first text; where none did, "
            "to the moment when its client gave up.",
            ["lane"],
            buckets=QUEUE_SECONDS,
        )
        self._batch_tokens = histogram(
            "trivec_batch_tokens", "Tokens of a batch.", ["lane"], buckets=BATCH_TOKENS
        )
        self._batch_texts = histogram(
            "trivec_batch_texts", "Texts of a batch.", ["lane"], buckets=BATCH_TEXTS
        )
        self._inference = histogram(
            "trivec_inference_seconds",
            "The model's work on a batch, repeats after a failure among it, other batches in between not.",
            ["lane"],
            buckets=REQUEST_SECONDS,
        )
        self._tokens = counter("trivec_tokens_total", "Tokens that the model has taken.", ["lane"])
        self._texts = counter(
            "trivec_texts_total",
            "Texts that the model has taken; one that several requests wait for is one.",
            ["lane"],
        )
        self._truncated = counter(
            "trivec_truncated_texts_total", "Texts cut to their length limit before they were embedded."
        )
        self._failures = counter(
            "trivec_forward_failures_total",
            "Forward passes that raised, had not enough memory, or gave no sound numbers.",
        )
        self._held = counter(
            "trivec_bulk_held_seconds_total",
            "Seconds for which bulk batches waited for searches that were under way in the index.",
        )
        self._cache_hits = counter("trivec_cache_hits_total", "Query texts whose embedding was in the cache.")
        self._cache_misses = counter(
            "trivec_cache_misses_total", "Query texts that were looked for in the cache and not found."
        )
        self._search = histogram(
            "trivec_search_seconds", "One search in a collection's index.", buckets=INDEX_SECONDS
        )
        self._stages = histogram(
            "trivec_search_stage_seconds",
            "A stage of a search; candidates and scoring may take several turns.",
            ["stage"],
            buckets=INDEX_SECONDS,
        )
        self._changes = histogram(
            "trivec_change_seconds",
            "A change of a collection, from the wait for its turn until it is durable.",
            ["change"],
            buckets=INDEX_SECONDS,
        )
        self._upkeep = histogram(
            "trivec_upkeep_seconds",
            "Segments sealed and merged behind the scenes.",
            ["work"],
            buckets=UPKEEP_SECONDS,
        )
        self._upkeep_failures = counter(
            "trivec_upkeep_failures_total", "Segments that could not be written; tried again later.", ["work"]
        )
        self._begin()

    def _begin(self) -> None:
        """Let every series whose labels are known begin at 0: a first increase is seen only so."""
        for lane in get_args(Lane):
            for metric in (
                self._queue_wait,
                self._batch_tokens,
                self._batch_texts,
                self._inference,
                self._tokens,
                self._texts,
            ):
                metric.labels(lane)
        for kinds, metric in (
            (Reason, self._connections_closed),
            (Stage, self._stages),
            (Change, self._changes),
            (Upkeep, self._upkeep),
            (Upkeep, self._upkeep_failures),
        ):
            for kind in get_args(kinds):
                metric.labels(kind)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All metrics and their content type, in the format that `accept` prefers. Blocks."""
        encode, content_type = choose_encoder(_sane(accept))
        return encode(self.registry), content_type

    @contextmanager
    def request_in_flight(self) -> Iterator[None]:
        """Around a request."""
        with self._in_flight.track_inprogress():
            yield

    def request(
        self,
        *,
        route: str,
        method: str,
        status: int,
        code: str,
        seconds: float,
        received: int,
        sent: int,
        trace_id: str | None,
    ) -> None:
        """A request that has ended; `code` is empty where it is no error."""
        self._requests.labels(route, method, str(status), code).inc()
        exemplar = {"trace_id": trace_id} if trace_id is not None else None
        self._request_seconds.labels(route).observe(seconds, exemplar)
        self._received.labels(route).inc(received)
        self._sent.labels(route).inc(sent)
        if code:
            self._errors.labels(code).inc()

    def watch_connections(self, most: int, open_now: Callable[[], int], idle_now: Callable[[], int]) -> None:
        """Ask a server for its connections at each scrape, in the scrape's thread."""
        self._connections_limit.set(most)
        self._connections.set_function(open_now)
        self._idle_connections.set_function(idle_now)

    def connection_closed(self, reason: Reason) -> None:
        """A connection that the server has ended by itself."""
        self._connections_closed.labels(reason).inc()

    def documents_stored(self, count: int) -> None:
        """Documents that are durable."""
        self._documents_stored.inc(count)

    def documents_refused(self, codes: Mapping[str, int]) -> None:
        """Documents that were not stored, by code."""
        for code, count in codes.items():
            self._document_errors.labels(code).inc(count)

    def waited(self, lane: Lane, seconds: float) -> None:
        """See `Observer`."""
        self._queue_wait.labels(lane).observe(seconds)

    def batch(self, lane: Lane, texts: int, tokens: int, seconds: float) -> None:
        """See `Observer`."""
        self._batch_texts.labels(lane).observe(texts)
        self._batch_tokens.labels(lane).observe(tokens)
        self._inference.labels(lane).observe(seconds)
        self._texts.labels(lane).inc(texts)
        self._tokens.labels(lane).inc(tokens)

    def forward_failed(self) -> None:
        """See `Observer`."""
        self._failures.inc()

    def held(self, seconds: float) -> None:
        """See `Observer`."""
        self._held.inc(seconds)

    def texts_truncated(self, count: int) -> None:
        """Texts that were cut."""
        self._truncated.inc(count)

    def cache_looked_up(self, hits: int, misses: int) -> None:
        """Query texts that were looked for in a cache of embeddings."""
        self._cache_hits.inc(hits)
        self._cache_misses.inc(misses)

    @contextmanager
    def timed(self, work: Work) -> Iterator[None]:
        """Around a piece of the index's work; see `app.index.timing`."""
        began = time.perf_counter()
        try:
            yield
        except BaseException:
            if work in get_args(Upkeep):
                self._upkeep_failures.labels(work).inc()
            raise
        finally:
            self._of(work).observe(time.perf_counter() - began)

    def _of(self, work: Work) -> Histogram:
        if work == "search":
            return self._search
        kinds: Iterable[tuple[object, Histogram]] = (
            (Stage, self._stages),
            (Change, self._changes),
            (Upkeep, self._upkeep),
        )
        return next(metric for kind, metric in kinds if work in get_args(kind)).labels(work)


def _sane(accept: str) -> str:
    """Without versions that prometheus_client does not know: it takes them for numbers, whatever they are."""
    kept = [
        one
        for one in accept.split(",")
        if (found := _VERSION.search(one)) is None or found[1].strip() in _KNOWN_VERSIONS
    ]
    return ",".join(kept)
