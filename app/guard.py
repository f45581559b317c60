"""What bounds a request from outside: the size of its body, its deadline, and the client's patience.

ASGI middleware, because all three must hold before anything is parsed, and must end a handler that waits.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    InvalidRequest,
    ServiceFault,
    describe,
    error_response,
)

TIMEOUT_HEADER = "X-Request-Timeout"
MAX_TIMEOUT_S = 86400.0
_BODY = "trivec.body"
_DEADLINE = "trivec.deadline"


class Body:
    """The incoming side of a request: counts bytes, and notices when the client leaves."""

    def __init__(self, receive: Receive, headers: Headers, limit: int) -> None:
        self._receive = receive
        self._announced = _announced(headers)
        self._limit: int | None = limit
        self._seen = 0
        self._read = asyncio.Event()
        self._gone = asyncio.Event()

    def lift_limit(self) -> None:
        """Let the body be of any length; for a handler that streams it and bounds each piece itself."""
        self._limit = None

    async def receive(self) -> Message:
        """ASGI `receive`; raises BodyTooLarge at the announcement, or at the first byte too many."""
        if self._read.is_set():
            await self._gone.wait()
            return {"type": "http.disconnect"}
        self._check(self._announced)
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._gone.set()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._read.set()
        self._seen += len(message.get("body", b""))
        self._check(self._seen)
        return message

    def _check(self, size: int) -> None:
        if self._limit is not None and size > self._limit:
            raise BodyTooLarge(f"the body is over the limit of {self._limit} bytes")

    async def client_gone(self) -> None:
        """Return when the client has left; before the body is read nobody can tell."""
        await self._read.wait()
        while not self._gone.is_set():
            if (await self._receive())["type"] == "http.disconnect":
                self._gone.set()


class Deadline:
    """When a request's answer is due, and who says so: the guard, or a handler that can do better."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.at = time.monotonic() + seconds
        self.writes = False
        """Whether the request may change something: a refusal must not say then that it did not."""
        self._taken_over = False

    def take_over(self) -> None:
        """Let the handler keep the deadline: it answers in time by itself, with what was done until then."""
        self._taken_over = True

    def left_s(self) -> float | None:
        """Seconds until the guard steps in; None where it does not."""
        return None if self._taken_over else max(0.0, self.at - time.monotonic())

    def passed(self) -> DeadlineExceeded:
        """The refusal, in true words."""
        if self.writes:
            did = "what was written until then stays written, so look before you send it again"
        else:
            did = "the work was dropped"
        return DeadlineExceeded(f"no answer within {self.seconds:g} seconds; {did}")


def deadline_of(request: Request) -> Deadline:
    """The deadline of the request under way."""
    deadline = request.scope[_DEADLINE]
    assert isinstance(deadline, Deadline)
    return deadline


def body_of(request: Request) -> Body:
    """The body's bounds of the request under way."""
    body = request.scope[_BODY]
    assert isinstance(body, Body)
    return body


def timeout_of(headers: Headers, default_s: float) -> float:
    """Seconds that a request may take. Raises InvalidRequest naming the header."""
    given = headers.get(TIMEOUT_HEADER)
    if given is None:
        return default_s
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise InvalidRequest(
            f"seconds are expected, more than 0 and at most {MAX_TIMEOUT_S:.0f}", param=TIMEOUT_HEADER
        )
    return seconds


def _announced(headers: Headers) -> int:
    length = headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() and len(length) < 20 else 0


class Guard:
    """Runs the application as a task of its own, so that a deadline or a lost client can end it."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or answer 504; an answer that has begun is never cut."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        body = Body(receive, headers, self._max_body_bytes)
        scope[_BODY] = body
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        async def refuse(error: ServiceFault) -> None:
            await error_response(describe(error), scope)(scope, receive, send)

        try:
            deadline = Deadline(timeout_of(headers, self._timeout_s))
        except InvalidRequest as error:
            await refuse(error)
            return
        scope[_DEADLINE] = deadline
        outcome = await _race(
            self._app(scope, body.receive, noted), body.client_gone(), deadline, lambda: started
        )
        if outcome == "late" and not started:
            await refuse(deadline.passed())


async def _race(
    app: Any, client_gone: Coroutine[Any, Any, None], deadline: Deadline, started: Callable[[], bool]
) -> str:
    """Await the application until it ends ("done"), the client leaves ("gone") or time is up ("late")."""
    work = asyncio.ensure_future(app)
    gone = asyncio.ensure_future(client_gone)
    try:
        # A handler may take the deadline over while it is awaited here, so it is asked again when it passes.
        while not work.done() and not gone.done() and (left_s := deadline.left_s()) != 0:
            await asyncio.wait({work, gone}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        if not work.done() and started():
            await asyncio.wait({work})
        if work.done():
            await work
            return "done"
        return "gone" if gone.done() else "late"
    finally:
        for task in (work, gone):
            task.cancel()
        # `app.whole`: a write that has begun is awaited, so that it is whole.
        await asyncio.gather(work, gone, return_exceptions=True)


class Heads:
    """Answers HEAD like GET, without the body: FastAPI's routes know only the methods they name."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; the scope says HEAD again once there is an answer, for servers look at it."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def bodiless(message: Message) -> None:
            scope["method"] = "HEAD"
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        scope["method"] = "GET"
        await self._app(scope, receive, bodiless)
