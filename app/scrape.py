"""What is looked up only when metrics are asked for: the queue, the model, and what the index holds.

`collect` runs in a worker thread, for it reads SQLite and asks the disk. A disk that hangs holds one such
thread up; later scrapes go without the index's figures, and say so by `trivec_storage_up`.
"""

from __future__ import annotations

import logging
import platform
import threading
from collections.abc import Iterator, Sequence

from prometheus_client import Metric
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

from app.index.errors import IndexFault
from app.index.measure import CollectionMeasure, Measure
from app.ports import CountsAttention
from app.service import Service

MOST_COLLECTIONS = 200
"""With series of their own, the largest ones; all others are added up."""
OTHERS = "(others)"
"""No collection can have this name."""
PATIENCE_S = 2.0
"""For a scrape that reads the index at the same moment."""
_log = logging.getLogger("trivec.metrics")


class ServiceCollector:
    """A collector of prometheus_client over a running service."""

    def __init__(self, service: Service, version: str, most_collections: int = MOST_COLLECTIONS) -> None:
        self._service = service
        self._version = version
        self._most_collections = most_collections
        self._reading = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """All of them, as they are now. Blocks."""
        yield from self._state()
        yield from self._queue()
        yield from self._attention()
        yield _gauge(
            "trivec_cache_bytes",
            "Bytes of the query embeddings in the cache, about.",
            self._service.cache.bytes,
        )
        measure = self._measure()
        yield _gauge(
            "trivec_storage_up", "1 where the index answered this scrape, else 0.", measure is not None
        )
        if measure is not None:
            yield from _folder(measure)
            yield from _collections(self._shown(measure.collections))

    def _state(self) -> Iterator[Metric]:
        service = self._service
        yield _gauge(
            "trivec_ready",
            "1 while requests are taken: a forward pass has worked, none hangs, no shutdown has begun.",
            service.ready and service.batcher.busy_s <= service.settings.request_timeout_s,
        )
        build = InfoMetricFamily("trivec_build", "Versions of the service and of Python.")
        build.add_metric([], {"version": self._version, "python": platform.python_version()})
        yield build
        model = InfoMetricFamily("trivec_model", "The model in use; absent until it is loaded.")
        if service.loaded:
            card = service.model.card
            facts = {
                "name": card.name,
                "revision": card.revision or "",
                "fingerprint": card.fingerprint,
                "engine": card.engine,
                "precision": card.precision,
            }
            model.add_metric([], facts)
        yield model

    def _queue(self) -> Iterator[Metric]:
        service = self._service
        waiting = service.batcher.waiting() if service.loaded else {}
        tokens = GaugeMetricFamily(
            "trivec_queue_tokens", "Tokens that wait and that no batch has taken.", labels=["lane"]
        )
        texts = GaugeMetricFamily("trivec_queue_texts", "The texts that they are of.", labels=["lane"])
        for lane, (waiting_texts, waiting_tokens) in waiting.items():
            tokens.add_metric([lane], waiting_tokens)
            texts.add_metric([lane], waiting_texts)
        yield tokens
        yield texts
        yield _gauge(
            "trivec_queue_limit_tokens",
            "Tokens waiting beyond which requests are answered 429.",
            service.settings.max_queue_tokens,
        )
        limit = GaugeMetricFamily(
            "trivec_batch_limit_tokens",
            "Tokens that a batch may have: the setting, or less where memory did not suffice for it.",
        )
        if service.loaded:
            limit.add_metric([], service.batcher.batch_tokens)
        yield limit
        yield _gauge(
            "trivec_forward_busy_seconds",
            "How long the forward pass under way has taken so far; 0 when there is none.",
            service.batcher.busy_s if service.loaded else 0.0,
        )

    def _attention(self) -> Iterator[Metric]:
        needed = CounterMetricFamily(
            "trivec_attention_scores_needed",
            "Attention scores between tokens of one text, counted once for all heads and blocks.",
        )
        computed = CounterMetricFamily(
            "trivec_attention_scores_computed",
            "All attention scores computed, with padding or another text behind a mask among them.",
        )
        share = GaugeMetricFamily(
            "trivec_padding_share",
            "Share of all attention scores so far that were for nothing. Linear layers compute no padding.",
        )
        model: object = self._service.model if self._service.loaded else None
        if isinstance(model, CountsAttention):
            of_texts, of_all = model.attention_scores
            needed.add_metric([], of_texts)
            computed.add_metric([], of_all)
            share.add_metric([], 1 - of_texts / of_all if of_all else 0.0)
        yield needed
        yield computed
        yield share

    def _measure(self) -> Measure | None:
        if not self._reading.acquire(timeout=PATIENCE_S):
            return None
        try:
            return self._service.database.measure()
        except (IndexFault, OSError) as error:
            _log.warning("the index could not be measured: %s", type(error).__name__)
            return None
        finally:
            self._reading.release()

    def _shown(self, collections: Sequence[CollectionMeasure]) -> Iterator[tuple[str, CollectionMeasure]]:
        ordered = sorted(collections, key=lambda one: (-one.count, one.name))
        for place, one in enumerate(ordered):
            yield (one.name if place < self._most_collections else OTHERS), one


def _folder(measure: Measure) -> Iterator[Metric]:
    yield _gauge("trivec_database_bytes", "Size of the SQLite file.", measure.database_bytes)
    yield _gauge("trivec_database_wal_bytes", "Size of its write-ahead log.", measure.wal_bytes)
    yield _gauge(
        "trivec_disk_free_bytes",
        "Bytes left for this user on the data folder's disk.",
        measure.disk_free_bytes,
    )
    yield _gauge("trivec_collections", "Collections.", len(measure.collections))


def _collections(shown: Iterator[tuple[str, CollectionMeasure]]) -> Iterator[Metric]:
    """Sums by name: those without series of their own share one."""
    texts = {
        "trivec_documents": "Documents of a collection.",
        "trivec_recent_documents": "Documents in memory, in no segment yet; absent until the index is read.",
        "trivec_segments": "Segments of a collection; absent until the index is read.",
        "trivec_damaged_rows": "Stored rows met since the start that are not what was written.",
        "trivec_dead_rows": "Rows that wait to be merged away, of documents replaced or deleted since.",
    }
    sums: dict[str, dict[str, int]] = {name: {} for name in texts}
    sizes: dict[tuple[str, str], int] = {}

    def add(name: str, collection: str, value: int) -> None:
        sums[name][collection] = sums[name].get(collection, 0) + value

    for label, one in shown:
        add("trivec_documents", label, one.count)
        add("trivec_damaged_rows", label, one.damaged)
        parts = dict(one.part_bytes)
        if (derived := one.derived) is not None:
            add("trivec_recent_documents", label, derived.recent)
            add("trivec_segments", label, derived.segments)
            add("trivec_dead_rows", label, derived.dead_rows)
            parts["segments"] = derived.segment_bytes
        for part, size in parts.items():
            sizes[label, part] = sizes.get((label, part), 0) + size
    for name, text in texts.items():
        family = GaugeMetricFamily(name, text, labels=["collection"])
        for label, value in sums[name].items():
            family.add_metric([label], value)
        yield family
    held = GaugeMetricFamily(
        "trivec_index_bytes",
        "Bytes of each part as stored, SQLite's own overhead left out; segments are derived files beside it.",
        labels=["collection", "part"],
    )
    for (label, part), size in sizes.items():
        held.add_metric([label, part], size)
    yield held


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))
