"""The results of an upsert as lines of JSON, sent while the rest is still being stored.

The server's `send` waits where the client does not read, and the next documents are not read meanwhile: so
neither results nor documents pile up, however long the body and however idle the client.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.access import accepts
from app.ingest import HandOn, Results
from app.uploads import NDJSON_TYPES

LINES = NDJSON_TYPES[0]

Store = Callable[[HandOn], Awaitable[tuple[Results, dict[str, Any]]]]
"""Does the work, handing results on; gives those that are left, and the summary."""


def wants_lines(request: Request) -> bool:
    """Whether the client asks for lines."""
    return accepts(request, *NDJSON_TYPES)


class ResultLines(Response):
    """A result a line, then `{"summary": ...}`. It begins with the first result, so that what fails before
    that is an ordinary error."""

    media_type = LINES

    def __init__(self, store: Store, *, patience_s: float) -> None:
        super().__init__(None)
        del self.headers["content-length"]
        self._store = store
        self._patience_s = patience_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the lines; where nobody takes the last, the answer ends without them."""
        lines = _Lines(send, {"status": self.status_code, "headers": self.raw_headers})
        rest, summary = await self._store(lines.add)
        try:
            async with asyncio.timeout(self._patience_s):
                await lines.add([*rest, {"summary": summary}])
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            return  # the server closes the connection of an answer that is not whole


class _Lines:
    """Lines on their way; those whose sending was given up go with the next."""

    def __init__(self, send: Send, start: dict[str, Any]) -> None:
        self._send = send
        self._start = start
        self._started = False
        self._unsent: list[bytes] = []

    async def add(self, objects: Results) -> None:
        self._unsent += [json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in objects]
        if not self._started:
            await self._send({"type": "http.response.start", **self._start})
            self._started = True
        await self._send({"type": "http.response.body", "body": b"".join(self._unsent), "more_body": True})
        self._unsent.clear()
