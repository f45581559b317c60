"""What the service tells its operator of each request: one JSON line, its counters, its span, and its id.

All of it holds ids of requests, route templates, statuses, codes of errors, counts and times; never text,
vectors, ids of documents or the path as it was sent.
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

from app.errors import RECORD, REQUEST_ID, describe, error_response
from app.labels import method_label, route_label
from app.lanes import Lane
from app.metrics import Metrics
from app.tracing import Fact, Outcome, RequestSpan, Tracing

REQUEST_ID_HEADER = "X-Request-ID"
MAX_REQUEST_ID_CHARS = 128
CLIENT_GONE_STATUS = 499
"""Logged, never sent: the client closed the connection before there was an answer."""
CLIENT_GONE = "client_gone"
"""The code that stands beside it."""

PER_CONNECTION = "uvicorn.error.connection"
"""Where uvicorn warns of every head that is no HTTP and of every upgrade that is asked for."""

_log = logging.getLogger("trivec.requests")


@dataclass(slots=True)
class Record:
    """What a request cost, filled in by its handler."""

    request_id: str
    texts: int = 0
    tokens: int = 0
    queue_ms: float = 0.0
    inference_ms: float | None = None
    truncated: int = 0
    """Texts that were cut before they were embedded."""
    lane: Lane | None = None
    """The last one that it took before the model."""
    code: str = ""
    """Of the error that is its answer."""
    status: int = CLIENT_GONE_STATUS
    bytes_in: int = 0
    bytes_out: int = 0

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
    record = request.scope.setdefault(RECORD, Record(""))
    assert isinstance(record, Record)
    return record


def request_id_of(headers: Headers) -> str:
    """The client's own id where it is short printable ASCII, else a new one."""
    given = headers.get(REQUEST_ID_HEADER, "")
    sane = 0 < len(given) <= MAX_REQUEST_ID_CHARS and given.isascii() and given.isprintable()
    return given if sane else uuid.uuid4().hex


class Telemetry:
    """ASGI middleware, the outermost: ids, log line, counters, span, and 500 for what nobody expected."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, tracing: Tracing) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; it lets no Exception out, so that no server logs a message of ours in full."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, application = time.monotonic(), scope.get("app")
        record = Record(request_id_of(Headers(scope=scope)))
        scope[REQUEST_ID], scope[RECORD] = record.request_id, record
        with self._metrics.request_in_flight(), self._tracing.request(scope) as span:
            try:
                await self._serve(scope, receive, send, record, span)
            finally:
                if record.status >= 400 and not record.code:
                    gone = record.status == CLIENT_GONE_STATUS
                    record.code = CLIENT_GONE if gone else f"http_{record.status}"
                route, method = route_label(scope, application), method_label(scope["method"])
                self._tell(record, span, route, method, time.monotonic() - began)

    async def _serve(
        self, scope: Scope, receive: Receive, send: Send, record: Record, span: RequestSpan
    ) -> None:
        async def counted() -> Message:
            message = await receive()
            record.bytes_in += len(message.get("body", b""))
            return message

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                _stamp(MutableHeaders(scope=message), record)
            record.bytes_out += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, counted, stamped)
        except ClientDisconnect:
            _log.debug("the client left before its request was read")
        except Exception as error:  # noqa: BLE001 - the outermost boundary: the answer is 500, the log has the rest
            problem = describe(error)
            record.code = problem.code
            _log_defect(record.request_id, span.trace_id, error)
            if record.status == CLIENT_GONE_STATUS:
                await error_response(problem, scope)(scope, receive, stamped)

    def _tell(self, record: Record, span: RequestSpan, route: str, method: str, seconds: float) -> None:
        """The same facts to metrics, trace and log."""
        self._metrics.request(
            route=route,
            method=method,
            status=record.status,
            code=record.code,
            seconds=seconds,
            received=record.bytes_in,
            sent=record.bytes_out,
            trace_id=span.trace_id if span.sampled else None,
        )
        facts: dict[str, Fact] = {
            "request_id": record.request_id,
            "texts": record.texts,
            "tokens": record.tokens,
        }
        if record.lane is not None:
            facts["lane"] = record.lane
        span.finish(Outcome(method, route, record.status, record.code, facts))
        _log_request(record, span.trace_id, route, method, seconds)


def _stamp(headers: MutableHeaders, record: Record) -> None:
    headers[REQUEST_ID_HEADER] = record.request_id
    if record.inference_ms is not None:
        headers["Server-Timing"] = f"queue;dur={record.queue_ms:.1f}, inference;dur={record.inference_ms:.1f}"


def _log_request(record: Record, trace_id: str | None, route: str, method: str, seconds: float) -> None:
    fields = {
        "request_id": record.request_id,
        "method": method,
        "route": route,
        "status": record.status,
        "code": record.code or None,
        "texts": record.texts,
        "tokens": record.tokens,
        "truncated": record.truncated,
        "lane": record.lane,
        "queue_ms": round(record.queue_ms, 1),
        "inference_ms": round(record.inference_ms or 0.0, 1),
        "total_ms": round(seconds * 1000, 1),
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
        **({"trace_id": trace_id} if trace_id is not None else {}),
    }
    _log.info("request", extra={"fields": fields})


def _log_defect(request_id: str, trace_id: str | None, error: Exception) -> None:
    """Type and place only: the words of an exception often quote the value that it stumbled over."""
    frames = traceback.extract_tb(error.__traceback__)
    fields = {
        "request_id": request_id,
        "error": type(error).__name__,
        **({"trace_id": trace_id} if trace_id is not None else {}),
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
        if record.exc_info and record.exc_info[0] is not None:
            line.setdefault("error", record.exc_info[0].__name__)
        return json.dumps(line, ensure_ascii=True)


class Strangers(JsonLines):
    """Lines of libraries: one line each, for what follows may be an exception with a text in its words."""

    def format(self, record: logging.LogRecord) -> str:
        """As `JsonLines`, cut at the first line break."""
        first, *_ = record.getMessage().splitlines() or [""]
        short = logging.makeLogRecord({**record.__dict__, "msg": first, "args": None})
        return super().format(short)


def configure_logging(level: str) -> None:
    """Send all log lines to stderr as JSON; for the command line, never for `create_app`.

    Of libraries (uvicorn, asyncio, the exporter of traces) only warnings and worse are written, and of
    uvicorn's on single connections only errors, for anybody could fill the log: see `app.endings`.
    """
    for name, formatter, least in (
        ("trivec", JsonLines(), level.upper()),
        ("", Strangers(), "ERROR" if level == "error" else "WARNING"),
    ):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(formatter)
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(least)
    logging.getLogger(PER_CONNECTION).setLevel("ERROR")
    logging.getLogger("trivec").propagate = False
