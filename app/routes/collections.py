"""Collections and their documents: create, describe, drop, upsert, read, delete."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from app.access import REST_OF_PATH, ReadRoute, WriteRoute
from app.errors import DocumentNotFound, InvalidRequest
from app.guard import deadline_of
from app.index.collection import Collection, CollectionSettings
from app.index.errors import CollectionNotFound
from app.index.filters import parse
from app.ingest import HandOn, Report, Results, ingest
from app.result_lines import LINES, ResultLines, wants_lines
from app.routes.common import (
    CHARACTERS_A_VALUE,
    CollectionName,
    DocumentName,
    check_count,
    fusion_weights,
    json_answer,
    usage,
)
from app.schemas.base import COMMON_ERRORS, described, errors
from app.schemas.documents import (
    CollectionBody,
    CollectionDescription,
    CollectionList,
    Deleted,
    DeleteRequest,
    DocumentResponse,
    UpsertRefusal,
    UpsertResponse,
)
from app.service import DEFAULT_COLLECTION, Service, service_of
from app.telemetry import record_of
from app.uploads import NDJSON_TYPES, upload_of
from model.scoring import FusionWeights

reading = APIRouter(prefix="/collections", route_class=ReadRoute, tags=["collections"])
writing = APIRouter(prefix="/collections", route_class=WriteRoute, tags=["collections"])

DOCUMENT_PATH = f"/{{name}}/documents/{{id:{REST_OF_PATH}}}"
READING = (*COMMON_ERRORS, 404)
WRITING = (*COMMON_ERRORS, 403, 404, 507)
UPSERT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        {
                            "type": "array",
                            "items": {"$ref": "#/components/schemas/DocumentBody"},
                            "minItems": 1,
                        },
                        {"$ref": "#/components/schemas/UpsertObject"},
                    ]
                }
            },
            **{
                kind: {"schema": {"type": "string", "description": "A document a line, as in the JSON list."}}
                for kind in NDJSON_TYPES
            },
        },
    }
}


@reading.get("", response_model=CollectionList, summary="List collections", responses=errors(*COMMON_ERRORS))
async def list_collections(request: Request) -> Response:
    """All collections, by name."""
    service = service_of(request)

    def describe() -> list[dict[str, Any]]:
        found = []
        for one in service.database.list():
            with suppress(CollectionNotFound):  # dropped meanwhile
                found.append(_described(one))
        return found

    return JSONResponse({"collections": await service.in_index(describe)})


@writing.put(
    "/{name}",
    response_model=CollectionDescription,
    summary="Create a collection",
    responses={
        201: {"model": CollectionDescription, "description": "Created"},
        200: {"description": "It was there with the same settings"},
        **errors(*WRITING, 409),
    },
)
async def create_collection(
    name: CollectionName, request: Request, body: CollectionBody | None = None
) -> Response:
    """Create a collection for the vectors of the model in use; 409 where one has other settings."""
    service = service_of(request)
    body = body or CollectionBody()
    weights = fusion_weights(body.fusion, "fusion") or FusionWeights()
    if weights.bm25 and not body.bm25:
        raise InvalidRequest("bm25 can have a weight where it is true only", param="fusion.bm25")
    settings = CollectionSettings(
        dense_index=body.dense_index,
        colbert=body.colbert,
        colbert_pooling=body.colbert_pooling,
        colbert_candidates=body.colbert_candidates,
        bm25=body.bm25,
        fusion=weights,
    )

    def create() -> tuple[bool, dict[str, Any]]:
        known = any(one.name == name for one in service.database.list())
        return known, _described(service.create_collection(name, settings))

    known, described = await service.write(create)
    return JSONResponse(described, 200 if known else 201)


@reading.get(
    "/{name}",
    response_model=CollectionDescription,
    summary="Describe a collection",
    responses=errors(*READING),
)
async def describe_collection(name: CollectionName, request: Request) -> Response:
    """Settings, count and bytes of each part."""
    service = service_of(request)
    return JSONResponse(await service.in_index(lambda: _described(service.database.get(name))))


@writing.delete("/{name}", response_model=Deleted, summary="Drop a collection", responses=errors(*WRITING))
async def drop_collection(name: CollectionName, request: Request) -> Response:
    """Delete a collection and all its documents."""
    service = service_of(request)

    def drop() -> int:
        count = service.database.get(name).stats().count
        service.database.drop(name)
        return count

    return JSONResponse({"deleted": await service.write(drop)})


def _described(collection: Collection) -> dict[str, Any]:
    info, stats = collection.info, collection.stats()
    return {
        "name": info.name,
        "count": stats.count,
        "bytes": {
            "text": stats.text_bytes,
            "metadata": stats.metadata_bytes,
            "dense": stats.dense_bytes,
            "sparse": stats.sparse_bytes,
            "colbert": stats.colbert_bytes,
            "bm25": stats.terms_bytes,
        },
        "settings": _settings(info.settings),
        "fingerprint": info.fingerprint,
        "hidden_size": info.hidden_size,
        "colbert_dim": info.colbert_dim,
        "created": info.created,
    }


def _settings(settings: CollectionSettings) -> dict[str, Any]:
    """As they were chosen; a weight that can only be 0 is not shown."""
    fields = asdict(settings)
    if not settings.bm25:
        del fields["fusion"]["bm25"]
    return fields


@writing.post(
    "/{name}/documents",
    response_model=UpsertResponse,
    summary="Store documents",
    responses={
        200: {
            "content": {
                LINES: {"schema": {"type": "string", "description": "A result a line, then a summary."}}
            },
            "description": "What became of each document, as JSON, or as lines where `Accept` asks for them",
        },
        **described(UpsertRefusal, *WRITING, 409, 429),
    },
    openapi_extra=UPSERT_BODY,
)
async def upsert_documents(name: CollectionName, request: Request) -> Response:
    """Store documents, each wholly replacing the one of its id; durable and searchable on 200.

    A document that cannot be stored has an `error` in `results` and the others are stored. Where none
    could be, the answer is the first error, with all `results` beside it. The collection `default` is made
    when it is first written to. An NDJSON body may be of any length and is stored as it arrives, so
    what came before a broken connection stays stored; its deadline starts anew with all that is stored. A
    deadline that passes is an error of the documents that were not stored in time, not of the others.

    With `Accept: application/x-ndjson` each result is a line of its own, written when its document is
    durable, and a last line holds the `summary`; without that line the answer is not whole. The status is 200
    then, whatever became of the documents. Read while you send: a client that does not is waited for, and the
    connection is closed when that takes as long as a request may. Any body may be gzipped.
    """
    service, record = service_of(request), record_of(request)
    upload = await upload_of(request, service)
    collection = await service.write(partial(_for_writing, service, name))
    deadline = deadline_of(request)

    def counts(report: Report) -> dict[str, Any]:
        return {"collection": name, "upserted": report.upserted, "failed": report.refused}

    def cost() -> dict[str, Any]:
        return {"usage": usage(record), "model": service.model.card.name}

    if wants_lines(request):

        async def store(hand_on: HandOn) -> tuple[Results, dict[str, Any]]:
            report = await ingest(service, record, collection, upload, deadline, hand_on)
            return report.results, {**counts(report), **cost()}

        return ResultLines(store, patience_s=deadline.seconds)
    report = await ingest(service, record, collection, upload, deadline)
    if report.first_problem is not None and not report.upserted:
        problem = report.first_problem
        error = {**problem.body(), "request_id": record.request_id}
        record.code = problem.code
        headers = {"Retry-After": str(problem.retry_after_s)} if problem.retry_after_s is not None else None
        answer = {"error": error, "results": report.results}
        return await json_answer(service, lambda: answer, 5 * len(report.results), problem.status, headers)
    stored = {**counts(report), "results": report.results, **cost()}
    return await json_answer(service, lambda: stored, 5 * len(report.results))


def _for_writing(service: Service, name: str) -> Collection:
    try:
        collection = service.database.get(name)
    except CollectionNotFound:
        if name != DEFAULT_COLLECTION:
            raise
        collection = service.create_collection(name, CollectionSettings())
    collection.check_model(service.model.card.fingerprint)
    return collection


@reading.get(
    DOCUMENT_PATH,
    response_model=DocumentResponse,
    summary="Read a document",
    responses=errors(*READING),
)
async def read_document(name: CollectionName, id: DocumentName, request: Request) -> Response:
    """A stored document without its vectors."""
    service = service_of(request)
    found = await service.in_index(lambda: service.database.get(name).get(id))
    if found is None:
        raise DocumentNotFound("the collection has no document of that id", param="id")
    document = {
        "id": found.id,
        "text": found.text,
        "metadata": dict(found.metadata),
        "tokens": found.tokens,
        "truncated": found.truncated,
        "outputs": sorted(found.outputs),
    }
    return await json_answer(service, lambda: document, len(found.text) // CHARACTERS_A_VALUE)


@writing.delete(
    DOCUMENT_PATH, response_model=Deleted, summary="Delete a document", responses=errors(*WRITING)
)
async def delete_document(name: CollectionName, id: DocumentName, request: Request) -> Response:
    """Delete one document; 404 where there is none of that id."""
    service = service_of(request)
    deleted = await service.write(lambda: service.database.get(name).delete([id]))
    if not deleted:
        raise DocumentNotFound("the collection has no document of that id", param="id")
    return JSONResponse({"deleted": deleted})


@writing.post(
    "/{name}/documents/delete", response_model=Deleted, summary="Delete documents", responses=errors(*WRITING)
)
async def delete_documents(name: CollectionName, body: DeleteRequest, request: Request) -> Response:
    """Delete by ids or by filter; ids that are not there are passed over."""
    service = service_of(request)
    if (body.ids is None) == (body.filter is None):
        raise InvalidRequest("either ids or filter is expected", param="ids")
    if body.filter is not None:
        condition = parse(body.filter)
        return JSONResponse(
            {"deleted": await service.write(lambda: service.database.get(name).delete_where(condition))}
        )
    ids = body.ids or []
    check_count(ids, service.settings.max_texts, "ids")
    return JSONResponse({"deleted": await service.write(lambda: service.database.get(name).delete(ids))})
