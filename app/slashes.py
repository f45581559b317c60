"""A path with slashes too many at its end: the client is sent to the one without them.

Starlette does so too, but with a whole URL made of the `Host` header and of plain HTTP: behind a proxy that
does TLS it would send the client, and its key, past TLS, and behind one that strips a prefix to nowhere.
"""

from __future__ import annotations

from urllib.parse import quote

from starlette.requests import Request
from starlette.routing import Match


def without_slashes(request: Request) -> str | None:
    """A reference to the path without them, relative to the client's own; None where none is served."""
    scope = {**request.scope}
    scope.pop("fastapi", None)  # what FastAPI has noted of routes that did not fit
    path: str = scope["path"]
    bare = path.rstrip("/")
    if not bare or bare == path:
        return None
    routes = request.app.router.routes
    if all(route.matches({**scope, "path": bare})[0] is Match.NONE for route in routes):
        return None
    query = scope["query_string"].decode("latin-1")
    place = "../" * (len(path) - len(bare)) + quote(bare.rsplit("/", 1)[1], safe="")
    return f"{place}?{query}" if query else place
