"""The documents of an upsert's body, JSON or NDJSON, one by one and not yet checked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request

from app.access import media_type
from app.error_formats import Problem
from app.errors import InvalidRequest, MalformedJson, describe
from app.guard import body_of
from app.ndjson import lines
from app.routes.common import check_count
from app.service import Service
from app.wire import LARGE_BODY_BYTES, parse_json

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
    large = len(raw) > LARGE_BODY_BYTES
    body = await service.on_the_wire(partial(parse_json, raw)) if large else parse_json(raw)
    if isinstance(body, dict):
        if unknown := sorted(set(body) - {"documents"}):
            raise InvalidRequest("there is no such field", param=unknown[0][:200])
        body = body.get("documents")
    if not isinstance(body, list) or not body:
        raise InvalidRequest("a list of at least one document is expected", param="documents")
    check_count(body, service.settings.max_texts, "documents")
    return Upload(_each(body), streamed=False)


async def _each(documents: list[Any]) -> AsyncIterator[Entry]:
    for document in documents:
        yield document


async def _bounded(raw: AsyncIterator[bytes | None]) -> AsyncIterator[bytes | Problem]:
    async for line in raw:
        yield line if line is not None else describe(MalformedJson("the line is too long"))
