"""Request targets in absolute form, `GET http://host/path`, as clients of proxies send them.

A server must take them (RFC 9112, 3.2.2), and uvicorn hands the whole target on as a path.
"""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

_AUTHORITY = re.compile(r"https?://[^/?#]+", re.IGNORECASE)


class OriginForm:
    """ASGI middleware: what stands before the path of a target goes; one without a path asks for `/`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and (found := _AUTHORITY.match(scope["path"])):
            scope = {**scope, "path": scope["path"][found.end() :] or "/"}
            if (raw := scope.get("raw_path")) and (named := _AUTHORITY.match(raw.decode("latin-1"))):
                scope["raw_path"] = raw[named.end() :] or b"/"
        await self._app(scope, receive, send)
