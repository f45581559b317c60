"""The running service: model, batcher, index and the limits between them, and whether it may answer.

Handlers reach the model through here only: texts are tokenised in a worker thread, their ids go to
the batcher, the embeddings come back in order. It knows no wire format.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from threading import Event
from typing import Literal, TypeVar

import anyio
import anyio.to_thread
from starlette.requests import Request

from app.batcher import Batcher
from app.cache import Asked, QueryCache
from app.errors import (
    Draining,
    InferenceFailed,
    LimitExceeded,
    LoadFailed,
    NotReady,
    OutputUnavailable,
    TextTooLong,
)
from app.index.collection import Collection, CollectionSettings, Database
from app.index.timing import Work
from app.index.warming import Warmer, import_kernels
from app.lanes import Batched, Lane
from app.metrics import Metrics
from app.ports import TextModel, Tokenized
from app.precedence import Ahead
from app.progress import Bars
from app.searches import Searches
from app.settings import ApiKey, Settings
from app.sizes import check_vectors
from app.telemetry import Record
from app.tokenizing import TokenizerThreads
from app.tracing import Tracing, Untraced
from app.whole import abandonable, whole
from model.embedding import OUTPUTS, Counting, Embedding, Output

Kind = Literal["query", "passage"]
T = TypeVar("T")

INTERACTIVE_TOKENS = 1024
"""A request of more tokens than this takes the bulk lane: it is no longer a person who waits."""

DEFAULT_COLLECTION = "default"
"""Searched where no collection is named, and made when it is first written to."""

INDEX_THREADS = 8
LOOKING_THREADS = 4
"""For what takes milliseconds, so that it does not wait behind searches and writes."""
WIRE_THREADS = 2
"""Large bodies parsed or written at the same time: pure Python, so more would only hold more memory."""
SCRAPE_THREADS = 2
PROBE_TEXT = "ready?"
_log = logging.getLogger("trivec.service")


@dataclass(frozen=True, slots=True)
class Embedded:
    """The embeddings of some texts with the tokens that they were made of."""

    embeddings: list[Embedding]
    tokenized: Sequence[Tokenized]

    @property
    def tokens(self) -> int:
        return sum(one.tokens for one in self.embeddings)


class Service:
    """Everything that handlers share. `load` gives it a model; `close` drains it."""

    def __init__(
        self,
        settings: Settings,
        keys: Sequence[ApiKey],
        database: Database,
        *,
        metrics: Metrics | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.settings = settings
        self.keys = keys
        self.database = database
        self.metrics = metrics or Metrics()
        self._tracing = tracing or Untraced()
        database.timed = self._timed
        self.loaded_at = 0.0
        """When the model was taken, in seconds since 1970."""
        self._model: TextModel | None = None
        self._batcher: Batcher | None = None
        self._proven = False
        self._draining = False
        self._drain_until: float | None = None
        self._load_failed = False
        self._warmer = Warmer(settings.data_dir)
        self._tokenizing = TokenizerThreads(settings.tokenizer_threads)
        self._indexing = anyio.CapacityLimiter(INDEX_THREADS)
        self._looking = anyio.CapacityLimiter(LOOKING_THREADS)
        self.searches = Searches(settings.max_searches, INDEX_THREADS)
        self._on_the_wire = anyio.CapacityLimiter(WIRE_THREADS)
        self._scraping = anyio.CapacityLimiter(SCRAPE_THREADS)
        self.cache = QueryCache(settings.query_cache_bytes)

    async def load(self, model: TextModel) -> None:
        """Take a model and let it show that a forward pass works; `check_health` retries a failed one."""
        self._model = model
        self.loaded_at = time.time()
        self._batcher = Batcher(
            model,
            max_batch_tokens=self.settings.max_batch_tokens,
            max_queue_tokens=self.settings.max_queue_tokens,
            observer=self.metrics,
        )
        self._batcher.start()
        try:
            await self._probe()
        except InferenceFailed:
            _log.error("the first forward pass failed; the service is not ready")

    def load_index(self) -> None:
        """Read the index's files, or make them anew, so that the first search does not wait. Blocks."""
        if self.database.list():
            import_kernels()
        with Bars() as bars:
            self.database.load(bars)

    def warm_up(self) -> None:
        """Have what searches and upserts run ready behind the scenes, from now on; returns at once."""
        self._warmer.start(one.info.settings.colbert for one in self.database.list())

    def give_up(self) -> None:
        """Say from now on that there will be no model."""
        self._load_failed = True

    @property
    def ready(self) -> bool:
        """Whether a forward pass has worked and requests are taken."""
        return self._proven and not self._draining

    @property
    def loaded(self) -> bool:
        """Whether there is a model, and a queue before it."""
        return self._batcher is not None

    def require_ready(self) -> None:
        """Raise Draining or NotReady unless a real forward pass has worked."""
        if self._draining:
            raise Draining("the service is shutting down")
        if self._load_failed:
            raise LoadFailed("the model could not be loaded; the service's log says why")
        if not self._proven:
            raise NotReady("the model is not ready yet", retry_after_s=5)

    async def check_health(self) -> None:
        """Raise unless the last forward pass worked and none hangs; after a failure a fresh one decides."""
        if self._draining or self._batcher is None:
            self.require_ready()
            return
        if self._batcher.busy_s > self.settings.request_timeout_s:
            raise NotReady("a forward pass takes longer than a request may", retry_after_s=5)
        if self._tokenizing.longest_s > self.settings.request_timeout_s:
            raise NotReady("a text takes longer to become tokens than a request may", retry_after_s=5)
        if not (self._proven and self._batcher.last_forward_worked):
            try:
                await self._probe()
            except InferenceFailed:
                raise NotReady("the last forward pass failed", retry_after_s=5) from None

    async def _probe(self) -> None:
        tokenized = await self.tokenize([PROBE_TEXT], self.model.card.max_length)
        answer = await self.batcher.submit([one.ids for one in tokenized], self.model.card.outputs)
        answer.embeddings()
        self._proven = True

    @property
    def model(self) -> TextModel:
        """The model; raises NotReady while there is none."""
        if self._model is None:
            raise NotReady("the model is not ready yet", retry_after_s=5)
        return self._model

    @property
    def batcher(self) -> Batcher:
        """The queue before the model; raises NotReady while there is none."""
        if self._batcher is None:
            raise NotReady("the model is not ready yet", retry_after_s=5)
        return self._batcher

    def length_limit(self, kind: Kind, asked: int | None) -> int:
        """Tokens that a text may have: what was asked for, else the setting of its kind.

        Raises LimitExceeded where the model cannot take as many as were asked for.
        """
        most = self.model.card.max_length
        if asked is not None and asked > most:
            raise LimitExceeded(f"this model takes at most {most} tokens", param="max_length")
        setting = self.settings.query_max_length if kind == "query" else self.settings.passage_max_length
        return asked if asked is not None else min(setting, most)

    def outputs(self, asked: Sequence[Output] | None, param: str) -> frozenset[Output]:
        """The outputs to compute; None means all that there are. Raises OutputUnavailable."""
        present = self.model.card.outputs
        missing = [name for name in OUTPUTS if name in (asked or ()) and name not in present]
        if missing:
            raise OutputUnavailable(f"this model has no {' and no '.join(missing)} output", param=param)
        return frozenset(present if asked is None else asked)

    async def tokenize(
        self, texts: Sequence[str], max_length: int | None, *, count_terms: Counting | None = None
    ) -> Sequence[Tokenized]:
        """Texts to token ids in a worker thread, uncut where `max_length` is None.

        Nobody waits for a thread whose client has gone.
        """
        with self._tracing.span("tokenize", texts=len(texts)):
            return await self._tokenizing.tokenize(self.model, texts, max_length, count_terms)

    async def in_index(self, work: Callable[[], T]) -> T:
        """Look something up in the index in a worker thread; nobody waits where the client has gone."""
        return await abandonable(work, self._looking)

    async def search(self, work: Callable[[], T], ahead: Ahead | None = None) -> T:
        """Search the index in a worker thread; nobody waits where the client has gone. Bulk work may wait."""
        if ahead is not None:
            self.batcher.goes_ahead(ahead)
        return await abandonable(self.searches.timed(work), self._indexing)

    async def write(self, work: Callable[[], T]) -> T:
        """Change the index in a worker thread; once begun it is awaited, whatever becomes of its caller."""
        return await whole(work, self._indexing)

    async def on_the_wire(self, work: Callable[[], T]) -> T:
        """Run what turns large bodies into values, or many values into a body, in a worker thread."""
        return await abandonable(work, self._on_the_wire)

    async def scraped(self, accept: str) -> tuple[bytes, str]:
        """All metrics and their content type; in a worker thread, for the index is asked."""
        work = partial(self.metrics.exposition, accept)
        return await anyio.to_thread.run_sync(work, limiter=self._scraping, abandon_on_cancel=True)

    async def pieces(self, make: Callable[[], Iterable[bytes]]) -> list[bytes]:
        """Have a body made piece by piece in a worker thread, which stops where nobody waits any more."""
        stop = Event()

        def collect() -> list[bytes]:
            found: list[bytes] = []
            for piece in make():
                if stop.is_set():
                    break
                found.append(piece)
            return found

        try:
            return await self.on_the_wire(collect)
        finally:
            stop.set()

    async def embed(
        self, record: Record, texts: Sequence[str], outputs: AbstractSet[Output], max_length: int
    ) -> Embedded:
        """Texts to embeddings, cut at `max_length`."""
        return await self.embed_tokens(record, await self.tokenize(texts, max_length), outputs)

    async def embed_queries(
        self,
        record: Record,
        texts: Sequence[str],
        outputs: AbstractSet[Output],
        max_length: int,
        count_terms: Counting | None = None,
        ahead: Ahead | None = None,
    ) -> Embedded:
        """`embed` of searches' queries: those that were asked before come from the cache."""
        asked = [Asked(text, max_length, frozenset(outputs), count_terms) for text in texts]
        found = {one: answer for one in asked if (answer := self.cache.get(one)) is not None}
        missing = [one for one in dict.fromkeys(asked) if one not in found]
        self.metrics.cache_looked_up(len(found), len(missing))
        if missing:
            unknown = [one.text for one in missing]
            tokens = await self.tokenize(unknown, max_length, count_terms=count_terms)
            fresh = await self.embed_tokens(record, tokens, outputs, ahead=ahead)
            for one, embedding, tokenized in zip(missing, fresh.embeddings, fresh.tokenized, strict=True):
                found[one] = embedding, tokenized
                self.cache.put(one, found[one])
                record.count(-1, -len(tokenized.ids))  # counted below, with those that were known
        record.count(len(asked), sum(len(found[one][1].ids) for one in asked))
        record.timed(0.0, 0.0)
        return Embedded([found[one][0] for one in asked], [found[one][1] for one in asked])

    async def embed_tokens(
        self,
        record: Record,
        tokenized: Sequence[Tokenized],
        outputs: AbstractSet[Output],
        *,
        normalize: bool = True,
        ahead: Ahead | None = None,
    ) -> Embedded:
        """Tokenised texts to embeddings; the request's size chooses its lane. Raises AnswerTooLarge."""
        tokens = [one.ids.size for one in tokenized]
        check_vectors(tokens, outputs, self.model.card, self.settings.max_answer_bytes)
        lane: Lane = "interactive" if sum(tokens) <= INTERACTIVE_TOKENS else "bulk"
        answer = await self._submit(record, tokenized, outputs, lane, normalize, ahead)
        pairs = zip(answer.embeddings(), tokenized, strict=True)
        return Embedded([marked(one, source) for one, source in pairs], tokenized)

    async def embed_each(
        self, record: Record, tokenized: Sequence[Tokenized], outputs: AbstractSet[Output]
    ) -> list[Embedding | InferenceFailed]:
        """Like `embed_tokens` on the bulk lane, with a failure of its own for each text."""
        answer = await self._submit(record, tokenized, outputs, "bulk", True)
        pairs = zip(answer.results, tokenized, strict=True)
        return [marked(one, source) if isinstance(one, Embedding) else one for one, source in pairs]

    async def _submit(
        self,
        record: Record,
        tokenized: Sequence[Tokenized],
        outputs: AbstractSet[Output],
        lane: Lane,
        normalize: bool,
        ahead: Ahead | None = None,
    ) -> Batched:
        ids = [one.ids for one in tokenized]
        tokens, cut = sum(one.size for one in ids), sum(one.total > len(one.ids) for one in tokenized)
        record.count(len(ids), tokens)
        record.lane = lane
        record.truncated += cut
        self.metrics.texts_truncated(cut)
        with self._tracing.span("model", texts=len(ids), tokens=tokens, lane=lane):
            began = time.monotonic()
            answer = await self.batcher.submit(ids, outputs, lane=lane, normalize=normalize, ahead=ahead)
            taken = began + answer.queue_ms / 1000
            self._tracing.interval("queue", began, taken)
            self._tracing.interval("inference", taken, time.monotonic(), computed_ms=answer.inference_ms)
        record.timed(answer.queue_ms, answer.inference_ms)
        return answer

    @contextmanager
    def _timed(self, work: Work) -> Iterator[None]:
        """Around the index's work; in a worker thread that has its request's context, or in none's."""
        with self._tracing.span("index search" if work == "search" else work), self.metrics.timed(work):
            yield

    def create_collection(self, name: str, settings: CollectionSettings) -> Collection:
        """A collection for the vectors of the model in use; blocks, so call it in a worker thread."""
        card = self.model.card
        collection = self.database.create(
            name,
            settings,
            fingerprint=card.fingerprint,
            hidden_size=card.hidden_size,
            colbert_dim=card.colbert_dim,
        )
        self._warmer.want([settings.colbert])
        return collection

    def begin_drain(self) -> None:
        """Refuse new requests from now on; those under way go on. May be called by a signal's handler."""
        self._draining = True
        if self._drain_until is None:
            self._drain_until = time.monotonic() + self.settings.shutdown_timeout_s

    @property
    def drain_left_s(self) -> float:
        """Seconds that what is under way still has; all that are allowed, where draining has not begun."""
        if self._drain_until is None:
            return self.settings.shutdown_timeout_s
        return max(0.0, self._drain_until - time.monotonic())

    async def close(self) -> None:
        """Finish queued work within the time allowed, then release model and index."""
        self.begin_drain()
        if self._batcher is not None:
            await self._batcher.close(self.drain_left_s)
        await anyio.to_thread.run_sync(self._warmer.close)
        await anyio.to_thread.run_sync(self.database.close)


def marked(embedding: Embedding, source: Tokenized) -> Embedding:
    """The embedding with its `truncated` set: the model does not know what was cut before it."""
    return replace(embedding, truncated=source.total > len(source.ids))


def refuse_long(tokenized: Sequence[Tokenized], limit: int, param: str) -> None:
    """Raise TextTooLong for the first text that was cut, with its true token count."""
    for place, one in enumerate(tokenized):
        if one.total > limit:
            raise TextTooLong(
                f"the text has {one.total} tokens, the limit is {limit}", param=f"{param}.{place}"
            )


def service_of(request: Request) -> Service:
    """The service that an application's lifespan has put in its state."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service
