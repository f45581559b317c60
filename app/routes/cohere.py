"""POST /v1/embed and /v2/embed, as Cohere's clients know them."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.access import ReadRoute
from app.errors import InvalidRequest
from app.routes.common import (
    CHARACTERS_A_VALUE,
    check_count,
    check_cut,
    check_numbers,
    check_width,
    json_answer,
    kind_of,
    truncation,
)
from app.schemas.base import VectorKind, errors_like
from app.schemas.cohere import CohereEmbedRequest, CohereEmbedResponse, CohereFloatsResponse
from app.schemas.openai import OpenAIErrorBody
from app.schemas.rerankers import CohereErrorBody
from app.service import service_of
from app.telemetry import record_of
from app.wire import foreign_numbers, foreign_rows

router = APIRouter(route_class=ReadRoute, tags=["like Jina and Cohere"])


@router.post(
    "/v1/embed",
    response_model=CohereEmbedResponse | CohereFloatsResponse,
    summary="Dense vectors in the format of Cohere's version 1",
    responses=errors_like(OpenAIErrorBody),
)
async def embed_v1(body: CohereEmbedRequest, request: Request) -> Response:
    """Without `embedding_types` a plain list of vectors, else lists by format."""
    return await _embed(body, request, "1")


@router.post(
    "/v2/embed",
    response_model=CohereEmbedResponse,
    summary="Dense vectors in Cohere's format",
    responses=errors_like(CohereErrorBody),
)
async def embed_v2(body: CohereEmbedRequest, request: Request) -> Response:
    """Lists of vectors by format; `X-Truncated-Texts` says how many texts were cut."""
    return await _embed(body, request, "2")


async def _embed(body: CohereEmbedRequest, request: Request, version: str) -> Response:
    service, record = service_of(request), record_of(request)
    card = service.model.card
    texts, param = _texts(body)
    check_count(texts, service.settings.max_texts, param)
    check_width(body.output_dimension, card.hidden_size, "output_dimension")
    kinds: list[VectorKind] = list(dict.fromkeys(body.embedding_types or ["float"]))
    numbers = sum(foreign_numbers(card.hidden_size, kind) for kind in kinds) * len(texts)
    check_numbers(
        numbers, service.settings.max_json_numbers, "ask for fewer texts or types", "embedding_types"
    )
    # Capped and not refused: clients send what the model they were written for can take.
    most = None if body.max_tokens is None else min(body.max_tokens, card.max_length)
    limit = service.length_limit(kind_of(body.input_type), most)
    tokenized = await service.tokenize(texts, limit)
    check_cut(tokenized, limit, body.truncate or "END", param)
    embedded = await service.embed_tokens(record, tokenized, frozenset(["dense"]))
    plain = version == "1" and not body.embedding_types

    def answer() -> dict[str, Any]:
        dense = np.stack([one.dense for one in embedded.embeddings if one.dense is not None])
        by_kind = {kind: foreign_rows(dense, kind) for kind in kinds}
        return {
            "id": record.request_id,
            "response_type": "embeddings_floats" if plain else "embeddings_by_type",
            "embeddings": by_kind["float"] if plain else by_kind,
            "texts": texts,
            "meta": {
                "api_version": {"version": version},
                "billed_units": {"input_tokens": record.tokens},
            },
        }

    characters = sum(map(len, texts))
    values = card.hidden_size * len(texts) * len(kinds) + characters // CHARACTERS_A_VALUE
    return await json_answer(service, answer, values, headers=truncation(tokenized))


def _texts(body: CohereEmbedRequest) -> tuple[list[str], str]:
    """The texts and the field that holds them."""
    if body.images:
        raise InvalidRequest("this model reads texts, no pictures", param="images")
    if body.texts is not None and body.inputs is not None:
        raise InvalidRequest("texts are sent as `texts` or as `inputs`, not both", param="inputs")
    if body.inputs is not None:
        return [one.content[0].text for one in body.inputs], "inputs"
    if body.texts is None:
        raise InvalidRequest("texts are missing", param="texts")
    return body.texts, "texts"
