"""GET /health/live, /health/ready, /metrics and /info."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from app.access import ReadRoute, WatchRoute
from app.schemas.base import COMMON_ERRORS, errors
from app.schemas.ops import Health, Info
from app.service import service_of

health = APIRouter(prefix="/health", tags=["operations"])
watched = APIRouter(route_class=WatchRoute, tags=["operations"])
router = APIRouter(route_class=ReadRoute, tags=["operations"])

PACKAGES = ("fastapi", "faiss-cpu", "numpy", "tensorflow", "tokenizers")


@health.get("/live", response_model=Health, summary="Is the process alive", responses=errors(422, 504))
async def live() -> Response:
    """200 as soon as the process answers, whatever the model does; needs no key."""
    return JSONResponse({"status": "ok"})


@health.get(
    "/ready", response_model=Health, summary="Can requests be served", responses=errors(422, 500, 503, 504)
)
async def ready(request: Request) -> Response:
    """200 while forward passes work. After one failed, a fresh one decides; needs no key."""
    await service_of(request).check_health()
    return JSONResponse({"status": "ok"})


@watched.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={
        200: {
            "content": {"text/plain": {"schema": {"type": "string"}}},
            "description": "Prometheus's text format, or OpenMetrics where `Accept` prefers it",
        },
        **errors(*(one for one in COMMON_ERRORS if one != 503)),
    },
)
async def metrics(request: Request) -> Response:
    """Counts and times of this process; needs a key where the server has keys, and no model."""
    body, content_type = await service_of(request).scraped(request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": content_type})


@router.get(
    "/info", response_model=Info, summary="Model, limits and versions", responses=errors(*COMMON_ERRORS)
)
async def info(request: Request) -> Response:
    """What serves, and what a request may ask for."""
    service = service_of(request)
    card, settings = service.model.card, service.settings
    limits = {
        "max_length": card.max_length,
        "query_max_length": service.length_limit("query", None),
        "passage_max_length": service.length_limit("passage", None),
        "max_texts": settings.max_texts,
        "max_json_numbers": settings.max_json_numbers,
        "max_answer_bytes": settings.max_answer_bytes,
        "max_top_k": settings.max_top_k,
        "max_candidates": settings.max_candidates,
        "max_body_bytes": settings.max_body_bytes,
        "max_batch_tokens": settings.max_batch_tokens,
        "max_queue_tokens": settings.max_queue_tokens,
        "max_searches": settings.max_searches,
        "request_timeout_s": settings.request_timeout_s,
    }
    return JSONResponse(
        {
            "name": "trivec",
            "version": installed("trivec"),
            "model": asdict(card),
            "limits": limits,
            "versions": {"python": platform.python_version(), **{name: installed(name) for name in PACKAGES}},
        }
    )


def installed(package: str) -> str:
    """A package's version without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
