"""Documents from a request into a collection: checked one by one, embedded and stored in slices.

A document that cannot be stored gets an error of its own and the others are stored; slices bound the
memory that vectors take, so a body of any length can be streamed through. A slice that was stored
stays stored, whatever happens to the next.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from pydantic import ValidationError

from app.errors import Problem, ServiceFault, describe, validation_problem
from app.index.collection import Collection, Document
from app.index.errors import DocumentInvalid, IndexFault
from app.ports import ModelCard, Tokenized
from app.routes.common import supplied_embedding
from app.schemas.documents import DocumentBody
from app.service import Service, marked
from app.telemetry import Record
from model.embedding import OUTPUTS, Embedding, Output

SLICE_DOCUMENTS = 256
SLICE_BATCHES = 2
"""Batches of tokens whose vectors are held until they are stored together."""

Entry = Any
"""A parsed document, or the Problem that kept it from being parsed."""


@dataclass(frozen=True, slots=True)
class _Pending:
    """A document that may be stored once its missing outputs are there."""

    index: int
    id: str
    text: str
    metadata: dict[str, Any]
    supplied: Embedding


@dataclass(slots=True)
class Report:
    """What became of each document, in order."""

    results: list[dict[str, Any]] = field(default_factory=list)
    upserted: int = 0
    first_problem: Problem | None = None

    def stored(self, document: _Pending, embedding: Embedding) -> None:
        """Note a document that is durable and searchable."""
        self.upserted += 1
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
        result: dict[str, Any] = {"index": index, "error": problem.body()}
        if doc_id is not None:
            result["id"] = doc_id
        self.results.append(result)


def document_text(title: str | None, text: str) -> str:
    """The text that is embedded and stored: a title that says something goes before, as `title. text`."""
    return f"{title}. {text}" if title else text


async def ingest(
    service: Service, record: Record, collection: Collection, entries: AsyncIterator[Entry]
) -> Report:
    """Store what can be stored; the report has a line for every entry, in their order."""
    report = Report()
    slice_: list[tuple[int, Entry]] = []
    index = 0
    async for entry in entries:
        slice_.append((index, entry))
        index += 1
        if len(slice_) == SLICE_DOCUMENTS:
            await _ingest_slice(service, record, collection, slice_, report)
            slice_ = []
    if slice_:
        await _ingest_slice(service, record, collection, slice_, report)
    report.results.sort(key=lambda result: result["index"])
    return report


async def _ingest_slice(
    service: Service,
    record: Record,
    collection: Collection,
    entries: Sequence[tuple[int, Entry]],
    report: Report,
) -> None:
    card = service.model.card
    pending = [one for index, entry in entries if (one := _checked(index, entry, card, collection, report))]
    tokenized = await service.tokenize([one.text for one in pending], service.length_limit("passage", None))
    budget = SLICE_BATCHES * service.settings.max_batch_tokens
    for part in _parts(list(zip(pending, tokenized, strict=True)), budget):
        try:
            await _embed_and_store(service, record, collection, part, report)
        except (ServiceFault, IndexFault) as error:
            # The queue, the disk or a shutdown stopped this part; what is stored already stays so.
            for document, _ in part:
                report.failed(document.index, document.id, describe(error))


def _checked(
    index: int, entry: Entry, card: ModelCard, collection: Collection, report: Report
) -> _Pending | None:
    """A document whose fields, vectors, id and metadata are sound; else None and a line in the report."""
    if isinstance(entry, Problem):
        report.failed(index, None, entry)
        return None
    doc_id = entry.get("id") if isinstance(entry, dict) else None
    try:
        body = DocumentBody.model_validate(entry)
        doc_id = body.id if body.id is not None else uuid.uuid4().hex
        supplied = Embedding(tokens=0)
        if body.embedding is not None:
            supplied = supplied_embedding(body.embedding, card, "embedding")
        # A stand-in where there are no vectors yet: a bad id or bad metadata must not cost a forward pass.
        stand_in = (
            supplied if supplied.outputs else Embedding(tokens=0, dense=np.ones(card.hidden_size, np.float32))
        )
        text = document_text(body.title, body.text)
        collection.check(Document(doc_id, text, stand_in, body.metadata))
    except ValidationError as error:
        shown = doc_id if isinstance(doc_id, str) else None
        report.failed(index, shown, validation_problem(error.errors(include_url=False, include_input=False)))
        return None
    except (ServiceFault, DocumentInvalid) as error:
        report.failed(index, doc_id, describe(error))
        return None
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


async def _embed_and_store(
    service: Service,
    record: Record,
    collection: Collection,
    part: Sequence[tuple[_Pending, Tokenized]],
    report: Report,
) -> None:
    wanted = frozenset(service.model.card.outputs)
    embeddings: dict[int, Embedding] = {}
    groups: dict[frozenset[Output], list[tuple[_Pending, Tokenized]]] = {}
    for document, tokens in part:
        groups.setdefault(wanted - document.supplied.outputs, []).append((document, tokens))
    for missing, members in groups.items():
        computed: Sequence[Embedding | ServiceFault] = [
            Embedding(tokens=len(tokens.ids)) for _, tokens in members
        ]
        if missing:
            computed = await service.embed_each(record, [tokens for _, tokens in members], missing)
        for (document, tokens), one in zip(members, computed, strict=True):
            if isinstance(one, Embedding):
                embeddings[document.index] = marked(_united(document.supplied, one), tokens)
            else:
                report.failed(document.index, document.id, describe(one))
    pairs = [(document, embeddings[document.index]) for document, _ in part if document.index in embeddings]
    await _store(service, collection, pairs, report)


def _united(supplied: Embedding, computed: Embedding) -> Embedding:
    """The client's outputs, completed by the computed ones."""
    given = {name: getattr(supplied, name) for name in OUTPUTS if getattr(supplied, name) is not None}
    return replace(computed, **given)


async def _store(
    service: Service, collection: Collection, pairs: Sequence[tuple[_Pending, Embedding]], report: Report
) -> None:
    documents = [Document(one.id, one.text, embedding, one.metadata) for one, embedding in pairs]
    refused = await service.in_index(partial(_upsert_sound, collection, documents))
    for place, (document, embedding) in enumerate(pairs):
        if (error := refused.get(place)) is not None:
            report.failed(document.index, document.id, describe(error))
        else:
            report.stored(document, embedding)


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
