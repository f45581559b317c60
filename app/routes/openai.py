"""POST /v1/embeddings and GET /v1/models, as OpenAI's and Jina's clients know them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from app.access import REST_OF_PATH, ReadRoute
from app.errors import InvalidRequest, ModelNotFound
from app.ports import Tokenized
from app.routes.common import (
    FEW_VALUES,
    check_count,
    check_cut,
    check_numbers,
    check_width,
    json_answer,
    kind_of,
    truncation,
)
from app.schemas.base import Cut, TextObject, VectorKind, errors_like, text_of
from app.schemas.openai import (
    EmbeddingsRequest,
    EmbeddingsResponse,
    ModelList,
    ModelObject,
    OpenAIErrorBody,
)
from app.service import Service, service_of
from app.telemetry import record_of
from app.token_ids import GivenTokens
from app.wire import foreign_numbers, foreign_rows

router = APIRouter(prefix="/v1", route_class=ReadRoute, tags=["like OpenAI and Jina"])


@router.post(
    "/embeddings",
    response_model=EmbeddingsResponse,
    summary="Dense vectors in OpenAI's format",
    responses=errors_like(OpenAIErrorBody),
)
async def embeddings(body: EmbeddingsRequest, request: Request) -> Response:
    """What OpenAI's and Jina's clients call; `X-Truncated-Texts` says how many texts were cut."""
    service, record = service_of(request), record_of(request)
    card = service.model.card
    kind = _vector_kind(body)
    _refuse_what_changes_vectors(body, card.hidden_size)
    limit = service.length_limit(kind_of(body.task, body.input_type), body.max_length)
    tokenized = await _tokenized(service, body, limit)
    check_cut(tokenized, limit, _cut(body), "input")
    check_numbers(
        foreign_numbers(card.hidden_size, kind) * len(tokenized),
        service.settings.max_json_numbers,
        "ask for fewer texts or for `encoding_format` base64",
        "encoding_format",
    )
    embedded = await service.embed_tokens(
        record, tokenized, frozenset(["dense"]), normalize=body.normalized is not False
    )

    def answer() -> dict[str, Any]:
        dense = np.stack([one.dense for one in embedded.embeddings if one.dense is not None])
        data: Iterator[dict[str, Any]] = (
            {"object": "embedding", "index": place, "embedding": row}
            for place, row in enumerate(foreign_rows(dense, kind))
        )
        usage = {"prompt_tokens": record.tokens, "total_tokens": record.tokens}
        return {"object": "list", "data": data, "model": card.name, "usage": usage}

    return await json_answer(
        service, answer, card.hidden_size * len(tokenized), headers=truncation(tokenized)
    )


def _vector_kind(body: EmbeddingsRequest) -> VectorKind:
    asked = body.vector_kinds() or {"float"}
    if len(asked) > 1:
        raise InvalidRequest("one format at a time, by one name", param="embedding_type")
    return next(iter(asked))


def _refuse_what_changes_vectors(body: EmbeddingsRequest, width: int) -> None:
    """Fields that may not be ignored: whoever sends them expects other vectors than the model's."""
    check_width(body.dimensions, width, "dimensions")
    if body.late_chunking:
        raise InvalidRequest(
            "texts are embedded one by one, there is no late chunking", param="late_chunking"
        )
    if body.return_multivector:
        raise InvalidRequest(
            "this route gives dense vectors; /embed gives all three outputs", param="return_multivector"
        )


def _cut(body: EmbeddingsRequest) -> Cut:
    if isinstance(body.truncate, str):
        return body.truncate
    return "NONE" if body.truncate is False else "END"


async def _tokenized(service: Service, body: EmbeddingsRequest, limit: int) -> Sequence[Tokenized]:
    """Texts or token ids as tokens, cut at `limit`."""
    given = body.input
    items = given if isinstance(given, list) else [given]
    texts = [text_of(one) for one in items if isinstance(one, str | TextObject)]
    if texts:
        check_count(texts, service.settings.max_texts, "input")
        return await service.tokenize(texts, limit)
    lists = [one for one in items if isinstance(one, list)]
    if lists:
        check_count(lists, service.settings.max_texts, "input")
    params = [f"input.{place}" for place in range(len(lists))]
    if not lists:
        lists, params = [[one for one in items if isinstance(one, int)]], ["input"]
    # White space alone is the empty sequence: what every list of ids must begin and end with.
    (frame,) = await service.tokenize([" "], 2)
    first, last = frame.ids.tolist()
    vocabulary = service.model.card.vocab_size

    def checked() -> list[GivenTokens]:
        return [
            _given(ids, (first, last), vocabulary, limit, param)
            for ids, param in zip(lists, params, strict=True)
        ]

    few = sum(map(len, lists)) <= FEW_VALUES
    return checked() if few else await service.on_the_wire(checked)


def _given(ids: list[int], frame: tuple[int, int], vocabulary: int, limit: int, param: str) -> GivenTokens:
    """One list of ids; raises InvalidRequest where they cannot be this model's.

    Ids of another tokenizer are numbers like any other, but they lack `<s>` and `</s>`. Put around them
    unasked, these would turn a client's mistake into the vectors of other words.
    """
    if len(ids) < 2 or (ids[0], ids[-1]) != frame:
        raise InvalidRequest(
            f"token ids must be this model's own, `<s>` ({frame[0]}) first and `</s>` ({frame[1]}) last; "
            "those of another tokenizer, such as tiktoken's, mean other words here: send texts "
            "(in LangChain, set check_embedding_ctx_length=False)",
            param=param,
        )
    if max(ids) >= vocabulary:
        raise InvalidRequest(f"this model's token ids lie between 0 and {vocabulary - 1}", param=param)
    kept = ids if len(ids) <= limit else [*ids[: limit - 1], frame[1]]
    return GivenTokens(np.array(kept, np.int32), len(ids))


@router.get(
    "/models",
    response_model=ModelList,
    summary="The model that serves, as a list",
    responses=errors_like(OpenAIErrorBody),
)
async def models(request: Request) -> Response:
    """A list of one."""
    return JSONResponse({"object": "list", "data": [_model(service_of(request))]})


@router.get(
    f"/models/{{model:{REST_OF_PATH}}}",
    response_model=ModelObject,
    summary="The model that serves",
    responses=errors_like(OpenAIErrorBody, 404),
)
async def model(model: str, request: Request) -> Response:
    """The model of that name; 404 for every other, though /v1/embeddings accepts any name."""
    found = _model(service_of(request))
    if model != found["id"]:
        raise ModelNotFound("this service has one model, and another name", param="model")
    return JSONResponse(found)


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.model.card.name,
        "object": "model",
        "created": int(service.loaded_at),
        "owned_by": "trivec",
    }
