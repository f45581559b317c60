"""POST /search and /collections/{name}/search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.access import ReadRoute
from app.errors import AnswerTooLarge, InvalidRequest
from app.explain import Side, explanation, weighed_tokens
from app.index.collection import Collection, Hit, LegRanks, LegScores, SearchRequest
from app.index.errors import CollectionNotFound, HitsTooLarge
from app.index.filters import parse
from app.index.search import check_bm25, value_bytes
from app.precedence import Ahead
from app.routes.common import (
    CHARACTERS_A_VALUE,
    OUTPUTS_OF_MODE,
    CollectionName,
    check_count,
    check_number,
    fusion_weights,
    json_answer,
    supplied_embedding,
    usage,
)
from app.schemas.base import COMMON_ERRORS, EmbeddingBody, errors, listed
from app.schemas.search import (
    DefaultSearchBody,
    EmbeddingQuery,
    ManySearchResponse,
    SearchBody,
    SearchResponse,
)
from app.service import DEFAULT_COLLECTION, Service, service_of
from app.telemetry import Record, record_of
from model.embedding import Counting, Embedding

router = APIRouter(route_class=ReadRoute, tags=["search"])

DEFAULT_CANDIDATES = 100
HIT_VALUES, EXPLAINED_VALUES = 20, 500
"""About how many values of JSON a hit is, metadata and explanation among them."""
HIT_BYTES, EXPLAINED_ROW_BYTES = 2000, 700
"""About the memory that a hit takes without its text and metadata, and a row of its explanation."""
ANSWERS = {
    200: {"model": SearchResponse | ManySearchResponse, "description": "`results` where `query` is a list"},
    **errors(*COMMON_ERRORS, 404, 409, 429),
}


@router.post("/search", summary="Search", responses=ANSWERS)
async def search(body: DefaultSearchBody, request: Request) -> Response:
    """Search the collection `default`, or the one that the body names.

    All true scores are computed for every candidate of every leg: three, and BM25's where the collection
    was made with it. Before anything was stored, `default` is empty and has no hits.
    """
    return await _search(service_of(request), record_of(request), body.collection, body)


@router.post("/collections/{name}/search", summary="Search a collection", responses=ANSWERS)
async def search_collection(name: CollectionName, body: SearchBody, request: Request) -> Response:
    """Search a collection; see /search."""
    return await _search(service_of(request), record_of(request), name, body)


async def _search(service: Service, record: Record, name: str, body: SearchBody) -> Response:
    with service.searches.admitted():
        return await _answered(service, record, name, body)


async def _answered(service: Service, record: Record, name: str, body: SearchBody) -> Response:
    template = _checked(service, body)
    with service.batcher.going_ahead() as ahead:
        # A list of queries is no person who waits.
        return await _found(
            service, record, name, body, template, None if isinstance(body.query, list) else ahead
        )


async def _found(
    service: Service,
    record: Record,
    name: str,
    body: SearchBody,
    template: partial[SearchRequest],
    ahead: Ahead | None,
) -> Response:
    collection = await service.in_index(partial(_for_reading, service, name))
    if collection is None:
        if not _texts(body):
            await _queries(service, record, body, None, bm25=False)  # vectors are looked at all the same
        found: list[list[dict[str, Any]]] = [[] for _ in _texts(body) or [""]]
    else:
        # Before the model works for a search that cannot be answered.
        check_bm25(body.mode, fusion_weights(body.weights), collection.info)
        sides = await _queries(service, record, body, ahead, bm25=collection.info.settings.bm25)
        found, left = [], service.settings.max_answer_bytes
        for side in sides:
            terms = None if side.tokens is None else side.tokens.terms
            wanted = template(side.embedding, terms=terms, most_bytes=left)
            try:
                one = await service.search(partial(_hits, service, collection, wanted, side, body), ahead)
            except HitsTooLarge:
                raise AnswerTooLarge(_too_large(service.settings.max_answer_bytes), param="top_k") from None
            found.append([fields for fields, _ in one])
            left = max(0, left - sum(size for _, size in one))
    hits: dict[str, Any] = {"hits": found[0]}
    if isinstance(body.query, list):
        hits = {"results": [{"hits": one} for one in found]}
    answer = {
        "collection": name,
        "mode": body.mode,
        **hits,
        "usage": usage(record),
        "model": service.model.card.name,
    }
    count = sum(len(one) for one in found) * (EXPLAINED_VALUES if body.explain else HIT_VALUES)
    characters = sum(len(hit.get("text", "")) for one in found for hit in one)
    return await json_answer(service, lambda: answer, count + characters // CHARACTERS_A_VALUE)


def _checked(service: Service, body: SearchBody) -> partial[SearchRequest]:
    """Everything of a search but its query; raises where a field cannot be served."""
    settings = service.settings
    check_count(_texts(body), settings.max_texts, "query")
    check_number(body.top_k, settings.max_top_k, "top_k")
    candidates = body.candidates if body.candidates is not None else max(DEFAULT_CANDIDATES, body.top_k)
    check_number(candidates, max(settings.max_candidates, DEFAULT_CANDIDATES, body.top_k), "candidates")
    if candidates < body.top_k:
        raise InvalidRequest("there must be at least top_k candidates", param="candidates")
    service.outputs(OUTPUTS_OF_MODE[body.mode], "mode")
    return partial(
        SearchRequest,
        mode=body.mode,
        fusion=body.fusion,
        weights=fusion_weights(body.weights),
        top_k=body.top_k,
        candidates=body.candidates,
        filter=parse(body.filter) if body.filter is not None else None,
        exact=body.exact,
        with_embeddings=body.explain,
    )


def _texts(body: SearchBody) -> Sequence[str]:
    return listed(body.query) if isinstance(body.query, str | list) else ()


def _for_reading(service: Service, name: str) -> Collection | None:
    """The collection, None for a `default` that nothing was stored in yet."""
    try:
        collection = service.database.get(name)
    except CollectionNotFound:
        if name != DEFAULT_COLLECTION:
            raise
        return None
    collection.check_model(service.model.card.fingerprint)
    return collection


async def _queries(
    service: Service, record: Record, body: SearchBody, ahead: Ahead | None, *, bm25: bool
) -> list[Side]:
    """The queries' vectors, with their tokens where they came as texts.

    The mode bm25 asks for tokens alone: they are not embedded.
    """
    card = service.model.card
    if isinstance(body.query, EmbeddingQuery):
        return [await _supplied(service, body.query.embedding, "query.embedding")]
    if isinstance(body.query, EmbeddingBody):
        return [await _supplied(service, body.query, "query")]
    limit = service.length_limit("query", None)
    # A query is cut for BM25 too: what a search costs grows with its terms.
    counting: Counting | None = "kept" if bm25 else None
    if body.mode == "bm25":
        tokenized = await service.tokenize(listed(body.query), limit, count_terms=counting)
        return [Side(Embedding(tokens=len(one.ids)), one) for one in tokenized]
    outputs = frozenset(card.outputs)
    embedded = await service.embed_queries(record, listed(body.query), outputs, limit, counting, ahead)
    return [Side(*pair) for pair in zip(embedded.embeddings, embedded.tokenized, strict=True)]


async def _supplied(service: Service, body: EmbeddingBody, param: str) -> Side:
    """A query's own vectors; checked in a worker thread, for they may be millions of numbers."""
    check = partial(supplied_embedding, body, service.model.card, param)
    return Side(await service.in_index(check), None)


def _hits(
    service: Service, collection: Collection, search: SearchRequest, query: Side, body: SearchBody
) -> list[tuple[dict[str, Any], int]]:
    """Hits and the bytes that they hold. Blocks: reads SQLite, scores, and tokenises what is explained."""
    bm25 = collection.info.settings.bm25
    hits = (_hit(service, hit, query, body, bm25=bm25) for hit in collection.search(search))
    return [(one, _held_bytes(one)) for one in hits]


def _too_large(limit: int) -> str:
    advice = "ask for fewer queries or hits, for less to `include`, or without `explain`"
    return f"the hits would take more than {limit} bytes; {advice}"


def _held_bytes(hit: dict[str, Any]) -> int:
    """About the memory that a hit takes until the answer is written."""
    rows = sum(map(len, hit.get("explanation", {}).values()))
    return HIT_BYTES + rows * EXPLAINED_ROW_BYTES + value_bytes([hit.get("text"), hit.get("metadata")])


def _hit(service: Service, hit: Hit, query: Side, body: SearchBody, *, bm25: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "id": hit.id,
        "score": hit.score,
        "scores": _by_leg(hit.scores, bm25=bm25),
        "ranks": _by_leg(hit.ranks, bm25=bm25),
    }
    if "text" in body.include:
        fields["text"] = hit.text
    if "metadata" in body.include:
        fields["metadata"] = dict(hit.metadata)
    if body.explain and hit.embedding is not None:
        fields["explanation"] = _explained(service, hit, hit.embedding, query)
        if bm25:
            fields["explanation"]["bm25"] = weighed_tokens(hit.terms, service.model.token_strings)
    return fields


def _by_leg(values: LegScores | LegRanks, *, bm25: bool) -> dict[str, Any]:
    """Scores or ranks; that of BM25 where the collection has it."""
    fields = asdict(values)
    if not bm25:
        del fields["bm25"]
    return fields


def _explained(service: Service, hit: Hit, embedding: Embedding, query: Side) -> dict[str, Any]:
    # Cut as it was when it was stored, whatever the setting says today.
    length = min(max(hit.tokens, 2), service.model.card.max_length)
    (tokens,) = service.model.tokenize([hit.text], length)
    return explanation(query, Side(embedding, tokens), service.model.token_strings)
