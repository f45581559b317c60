"""The composition root: settings and a model in, an ASGI application out.

Nothing happens on import. The model is loaded by the application's lifespan, in a thread, while
/health/live answers already.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import anyio.to_thread
from fastapi import FastAPI, Security
from fastapi.security import HTTPBearer
from pydantic.json_schema import models_json_schema

from app import errors
from app.cors import Cors, Preflights
from app.deflate import Deflated
from app.guard import Guard, Heads, UnderWay
from app.index.collection import Database
from app.metrics import Metrics
from app.ports import TextModel
from app.routes import cohere, collections, docs, native, openai, ops, rerankers, search, tei, tei_ops
from app.schemas.documents import UpsertObject
from app.scrape import ServiceCollector
from app.service import Service
from app.settings import ApiKey, Settings, unknown_variables
from app.targets import OriginForm
from app.telemetry import Telemetry
from app.tidying import give_memory_back
from app.tracing import Tracing, configured_tracing

DESCRIPTION = """BGE-M3 as one retrieval server: dense, lexical and ColBERT vectors from one forward pass,
indexed and searched together. Every error is `{"error": {"code", "message", "param", "request_id"}}`, but for
the routes that are like those of another API: their errors are like that API's too. Every route takes
`X-Request-Timeout` (seconds, then 504) and `X-Request-ID` (sent back, and logged), and answers 405 with
`Allow` to a method that its path does not have."""

TRACES_S = 5.0
"""At the end, for spans that the collector has not got yet."""
OFF: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""FastAPI's own telemetry would send paths as they came, ids of documents in them, and exceptions' words."""

_log = logging.getLogger("trivec.main")


def create_app(
    settings: Settings,
    *,
    model: TextModel | None = None,
    database: Database | None = None,
    on_load_failure: Callable[[Exception], None] | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """The service as an ASGI application. Its counters are its own: there may be several in a process.

    A given `model` is used as it is, a given `database` too (the lifespan closes it); without a model the
    one that `settings` name is loaded. Where that fails, only /health/live answers and `on_load_failure` is
    called, so that a command line can end the process. `tracing` is by default what OpenTelemetry's own
    variables want.
    Raises ValueError where the settings' key file cannot be used; DataFolderInUse comes out of the lifespan.
    """
    version, metrics, keys = ops.installed("trivec"), Metrics(), settings.keys()
    tracing = tracing or configured_tracing(version)
    app = FastAPI(
        title="Trivec",
        version=version,
        description=DESCRIPTION,
        lifespan=_lifespan(settings, keys, model, database, on_load_failure, metrics, tracing),
        telemetry=OFF,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # see app.slashes
    )
    app.include_router(ops.health)
    app.include_router(tei_ops.health)
    app.include_router(docs.router)
    guarded = [Security(HTTPBearer(auto_error=False, description="Needed where the server has API keys."))]
    # `writing` before `reading`: POST .../documents/delete must not be taken for anything else.
    own = (native.router, search.router, collections.writing, collections.reading, ops.watched, ops.router)
    for router in (*own, openai.router, rerankers.router, cohere.router, tei.router, tei_ops.router):
        app.include_router(router, dependencies=guarded)
    errors.install(app)
    app.state.under_way, app.state.metrics = UnderWay(), metrics
    app.add_middleware(
        Guard,
        max_body_bytes=settings.max_body_bytes,
        timeout_s=settings.request_timeout_s,
        under_way=app.state.under_way,
    )
    app.add_middleware(Deflated, max_bytes=settings.gzip_max_bytes)
    app.add_middleware(Heads)
    # The last one added is the outermost. Telemetry sees preflights, and its own 500 can be read by pages.
    if settings.cors_origins:
        app.add_middleware(Preflights, origins=settings.cors_origins)
    app.add_middleware(Telemetry, metrics=metrics, tracing=tracing)
    if settings.cors_origins:
        app.add_middleware(Cors, origins=settings.cors_origins)
    app.add_middleware(OriginForm)
    app.openapi = partial(_openapi, app.openapi, open_to_all=not keys)  # type: ignore[method-assign]
    return app


def load_model(settings: Settings) -> TextModel:
    """The model that the settings name; imports TensorFlow, and may download for minutes."""
    from app.loading import load_text_model

    return load_text_model(settings)


def _lifespan(
    settings: Settings,
    keys: tuple[ApiKey, ...],
    model: TextModel | None,
    given: Database | None,
    on_load_failure: Callable[[Exception], None] | None,
    metrics: Metrics,
    tracing: Tracing,
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for name in unknown_variables():
            _log.warning("%s names no setting and is ignored", name)
        opened = partial(Database, settings.data_dir)
        database = await anyio.to_thread.run_sync(opened) if given is None else given
        service = Service(settings, keys, database, metrics=metrics, tracing=tracing)
        app.state.service = service
        watching = ServiceCollector(service, app.version)
        metrics.registry.register(watching)
        tracing.open()
        loading: asyncio.Task[None] | None = None
        tidying = asyncio.create_task(give_memory_back())
        try:
            if model is not None:
                await service.load(model)
            else:
                loading = asyncio.create_task(_load(service, on_load_failure))
            yield
        finally:
            ending = [tidying] if loading is None else [tidying, loading]
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
            await service.close()
            metrics.registry.unregister(watching)
            await anyio.to_thread.run_sync(tracing.close, TRACES_S)

    return lifespan


async def _load(service: Service, on_failure: Callable[[Exception], None] | None) -> None:
    try:
        model, _ = await asyncio.gather(
            anyio.to_thread.run_sync(load_model, service.settings, abandon_on_cancel=True),
            anyio.to_thread.run_sync(service.load_index, abandon_on_cancel=True),
        )
        await service.load(model)
    except Exception as error:  # noqa: BLE001 - whatever kept it from loading, the operator must read it
        _log.critical("the service could not be loaded: %s: %s", type(error).__name__, error)
        service.give_up()
        if on_failure is not None:
            on_failure(error)
    else:
        service.warm_up()


def _openapi(generate: Callable[[], dict[str, Any]], *, open_to_all: bool) -> dict[str, Any]:
    """FastAPI's document, made true: with bodies that a handler reads by itself, without what never comes.

    FastAPI adds a 422 in a form of its own wherever none is declared, which is where other APIs answer 400.
    A server without keys asks for none.
    """
    document = generate()
    schemas = document["components"]["schemas"]
    _, definitions = models_json_schema(
        [(UpsertObject, "validation")], ref_template="#/components/schemas/{model}"
    )
    for name, schema in definitions["$defs"].items():
        schemas.setdefault(name, schema)
    for operation in (one for path in document["paths"].values() for one in path.values()):
        if "HTTPValidationError" in str(operation["responses"].get("422")):
            del operation["responses"]["422"]
        if open_to_all:
            operation.pop("security", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return document
