"""GET /tei/info and /tei/health, and what a client that wants a reranker is told under /tei/reranker."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from app.access import ReadRoute
from app.routes.ops import installed
from app.schemas.tei import ERRORS, TeiInfo
from app.service import service_of

router = APIRouter(prefix="/tei", route_class=ReadRoute, tags=["text-embeddings-inference"])
health = APIRouter(prefix="/tei", tags=["text-embeddings-inference"])
HEALTH: dict[str, Any] = {
    "summary": "Can requests be served",
    "response_class": Response,
    "responses": {
        200: {"description": "Yes; there is no body"},
        **{status: ERRORS[status] for status in (422, 500, 503, 504)},
    },
}


@router.get("/info", response_model=TeiInfo, summary="Model and limits", responses=ERRORS)
async def info(request: Request) -> Response:
    """What serves, in the words of text-embeddings-inference; /info says more."""
    return _info(request, {"embedding": {"pooling": "cls"}})


@router.get("/reranker/info", response_model=TeiInfo, summary="The same of a reranker", responses=ERRORS)
async def reranker_info(request: Request) -> Response:
    """For clients that ask whether a server reranks before they let it: their base URL is `/tei/reranker`."""
    label = "relevance"
    return _info(request, {"reranker": {"id2label": {"0": label}, "label2id": {label: 0}}})


def _info(request: Request, model_type: dict[str, Any]) -> Response:
    service = service_of(request)
    card, settings = service.model.card, service.settings
    return JSONResponse(
        {
            "model_id": card.name,
            "model_sha": card.revision,
            "model_dtype": card.precision,
            "model_type": model_type,
            "max_concurrent_requests": settings.max_queue_tokens // 2,
            "max_input_length": card.max_length,
            "max_batch_tokens": settings.max_batch_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": settings.max_texts,
            "auto_truncate": settings.tei_auto_truncate,
            "tokenization_workers": settings.tokenizer_threads,
            "version": installed("trivec"),
            "sha": None,
            "docker_label": None,
        }
    )


@health.get("/health", **HEALTH)
@health.get("/reranker/health", include_in_schema=False)
@health.get("/ping", include_in_schema=False)
@health.get("", **HEALTH)
@health.get("/", include_in_schema=False)
async def check_health(request: Request) -> Response:
    """200 without a body while forward passes work; needs no key."""
    await service_of(request).check_health()
    return Response()
