"""Documents from a request into a collection: checked one by one, embedded and stored in slices.

A document that cannot be stored gets an error of its own and the others are stored; slices bound the
memory that vectors take, so a body of any length can be streamed through. A slice that was stored
stays stored, whatever happens to the next: a deadline that passes ends the rest, and the report says of
each document on which side it is. Results are kept for the end, or handed on as documents become durable.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from pydantic import ValidationError

from app.error_formats import Problem
from app.errors import ServiceFault, describe, log_hidden, validation_problem
from app.guard import Deadline
from app.index.bm25 import no_terms
from app.index.collection import Collection, Document
from app.index.errors import DocumentInvalid, IndexFault
from app.ports import ModelCard, Tokenized
from app.routes.common import supplied_embedding
from app.schemas.documents import DocumentBody
from app.service import Service, marked
from app.telemetry import Record
from app.uploads import Entry, Upload
from app.wire import parse_json
from model.embedding import OUTPUTS, Embedding, Output

SLICE_DOCUMENTS = 256
SLICE_BATCHES = 2
"""Batches of tokens whose vectors are held until they are stored together."""


@dataclass(frozen=True, slots=True)
class _Pending:
    """A document that may be stored once its missing outputs are there."""

    index: int
    id: str
    text: str
    metadata: dict[str, Any]
    supplied: Embedding


@dataclass(frozen=True, slots=True)
class _Refused:
    """A document that cannot be stored."""

    index: int
    id: str | None
    problem: Problem


Results = list[dict[str, Any]]
HandOn = Callable[[Results], Awaitable[None]]
"""Takes results as they come; while it waits, nothing more is read or stored."""


@dataclass(slots=True)
class Report:
    """What became of each document; `results` are in order, and empty where they were handed on."""

    results: Results = field(default_factory=list)
    upserted: int = 0
    refused: int = 0
    first_problem: Problem | None = None
    settled: set[int] = field(default_factory=set)
    """Of the slice under way, which documents have a result."""

    def stored(self, document: _Pending, embedding: Embedding) -> None:
        """Note a document that is durable and searchable."""
        self.upserted += 1
        self.settled.add(document.index)
        self.results.append(
            {
                "index": document.index,
                "id": document.id,
                "status": "upserted",
                "tokens": embedding.tokens,
                "truncated": embedding.truncated,
            }
        )

    def failed(self, index: int, doc_id: str | None, problem: Problem) -> None:
        """Note a document that was not stored."""
        self.first_problem = self.first_problem or problem
        self.refused += 1
        self.settled.add(index)
        result: dict[str, Any] = {"index": index, "error": problem.body()}
        if doc_id is not None:
            result["id"] = doc_id
        self.results.append(result)


def document_text(title: str | None, text: str) -> str:
    """The text that is embedded and stored: a title that says something goes before, as `title. text`."""
    if title is None or not title.strip():
        return text
    return f"{title}. {text}" if text.strip() else title


async def ingest(
    service: Service,
    record: Record,
    collection: Collection,
    upload: Upload,
    deadline: Deadline,
    hand_on: HandOn | None = None,
) -> Report:
    """Store what can be stored; there is a result for every entry, in their order.

    With `hand_on` the results go there as documents become durable, in order within a part that was stored
    together, and are not kept; what the deadline has kept from being stored is left to the report.

    Of a streamed body the deadline is renewed with all that is stored, however long it takes in the end.
    Where it passes, the documents that were not stored have the error `deadline_exceeded` (`draining` where
    the service ends); of a stream, its first line that was not read stands for all those after it.
    """
    deadline.take_over()
    run = _Run(service, record, collection, hand_on)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(max(0.0, deadline.at - time.monotonic())) as clock:

            def renew() -> None:
                if upload.streamed and not deadline.cut_short:
                    clock.reschedule(loop.time() + deadline.seconds)

            def stop() -> None:
                with suppress(RuntimeError):  # it has just ended by itself
                    clock.reschedule(loop.time())

            run.progress = renew
            deadline.when_cut(stop)
            await run.take(upload, patience_s=deadline.seconds / 2)
    except TimeoutError:
        if not clock.expired():
            raise
        await run.give_up(upload, deadline)
    run.report.results.sort(key=lambda result: result["index"])
    refused = Counter(result["error"]["code"] for result in run.report.results if "error" in result)
    service.metrics.documents_refused(refused)
    return run.report


class _Run:
    """One upload on its way into a collection."""

    def __init__(
        self, service: Service, record: Record, collection: Collection, hand_on: HandOn | None
    ) -> None:
        self.report = Report()
        self.progress: Callable[[], None] = lambda: None
        """Called whenever something was stored."""
        self._service = service
        self._record = record
        self._collection = collection
        self._hand_on = hand_on
        self._slice: list[tuple[int, Entry]] = []
        self._ids: dict[int, str] = {}
        """Of the documents in the slice that wait to be stored."""
        self._count = 0
        self._all_read = False

    async def take(self, upload: Upload, *, patience_s: float) -> None:
        """Read and store to the end; lines that trickle in are stored once the first has waited so long."""
        size, began = 0, 0.0
        async for entry in upload.entries:
            began = began if self._slice else time.monotonic()
            self._slice.append((self._count, entry))
            self._count += 1
            size += len(entry) if isinstance(entry, bytes) else 0
            full = len(self._slice) == SLICE_DOCUMENTS or size >= self._service.settings.max_body_bytes
            if full or time.monotonic() - began > patience_s:
                await self._store_slice()
                size = 0
        self._all_read = True
        await self._store_slice()

    async def give_up(self, upload: Upload, deadline: Deadline) -> None:
        """Report what was not stored in time."""
        not_stored = f"not stored within {deadline.seconds:g} seconds"
        late = describe(deadline.refusal(not_stored, "it was not stored"))
        for place, _ in self._slice:
            if place not in self.report.settled:
                self.report.failed(place, self._ids.get(place), late)
        if not upload.streamed:
            async for _ in upload.entries:
                self.report.failed(self._count, None, late)
                self._count += 1
        elif not self._all_read:
            unread = "the lines from here on were not read"
            stood_still = f"nothing was stored for {deadline.seconds:g} seconds; {unread}"
            self.report.failed(self._count, None, describe(deadline.refusal(stood_still, unread)))

    async def _store_slice(self) -> None:
        service, card = self._service, self._service.model.card
        check = partial(_check_all, self._slice, card, self._collection)
        checked = await service.in_index(check) if self._slice else []
        pending: list[_Pending] = []
        for one in checked:
            if isinstance(one, _Refused):
                self.report.failed(one.index, one.id, one.problem)
            else:
                pending.append(one)
        self._ids = {one.index: one.id for one in pending}
        tokenized = await service.tokenize(
            [one.text for one in pending],
            service.length_limit("passage", None),
            count_terms="whole" if self._collection.info.settings.bm25 else None,
        )
        budget = SLICE_BATCHES * service.settings.max_batch_tokens
        for part in _parts(list(zip(pending, tokenized, strict=True)), budget):
            try:
                await self._embed_and_store(part)
            except (ServiceFault, IndexFault) as error:
                # The queue, the disk or a shutdown stopped this part; what is stored already stays so.
                log_hidden(error, self._record.request_id)
                for document, _ in part:
                    self.report.failed(document.index, document.id, describe(error))
            await self._pass_results()
        await self._pass_results()
        self._slice = []
        self.report.settled.clear()

    async def _pass_results(self) -> None:
        if self._hand_on is None or not self.report.results:
            return
        self.report.results.sort(key=lambda result: result["index"])
        results, self.report.results = self.report.results, []
        await self._hand_on(results)

    async def _embed_and_store(self, part: Sequence[tuple[_Pending, Tokenized]]) -> None:
        wanted = frozenset(self._service.model.card.outputs)
        embeddings: dict[int, Embedding] = {}
        groups: dict[frozenset[Output], list[tuple[_Pending, Tokenized]]] = {}
        for document, tokens in part:
            groups.setdefault(wanted - document.supplied.outputs, []).append((document, tokens))
        for missing, members in groups.items():
            computed: Sequence[Embedding | ServiceFault] = [
                Embedding(tokens=len(tokens.ids)) for _, tokens in members
            ]
            if missing:
                texts = [tokens for _, tokens in members]
                computed = await self._service.embed_each(self._record, texts, missing)
            for (document, tokens), one in zip(members, computed, strict=True):
                if isinstance(one, Embedding):
                    embeddings[document.index] = marked(_united(document.supplied, one), tokens)
                else:
                    self.report.failed(document.index, document.id, describe(one))
        found = [
            (document, tokens, embeddings[document.index])
            for document, tokens in part
            if document.index in embeddings
        ]
        await self._service.write(partial(self._store, found))
        self.progress()

    def _store(self, found: Sequence[tuple[_Pending, Tokenized, Embedding]]) -> None:
        """Blocks. Reports in the same breath: a deadline that passes meanwhile must find it in the report."""
        documents = [
            Document(one.id, one.text, embedding, one.metadata, terms=tokens.terms)
            for one, tokens, embedding in found
        ]
        refused = _upsert_sound(self._collection, documents)
        self._service.metrics.documents_stored(len(documents) - len(refused))
        for place, (document, _, embedding) in enumerate(found):
            if (error := refused.get(place)) is not None:
                self.report.failed(document.index, document.id, describe(error))
            else:
                self.report.stored(document, embedding)


def _check_all(
    entries: Sequence[tuple[int, Entry]], card: ModelCard, collection: Collection
) -> list[_Pending | _Refused]:
    """Blocks: parses, validates, and looks at each number of the vectors that clients supply."""
    return [_checked(index, entry, card, collection) for index, entry in entries]


def _checked(index: int, entry: Entry, card: ModelCard, collection: Collection) -> _Pending | _Refused:
    """A document whose fields, vectors, id and metadata are sound, or why it is not."""
    if isinstance(entry, Problem):
        return _Refused(index, None, entry)
    doc_id: str | None = None
    try:
        fields = parse_json(entry) if isinstance(entry, bytes) else entry
        given = fields.get("id") if isinstance(fields, dict) else None
        doc_id = given if isinstance(given, str) else None
        body = DocumentBody.model_validate(fields)
        doc_id = body.id if body.id is not None else uuid.uuid4().hex
        supplied = Embedding(tokens=0)
        if body.embedding is not None:
            supplied = supplied_embedding(body.embedding, card, "embedding")
        # A stand-in where there are no vectors yet: a bad id or bad metadata must not cost a forward pass.
        stand_in = (
            supplied if supplied.outputs else Embedding(tokens=0, dense=np.ones(card.hidden_size, np.float32))
        )
        text = document_text(body.title, body.text)
        collection.check(Document(doc_id, text, stand_in, body.metadata, terms=no_terms()))
    except ValidationError as error:
        problem = validation_problem(error.errors(include_url=False, include_input=False))
        return _Refused(index, doc_id, problem)
    except (ServiceFault, DocumentInvalid) as error:
        return _Refused(index, doc_id, describe(error))
    return _Pending(index, doc_id, text, body.metadata, supplied)


def _parts(
    documents: Sequence[tuple[_Pending, Tokenized]], budget: int
) -> list[list[tuple[_Pending, Tokenized]]]:
    """Consecutive documents whose tokens fit the budget together; one that exceeds it is alone."""
    parts: list[list[tuple[_Pending, Tokenized]]] = []
    left = 0
    for document, tokens in documents:
        if not parts or tokens.ids.size > left:
            parts.append([])
            left = budget
        parts[-1].append((document, tokens))
        left -= tokens.ids.size
    return parts


def _united(supplied: Embedding, computed: Embedding) -> Embedding:
    """The client's outputs, completed by the computed ones."""
    given = {name: getattr(supplied, name) for name in OUTPUTS if getattr(supplied, name) is not None}
    return replace(computed, **given)


def _upsert_sound(collection: Collection, documents: Sequence[Document]) -> dict[int, DocumentInvalid]:
    """Store all, or those that the collection can hold; the refusals by position."""
    try:
        collection.upsert(documents)
    except DocumentInvalid:
        refused: dict[int, DocumentInvalid] = {}
        for place, document in enumerate(documents):
            try:
                collection.check(document)
            except DocumentInvalid as error:
                refused[place] = error
        collection.upsert([one for place, one in enumerate(documents) if place not in refused])
        return refused
    return {}
