"""POST /v1/rerank and /v2/rerank: Trivec's hybrid score behind Jina's and Cohere's formats."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.access import ReadRoute
from app.errors import InvalidRequest
from app.reranking import embed_candidates
from app.routes.common import check_count, json_answer, truncated_header
from app.schemas.base import errors_like, text_of
from app.schemas.openai import OpenAIErrorBody
from app.schemas.rerankers import (
    CohereErrorBody,
    CohereRerankResponse,
    ForeignRerankRequest,
    JinaRerankResponse,
)
from app.service import service_of
from app.telemetry import record_of

router = APIRouter(route_class=ReadRoute, tags=["like Jina and Cohere"])


@router.post(
    "/v1/rerank",
    response_model=JinaRerankResponse,
    response_model_exclude_none=True,
    summary="Order texts by relevance, in Jina's format",
    responses=errors_like(OpenAIErrorBody),
)
async def rerank_v1(body: ForeignRerankRequest, request: Request) -> Response:
    """What Jina's clients call, and Cohere's of version 1: the answer has the fields of both."""
    return await _rerank(body, request, "1", with_documents=body.return_documents is not False)


@router.post(
    "/v2/rerank",
    response_model=CohereRerankResponse,
    response_model_exclude_none=True,
    summary="Order texts by relevance, in Cohere's format",
    responses=errors_like(CohereErrorBody),
)
async def rerank_v2(body: ForeignRerankRequest, request: Request) -> Response:
    """What Cohere's clients call."""
    return await _rerank(body, request, "2", with_documents=body.return_documents is True)


async def _rerank(
    body: ForeignRerankRequest, request: Request, version: str, *, with_documents: bool
) -> Response:
    service, record = service_of(request), record_of(request)
    card = service.model.card
    check_count(body.documents, service.settings.max_texts, "documents")
    if body.rank_fields not in (None, [], ["text"]):
        raise InvalidRequest("documents are ranked by `text` alone", param="rank_fields")
    texts = [text_of(one) for one in body.documents]
    # Capped and not refused: clients send what the model they were written for can take.
    most = None if body.max_tokens_per_doc is None else min(body.max_tokens_per_doc, card.max_length)
    candidates = await embed_candidates(service, record, text_of(body.query), texts, text_tokens=most)

    def answer() -> dict[str, Any]:
        best = candidates.best_first()[: body.top_n]
        results: list[dict[str, Any]] = [{"index": one.index, "relevance_score": one.score} for one in best]
        if with_documents:
            results = [{**one, "document": {"text": texts[one["index"]]}} for one in results]
        found: dict[str, Any] = {
            "id": record.request_id,
            "results": results,
            "meta": {"api_version": {"version": version}, "billed_units": {"search_units": 1}},
        }
        if version == "1":
            found |= {"model": card.name, "usage": {"total_tokens": record.tokens}}
        return found

    # Scoring takes as long as writing ten values for each token.
    return await json_answer(
        service, answer, 10 * candidates.tokens, headers=truncated_header(candidates.truncated)
    )
