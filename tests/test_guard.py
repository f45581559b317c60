"""The guard by itself, under a server that keeps the scope as long as uvicorn does."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from app.guard import Body, Guard, body_of


class Exchange:
    """A request and its answer: what receives is bound to what holds the scope."""

    def __init__(self) -> None:
        self.scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/", "headers": []}
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"x" * 1000, "more_body": False}

    async def send(self, message: Message) -> None:
        self.sent.append(message)


def test_nothing_of_a_request_waits_for_the_collector() -> None:
    """A cycle would keep bodies of megabytes until Python's collector looks for it, which may be minutes."""
    bodies: list[weakref.ref[Body]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        bodies.append(weakref.ref(body_of(request)))
        await PlainTextResponse(str(len(await request.body())))(scope, receive, send)

    async def run() -> list[Message]:
        exchange = Exchange()
        await Guard(app, max_body_bytes=10_000, timeout_s=10)(exchange.scope, exchange.receive, exchange.send)
        return exchange.sent

    gc.disable()
    try:
        sent = asyncio.run(run())
        assert sent[-1]["body"] == b"1000"
        assert [one() for one in bodies] == [None]
    finally:
        gc.enable()
