"""JSON answers gzipped for clients that accept it; all other answers go out as they are.

Safetensors hardly shrink. Huge answers of numbers are left alone, for gzip is slower than a local network;
who wants few bytes asks for base64 or safetensors.
"""

from __future__ import annotations

import zlib
from functools import partial

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.service import Service

MIN_BYTES = 1024
"""A smaller answer is one packet either way."""
LEVEL = 1
"""Of numbers, level 6 takes ten times as long and saves seven per cent."""
THREAD_BYTES = 64 * 1024
"""More is packed in a worker thread: it would hold up everyone else."""
_GZIP = 16 + zlib.MAX_WBITS


class Deflated:
    """ASGI middleware: an answer of `MIN_BYTES` to `max_bytes` is held until it is whole and sent packed."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or self._max_bytes < MIN_BYTES:
            await self._app(scope, receive, send)
            return
        wanted = accepts_gzip(",".join(Headers(scope=scope).getlist("accept-encoding")))
        start: Message | None = None
        pieces: list[bytes] = []

        async def packing(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                if _is_json(message):
                    MutableHeaders(scope=message).add_vary_header("Accept-Encoding")
                if wanted and _is_json(message) and MIN_BYTES <= _length(message) <= self._max_bytes:
                    start = message
                    return
            if start is None:
                await send(message)
                return
            pieces.append(message.get("body", b""))
            if message.get("more_body", False):
                return
            packed = await _packed(pieces, scope)
            headers = MutableHeaders(scope=start)
            headers["Content-Encoding"] = "gzip"
            headers["Content-Length"] = str(len(packed))
            await send(start)
            await send({"type": "http.response.body", "body": packed, "more_body": False})

        await self._app(scope, receive, packing)


def accepts_gzip(header: str) -> bool:
    """Whether an Accept-Encoding has gzip, or `*`, and likes it no less than an answer as it is."""
    liked: dict[str, float] = {}
    for entry in header.lower().split(","):
        name, _, parameters = entry.partition(";")
        liked[name.strip()] = _quality(parameters)
    gzip = liked.get("gzip", liked.get("x-gzip", liked.get("*", 0.0)))
    return gzip > 0 and gzip >= liked.get("identity", 0.0)


def _quality(parameters: str) -> float:
    name, _, value = parameters.partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0


def _is_json(start: Message) -> bool:
    headers = Headers(raw=start["headers"])
    kind = headers.get("content-type", "").partition(";")[0].strip()
    return kind == "application/json" and "content-encoding" not in headers


def _length(start: Message) -> int:
    """Bytes of the answer; 0 where that is not known beforehand."""
    given = Headers(raw=start["headers"]).get("content-length", "")
    return int(given) if given.isdigit() else 0


async def _packed(pieces: list[bytes], scope: Scope) -> bytes:
    service = getattr(scope["app"].state, "service", None)
    if isinstance(service, Service) and sum(map(len, pieces)) > THREAD_BYTES:
        return await service.on_the_wire(partial(_gzip, pieces))
    return _gzip(pieces)


def _gzip(pieces: list[bytes]) -> bytes:
    packer = zlib.compressobj(LEVEL, wbits=_GZIP)
    return b"".join([*map(packer.compress, pieces), packer.flush()])
