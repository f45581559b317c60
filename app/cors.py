"""Cross-origin requests from browsers: allowed for the origins that the settings name, and for no others.

`Cors` is the outermost middleware, so that errors carry the headers too: without them a page cannot read what
was wrong. `Preflights` answers inside of telemetry, so that a preflight is a request like any other. Neither
allows credentials, which would be cookies: keys travel in `Authorization`, which a page sets by itself. So
`*` is as safe as the keys are.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.settings import ANY_ORIGIN

EXPOSED = "X-Request-ID, Server-Timing, Retry-After, X-Truncated-Texts, WWW-Authenticate"
"""What a page may read beside the few headers that it always may."""
MAX_AGE_S = 600
"""For a browser to ask again."""
METHODS = "GET, HEAD, POST, PUT, DELETE"


def _allowed(origins: Collection[str], scope: Scope) -> dict[str, str]:
    """What tells a browser that the page may read the answer; nothing where it may not."""
    origin = Headers(scope=scope).get("origin")
    if origin is None or not (origin in origins or ANY_ORIGIN in origins):
        return {}
    return {"Access-Control-Allow-Origin": ANY_ORIGIN if ANY_ORIGIN in origins else origin}


class Cors:
    """ASGI middleware; what comes from other origins passes as it would without it."""

    def __init__(self, app: ASGIApp, *, origins: Collection[str]) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the page read the answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        allowed = _allowed(self._origins, scope)

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                found = MutableHeaders(scope=message)
                found.add_vary_header("Origin")
                if allowed:
                    found.update({**allowed, "Access-Control-Expose-Headers": EXPOSED})
            await send(message)

        await self._app(scope, receive, marked)


class Preflights:
    """ASGI middleware inside of `Cors`: answers a preflight, which comes without a key."""

    def __init__(self, app: ASGIApp, *, origins: Collection[str]) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Say what a page may send; a preflight from another origin is the application's to refuse."""
        if scope["type"] != "http" or scope["method"] != "OPTIONS":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if "access-control-request-method" not in headers or not _allowed(self._origins, scope):
            await self._app(scope, receive, send)
            return
        answer = {
            "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Max-Age": str(MAX_AGE_S),
            "Vary": "Access-Control-Request-Headers",
        }
        if wanted := ", ".join(headers.getlist("access-control-request-headers")):
            answer["Access-Control-Allow-Headers"] = wanted
        await Response(status_code=204, headers=answer)(scope, receive, send)
