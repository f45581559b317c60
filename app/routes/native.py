"""POST /embed, /rerank and /tokenize."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.access import ReadRoute, accepts
from app.answers import numbers_of
from app.errors import InvalidRequest
from app.reranking import embed_candidates
from app.routes.common import OUTPUTS_OF_MODE, check_count, check_numbers, fusion_weights, json_answer, usage
from app.schemas.base import COMMON_ERRORS, errors, listed
from app.schemas.native import (
    EmbedRequest,
    EmbedResponse,
    RerankRequest,
    RerankResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from app.service import refuse_long, service_of
from app.telemetry import record_of
from app.wire import SAFETENSORS, embedding_json, row_numbers, safetensors_body

router = APIRouter(route_class=ReadRoute, tags=["model"])


@router.post(
    "/embed",
    response_model=EmbedResponse,
    summary="Embed texts",
    responses={
        200: {
            "content": {SAFETENSORS: {"schema": {"type": "string", "format": "binary"}}},
            "description": "Embeddings as JSON, or one safetensors file where `Accept` asks for it",
        },
        **errors(*COMMON_ERRORS, 429),
    },
)
async def embed(body: EmbedRequest, request: Request) -> Response:
    """Dense vector, lexical weights and token vectors of each text, from one forward pass.

    A text of whitespace alone is embedded as the empty sequence `<s></s>`; an empty one is refused.
    """
    service, record = service_of(request), record_of(request)
    texts = listed(body.texts)
    check_count(texts, service.settings.max_texts, "texts")
    wants_tensors = accepts(request, SAFETENSORS)
    if wants_tensors and body.dtype != "float32":
        raise InvalidRequest("a safetensors answer holds float32 only", param="dtype")
    outputs = service.outputs(body.outputs, "outputs")
    limit = service.length_limit(body.kind, body.max_length)
    tokenized = await service.tokenize(texts, limit)
    if not body.truncate:
        refuse_long(tokenized, limit, "texts")
    card = service.model.card
    numbers = numbers_of(
        (len(one.ids) for one in tokenized),
        outputs,
        dense=row_numbers(card.hidden_size, body.encoding, body.dtype),
        colbert=row_numbers(card.colbert_dim, body.encoding, body.dtype),
    )
    if not wants_tensors:
        advice = (
            "ask for fewer texts or `outputs`, for `encoding` base64, or send "
            "`Accept: application/vnd.safetensors`"
        )
        param = "encoding" if body.outputs is not None else "outputs"
        check_numbers(numbers, service.settings.max_json_numbers, advice, param)
    embedded = await service.embed_tokens(record, tokenized, outputs, normalize=body.normalize)
    if wants_tensors:
        # One copy of memory after another, which numpy does without holding up the others.
        tensors = await service.on_the_wire(partial(safetensors_body, embedded.embeddings))
        return Response(tensors, media_type=SAFETENSORS)
    names = service.model.token_strings if body.return_tokens else None

    def results() -> Iterator[dict[str, Any]]:
        for place, one in enumerate(embedded.embeddings):
            fields = embedding_json(one, body.encoding, body.dtype, names)
            yield {"index": place, "tokens": one.tokens, "truncated": one.truncated, **fields}

    # Tokens too, for base64 is few values of many bytes.
    answer = {"model": card.name, "results": results(), "usage": usage(record)}
    return await json_answer(service, lambda: answer, numbers + embedded.tokens)


@router.post(
    "/rerank",
    response_model=RerankResponse,
    summary="Order texts by relevance",
    responses=errors(*COMMON_ERRORS, 429),
)
async def rerank(body: RerankRequest, request: Request) -> Response:
    """Score texts against a query with all outputs, exactly as a search scores its candidates."""
    service, record = service_of(request), record_of(request)
    check_count(body.documents, service.settings.max_texts, "documents")
    service.outputs(OUTPUTS_OF_MODE[body.mode], "mode")
    texts = [one if isinstance(one, str) else one.text for one in body.documents]
    candidates = await embed_candidates(
        service, record, body.query, texts, weights=fusion_weights(body.weights)
    )

    def answer() -> dict[str, Any]:
        by = None if body.mode == "hybrid" else body.mode
        results = [asdict(one) for one in candidates.best_first(by)[: body.top_n]]
        if body.return_documents:
            results = [{**one, "text": texts[one["index"]]} for one in results]
        return {
            "model": service.model.card.name,
            "mode": body.mode,
            "results": results,
            "usage": usage(record),
        }

    # Scoring takes as long as writing ten values for each token.
    return await json_answer(service, answer, 10 * candidates.tokens)


@router.post(
    "/tokenize",
    response_model=TokenizeResponse,
    summary="Tokenise texts",
    responses=errors(*COMMON_ERRORS),
)
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """Token ids, strings and character offsets, and whether /embed would cut the text."""
    service, record = service_of(request), record_of(request)
    texts = listed(body.texts)
    check_count(texts, service.settings.max_texts, "texts")
    tokenized = await service.tokenize(texts, service.length_limit(body.kind, body.max_length))
    record.count(len(texts), sum(len(one.ids) for one in tokenized))
    check_numbers(4 * record.tokens, service.settings.max_json_numbers, "send fewer texts", "texts")

    def results() -> Iterator[dict[str, Any]]:
        for place, one in enumerate(tokenized):
            ids = one.ids.tolist()
            yield {
                "index": place,
                "ids": one.ids,
                "tokens": service.model.token_strings(ids),
                "offsets": [list(pair) for pair in one.offsets],
                "count": one.total,
                "truncated": one.total > len(ids),
            }

    answer = {"model": service.model.card.name, "results": results()}
    return await json_answer(service, lambda: answer, 4 * record.tokens)
