"""The documents of an upsert's body, JSON or NDJSON, one by one and not yet checked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request

from app.access import media_type
from app.error_formats import Problem
from app.errors import InvalidRequest, MalformedGzip, MalformedJson, describe
from app.guard import body_of
from app.ndjson import lines
from app.routes.common import check_count
from app.service import Service
from app.wire import LARGE_BODY_BYTES, check_pairs, may_hold_half_pairs, parse_unpaired, unmarked

NDJSON_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl")

Entry = Any
"""A parsed document, a line of NDJSON as bytes, or the Problem that kept it from being read."""


@dataclass(frozen=True, slots=True)
class Upload:
    """Documents as they arrive."""

    entries: AsyncIterator[Entry]
    streamed: bool
    """Whether the body may be of any length, so that only standing still can be too slow."""


async def upload_of(request: Request, service: Service) -> Upload:
    """The documents of a request's body; raises where it is not of a known type or holds no list of them."""
    kind = media_type(request)
    limit = service.settings.max_body_bytes
    if kind in NDJSON_TYPES:
        body_of(request).lift_limit()
        return Upload(_bounded(lines(request.stream(), limit)), streamed=True)
    if kind != "application/json":
        raise InvalidRequest(
            "the body must be application/json or application/x-ndjson", param="Content-Type"
        )
    raw = await request.body()
    listed = partial(_listed, raw, service.settings.max_texts)
    entries = await service.on_the_wire(listed) if len(raw) > LARGE_BODY_BYTES else listed()
    return Upload(_each(entries), streamed=False)


def _listed(raw: bytes, most: int) -> list[Entry]:
    """The documents of a JSON body; one that holds half a surrogate pair is not in the others' way."""
    body = parse_unpaired(unmarked(raw))
    if isinstance(body, dict):
        check_pairs(dict.fromkeys(body))
        # A document by itself is told that a list is expected.
        alone = "text" in body and "documents" not in body
        if not alone and (unknown := sorted(set(body) - {"documents"})):
            raise InvalidRequest("there is no such field", param=unknown[0][:200])
        body = body.get("documents")
    if not isinstance(body, list) or not body:
        raise InvalidRequest("a list of at least one document is expected", param="documents")
    check_count(body, most, "documents")
    return [_paired(one) for one in body] if may_hold_half_pairs(raw) else body


def _paired(document: Any) -> Entry:
    try:
        check_pairs(document)
    except InvalidRequest as error:
        return describe(error)
    return document


async def _each(documents: list[Entry]) -> AsyncIterator[Entry]:
    for document in documents:
        yield document


async def _bounded(raw: AsyncIterator[bytes | None]) -> AsyncIterator[bytes | Problem]:
    try:
        async for line in raw:
            yield line if line is not None else describe(MalformedJson("the line is too long"))
    except MalformedGzip as error:
        # What came before it is stored and reported; the first line that cannot be read has the error.
        yield describe(error)
