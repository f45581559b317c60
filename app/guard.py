"""What bounds a request from outside: the size of its body, its deadline, and the client's patience.

ASGI middleware, because all three must hold before anything is parsed, and must end a handler that waits.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    Draining,
    InvalidRequest,
    MalformedHttp,
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

    @property
    def limit(self) -> int | None:
        """Bytes that the body may have; None where it may be of any length."""
        return self._limit

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
        self.cut_short = False
        """Whether the service's end came before the deadline."""
        self._taken_over = False
        self._when_cut: list[Callable[[], None]] = []

    def take_over(self) -> None:
        """Let the handler keep the deadline: it answers in time by itself, with what was done until then."""
        self._taken_over = True

    def left_s(self) -> float | None:
        """Seconds until the guard steps in; None where it does not."""
        if self._taken_over:
            return None
        return 0.0 if self.cut_short else max(0.0, self.at - time.monotonic())

    def when_cut(self, callback: Callable[[], None]) -> None:
        """Call back once the service cannot wait for the answer any longer."""
        if self.cut_short:
            callback()
        else:
            self._when_cut.append(callback)

    def cut(self) -> None:
        """The service shuts down and has waited long enough; the first call counts."""
        callbacks, self._when_cut = self._when_cut, []
        self.cut_short = True
        for callback in callbacks:
            callback()

    def passed(self) -> ServiceFault:
        """The refusal, in true words."""
        if self.writes:
            did = "what was written until then stays written, so look before you send it again"
        else:
            did = "the work was dropped"
        return self.refusal(f"no answer within {self.seconds:g} seconds; {did}", did)

    def refusal(self, late: str, did: str) -> ServiceFault:
        """Why there is no more time: `late`, or the end of the service and what became of the work."""
        if self.cut_short:
            return Draining(f"the service is shutting down; {did}")
        return DeadlineExceeded(late)


class UnderWay:
    """The requests at work, for whoever shuts the service down."""

    def __init__(self) -> None:
        self.draining = False
        """Whether connections are closed after their answer; set by a signal's handler, too."""
        self._deadlines: set[Deadline] = set()
        self._cut = False

    @contextmanager
    def entered(self, deadline: Deadline) -> Iterator[None]:
        """Around the work on a request."""
        self._deadlines.add(deadline)
        if self._cut:
            deadline.cut()
        try:
            yield
        finally:
            self._deadlines.discard(deadline)

    def cut(self) -> None:
        """Have every request answered now, and those that still come."""
        self._cut = True
        for deadline in list(self._deadlines):
            deadline.cut()


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

    def __init__(
        self, app: ASGIApp, *, max_body_bytes: int, timeout_s: float, under_way: UnderWay | None = None
    ) -> None:
        self._app = app
        self._under_way = under_way or UnderWay()
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or answer 504; an answer that has begun is never cut."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._serve(scope, receive, send)
        finally:
            # The server holds on to the scope, and the body to the server: a cycle waits for the collector.
            scope.pop(_BODY, None)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        body = Body(receive, headers, self._max_body_bytes)
        scope[_BODY] = body
        started = False
        two_lengths = "content-length" in headers and "transfer-encoding" in headers

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            if (two_lengths or self._under_way.draining) and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        async def refuse(error: ServiceFault) -> None:
            await error_response(describe(error), scope)(scope, receive, noted)

        if two_lengths:
            # A proxy that believes the other one would take what follows for the next request.
            await refuse(MalformedHttp("either Content-Length or Transfer-Encoding is expected"))
            return
        try:
            deadline = Deadline(timeout_of(headers, self._timeout_s))
        except InvalidRequest as error:
            await refuse(error)
            return
        scope[_DEADLINE] = deadline
        with self._under_way.entered(deadline):
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
    cut: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    deadline.when_cut(lambda: cut.set_result(None))
    try:
        # A handler may take the deadline over while it is awaited here, so it is asked again when it passes.
        while not work.done() and not gone.done() and (left_s := deadline.left_s()) != 0:
            awaited = {work, gone} if cut.done() else {work, gone, cut}
            await asyncio.wait(awaited, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
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
