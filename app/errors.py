"""One table: what went wrong -> status, code and message of the answer.

A message names the limit or the field, never the user's text, a path or a stack. Of the table's classes the
closest one wins. How an error is written depends on the route: see `app.error_formats`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from app.error_formats import Problem, error_format
from app.index import errors as index
from app.slashes import without_slashes
from model.embedding import OUTPUTS

REQUEST_ID = "trivec.request_id"
"""Where an ASGI scope holds the id of its request."""
RECORD = "trivec.record"
"""Where it holds what telemetry records of the request."""

DRAINING_RETRY_S = 5
"""For another process to take over."""
_MAX_PARAM_CHARS = 200
_NO_OBJECT = ("dict_type", "model_type", "model_attributes_type")
"""Findings of pydantic's that speak of Python's types."""
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_log = logging.getLogger("trivec.errors")


class ServiceFault(Exception):  # noqa: N818 - the subclasses say what it is, "Error" would say it again
    """An answer that is no success; `message` is safe to show to a client."""

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class MalformedHttp(ServiceFault):
    """The request's head may be read in two ways."""


class InvalidRequest(ServiceFault):
    """A field has a value that cannot be served."""


class EmptyInput(InvalidRequest):
    """A text or a list is empty, where that is told from other faults."""


class TokensInvalid(InvalidRequest):
    """Token ids that the vocabulary does not have."""


class MalformedJson(ServiceFault):
    """The body is not JSON."""


class LimitExceeded(ServiceFault):
    """A number or a list is over its limit."""


class OutputUnavailable(ServiceFault):
    """The checkpoint has no head for an output that was asked for."""


class TextTooLong(ServiceFault):
    """A text has more tokens than allowed and may not be cut."""


class BodyTooLarge(ServiceFault):
    """The request body has more bytes than allowed."""


class AnswerTooLarge(ServiceFault):
    """The answer would take more memory than one may."""


class UnsupportedEncoding(ServiceFault):
    """The request body is compressed in a way that is not read."""


class MalformedGzip(ServiceFault):
    """The request body is said to be gzipped and is not, or not to its end."""


class Unauthorized(ServiceFault):
    """No API key, or an unknown one."""


class ReadOnlyKey(ServiceFault):
    """The API key may read but not write."""


class QueueFull(ServiceFault):
    """Too many tokens wait for the model, or too many searches are under way."""


class NotReady(ServiceFault):
    """The model has not answered yet, or has stopped answering."""


class LoadFailed(ServiceFault):
    """The model cannot be loaded: waiting does not help."""


class DocumentNotFound(ServiceFault):
    """The collection holds no document of that id."""


class ModelNotFound(ServiceFault):
    """A model is asked about that is not the one that serves."""


class Draining(ServiceFault):
    """The service is shutting down."""


class DeadlineExceeded(ServiceFault):
    """The time that the client or the service allows has passed."""


class InferenceFailed(ServiceFault):
    """The forward pass failed for this text."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `message` replaces the error's own words where those may not be shown."""

    status: int
    code: str
    message: str | None = None


TABLE: Mapping[type[Exception], Row] = {
    MalformedHttp: Row(400, "malformed_http"),
    InvalidRequest: Row(422, "invalid_request"),
    EmptyInput: Row(422, "empty_input"),
    TokensInvalid: Row(422, "invalid_tokens"),
    MalformedJson: Row(422, "malformed_json"),
    LimitExceeded: Row(422, "limit_exceeded"),
    OutputUnavailable: Row(422, "output_unavailable"),
    TextTooLong: Row(413, "text_too_long"),
    BodyTooLarge: Row(413, "body_too_large"),
    AnswerTooLarge: Row(413, "answer_too_large"),
    UnsupportedEncoding: Row(415, "unsupported_encoding"),
    MalformedGzip: Row(422, "malformed_gzip"),
    Unauthorized: Row(401, "unauthorized"),
    ReadOnlyKey: Row(403, "read_only_key"),
    QueueFull: Row(429, "queue_full"),
    NotReady: Row(503, "not_ready"),
    LoadFailed: Row(500, "load_failed"),
    Draining: Row(503, "draining"),
    DeadlineExceeded: Row(504, "deadline_exceeded"),
    InferenceFailed: Row(500, "inference_failed"),
    DocumentNotFound: Row(404, "document_not_found"),
    ModelNotFound: Row(404, "model_not_found"),
    index.CollectionNotFound: Row(404, "collection_not_found"),
    index.CollectionExists: Row(409, "collection_exists"),
    index.ModelMismatch: Row(409, "model_mismatch"),
    index.InputInvalid: Row(422, "invalid_request"),
    index.NameInvalid: Row(422, "invalid_name"),
    index.DocumentInvalid: Row(422, "invalid_document"),
    index.QueryInvalid: Row(422, "invalid_query"),
    index.FilterError: Row(422, "invalid_filter"),
    # The index's own words on its files may name them.
    index.StorageFull: Row(507, "storage_full", "the data folder's disk is full; searching still works"),
    index.StorageUnavailable: Row(503, "storage_unavailable", "the data folder does not answer; try again"),
    index.IndexFault: Row(500, "storage_failed", "the index failed; the service's log names this request id"),
    Exception: Row(
        500, "internal_error", "something went wrong inside the service; its log names this request id"
    ),
}

_HTTP_ROWS: Mapping[int, Row] = {
    404: Row(404, "not_found", "there is no such route"),
    405: Row(405, "method_not_allowed", "this route does not answer that method"),
}


def describe(error: Exception) -> Problem:
    """Look an error up; anything without a line of its own is an internal error that says nothing."""
    if isinstance(error, RequestValidationError):
        return validation_problem(error.errors())
    if isinstance(error, HTTPException):
        row = _HTTP_ROWS.get(
            error.status_code, Row(error.status_code, "http_error", "the request was refused")
        )
        return Problem(row.status, row.code, row.message or "")
    row = next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)
    retry = getattr(error, "retry_after_s", None)
    if row.status == 503 and retry is None:
        retry = DRAINING_RETRY_S if isinstance(error, Draining) else 1
    return Problem(row.status, row.code, row.message or _printable(str(error)), param_of(error), retry)


def param_of(error: Exception) -> str | None:
    """The field that an error is about, by its name on the wire."""
    if isinstance(error, ServiceFault):
        return error.param
    if isinstance(error, index.FilterError):
        return f"filter.{_printable(error.path)[:_MAX_PARAM_CHARS]}" if error.path else "filter"
    if isinstance(error, index.QueryInvalid):
        return error.part
    if isinstance(error, index.DocumentInvalid):
        return f"embedding.{error.part}" if error.part in OUTPUTS else error.part
    return "name" if isinstance(error, index.NameInvalid) else None


def validation_problem(errors: Sequence[Mapping[str, object]]) -> Problem:
    """The first of pydantic's findings; its message says what is expected and its place becomes `param`."""
    first = errors[0]
    place = first.get("loc", ())
    parts = list(place) if isinstance(place, tuple | list) else []
    if parts and parts[0] in ("body", "query", "path", "header"):
        parts = parts[1:]
    # Branches of a union are tagged `<so>` in app.schemas; a client knows fields only.
    shown = ".".join(str(part) for part in parts if not str(part).startswith("<"))
    message = str(first.get("msg", "the value is not valid"))
    kind = first.get("type")
    if kind == "extra_forbidden":
        message = "there is no such field"
    elif kind in _NO_OBJECT:
        message = "an object is expected"
    elif kind == "missing" and not shown:
        message = "a JSON body is expected"
    return Problem(422, "invalid_request", message, _printable(shown)[:_MAX_PARAM_CHARS] or None)


def _printable(text: str) -> str:
    """A client chooses field names: half a surrogate pair among them must not break the answer."""
    return text.encode("utf-8", "replace").decode("utf-8")


def note_code(scope: Scope, code: str) -> None:
    """Tell telemetry the code of the error that a request is answered with, in whatever wire format."""
    if (record := scope.get(RECORD)) is not None:
        record.code = code


class ErrorResponse(JSONResponse):
    """An error body; telemetry learns its code when it is sent."""

    def __init__(
        self, content: Mapping[str, object], status: int, headers: Mapping[str, str], code: str
    ) -> None:
        super().__init__(dict(content), status, headers)
        self._code = code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        note_code(scope, self._code)
        await super().__call__(scope, receive, send)


def error_response(problem: Problem, scope: Scope, headers: Mapping[str, str] | None = None) -> ErrorResponse:
    """The HTTP answer to a problem with the request of this ASGI scope, in the form its path stands for."""
    own = dict(headers or {})
    if problem.retry_after_s is not None:
        own["Retry-After"] = str(problem.retry_after_s)
    if problem.status == 401:
        own["WWW-Authenticate"] = "Bearer"
    path = str(scope["path"]).removeprefix(str(scope.get("root_path", "")))
    found = error_format(path)(problem, str(scope.get(REQUEST_ID, "")))
    return ErrorResponse(found.body, found.status, own, problem.code)


async def answer_error(request: Request, error: Exception) -> Response:
    """Starlette's exception handler for every class of the table."""
    headers = error.headers if isinstance(error, HTTPException) else None
    if isinstance(error, HTTPException) and error.status_code == 404 and (place := without_slashes(request)):
        return RedirectResponse(place, 307)
    if isinstance(error, HTTPException) and error.status_code == 405:
        headers = {**(headers or {}), "Allow": ", ".join(_methods_of(request))}
    log_hidden(error, str(request.scope.get(REQUEST_ID, "")))
    return error_response(describe(error), request.scope, headers)


def _methods_of(request: Request) -> list[str]:
    """The methods that the request's path answers: Starlette itself names those of one route of several."""
    routes, scope = request.app.router.routes, {**request.scope}
    scope.pop("fastapi", None)  # what FastAPI has noted of the route that did not fit
    found = [
        method
        for method in _METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
    ]
    return [*found, "HEAD"] if "GET" in found else found  # see app.guard.Heads


def log_hidden(error: Exception, request_id: str) -> None:
    """Log the index's own words where the client gets others: the operator needs them."""
    if isinstance(error, index.StorageFault):
        fields = {"request_id": request_id, "error": type(error).__name__}
        _log.error("the index failed: %s", error, extra={"fields": fields})


def install(app: FastAPI) -> None:
    """Have `app` answer every error of the table but the unexpected, which telemetry catches and logs."""
    for kind in (*TABLE, RequestValidationError, HTTPException):
        if kind is not Exception:
            app.add_exception_handler(kind, answer_error)
