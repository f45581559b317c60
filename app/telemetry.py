"""What the service tells its operator: one JSON line for each request, and the request's id.

A line holds id, route template, status, counts and milliseconds; never text, vectors, ids of documents
or the path as it was sent. Metrics are not here.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import REQUEST_ID, describe, error_response

REQUEST_ID_HEADER = "X-Request-ID"
MAX_REQUEST_ID_CHARS = 128
CLIENT_GONE_STATUS = 499
"""Logged, never sent: the client closed the connection before there was an answer."""

_RECORD = "trivec.record"
_log = logging.getLogger("trivec.requests")


@dataclass(slots=True)
class Record:
    """What a request cost, filled in by its handler."""

    request_id: str
    texts: int = 0
    tokens: int = 0
    queue_ms: float = 0.0
    inference_ms: float | None = None

    def count(self, texts: int, tokens: int) -> None:
        """Add texts and their tokens, after truncation."""
        self.texts += texts
        self.tokens += tokens

    def timed(self, queue_ms: float, inference_ms: float) -> None:
        """Add the times of one passage through the batcher."""
        self.queue_ms += queue_ms
        self.inference_ms = (self.inference_ms or 0.0) + inference_ms


def record_of(request: Request) -> Record:
    """The record of the request under way; one of its own where the middleware is absent."""
    record = request.scope.setdefault(_RECORD, Record(""))
    assert isinstance(record, Record)
    return record


def request_id_of(headers: Headers) -> str:
    """The client's own id where it is short printable ASCII, else a new one."""
    given = headers.get(REQUEST_ID_HEADER, "")
    sane = 0 < len(given) <= MAX_REQUEST_ID_CHARS and given.isascii() and given.isprintable()
    return given if sane else uuid.uuid4().hex


class Telemetry:
    """ASGI middleware, the outermost: id in, id out, one log line, and 500 for what nobody expected."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; it lets no Exception out, so that no server logs a message of ours in full."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        record = Record(request_id_of(Headers(scope=scope)))
        scope[REQUEST_ID], scope[_RECORD] = record.request_id, record
        status = CLIENT_GONE_STATUS

        async def stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _stamp(MutableHeaders(scope=message), record)
            await send(message)

        try:
            await self._app(scope, receive, stamped)
        except ClientDisconnect:
            _log.debug("the client left before its request was read")
        except Exception as error:  # noqa: BLE001 - the outermost boundary: the answer is 500, the log has the rest
            _log_defect(record.request_id, error)
            if status == CLIENT_GONE_STATUS:
                await error_response(describe(error), scope)(scope, receive, stamped)
        finally:
            _log_request(scope, record, status, began)


def _stamp(headers: MutableHeaders, record: Record) -> None:
    headers[REQUEST_ID_HEADER] = record.request_id
    if record.inference_ms is not None:
        headers["Server-Timing"] = f"queue;dur={record.queue_ms:.1f}, inference;dur={record.inference_ms:.1f}"


def _log_request(scope: Scope, record: Record, status: int, began: float) -> None:
    fields = {
        "request_id": record.request_id,
        "method": scope["method"],
        "route": getattr(scope.get("route"), "path", None),
        "status": status,
        "texts": record.texts,
        "tokens": record.tokens,
        "queue_ms": round(record.queue_ms, 1),
        "inference_ms": round(record.inference_ms or 0.0, 1),
        "total_ms": round((time.monotonic() - began) * 1000, 1),
    }
    _log.info("request", extra={"fields": fields})


def _log_defect(request_id: str, error: Exception) -> None:
    """Type and place only: the words of an exception often quote the value that it stumbled over."""
    frames = traceback.extract_tb(error.__traceback__)
    fields = {
        "request_id": request_id,
        "error": type(error).__name__,
        "trace": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
    _log.error("unexpected error", extra={"fields": fields})


class JsonLines(logging.Formatter):
    """A log record as one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Time (UTC), level, logger and message, then the record's own fields."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        return json.dumps(line, ensure_ascii=True)


def configure_logging(level: str) -> None:
    """Send the service's log to stderr as JSON lines; for the command line, never for `create_app`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger("trivec")
    root.handlers = [handler]
    root.setLevel(level.upper())
    root.propagate = False
