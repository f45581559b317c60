"""Request bodies that come gzipped: unpacked in pieces, each of bounded size, so that no bomb goes off.

A body may be several gzip members one after the other, as `cat a.gz b.gz` makes them. Other encodings are
refused: they are rare in requests, and each would be another parser of hostile bytes.
"""

from __future__ import annotations

import asyncio
import zlib

from starlette.requests import Request
from starlette.types import Message, Receive

from app.errors import BodyTooLarge, MalformedGzip, UnsupportedEncoding
from app.guard import Body, body_of

HEADER = "Content-Encoding"
PIECE_BYTES = 64 * 1024
"""Unpacked at a time, in a fraction of a millisecond; others are served in between."""
FED_BYTES = 16 * 1024
_GZIP_ONLY = 16 + zlib.MAX_WBITS


def plain_receive(request: Request) -> Receive:
    """ASGI `receive` that gives the body unpacked. Raises UnsupportedEncoding for all but gzip."""
    named = ",".join(request.headers.getlist(HEADER)).lower().split(",")
    encodings = [one for one in (name.strip() for name in named) if one not in ("", "identity")]
    if not encodings:
        return request.receive
    if encodings not in (["gzip"], ["x-gzip"]):
        raise UnsupportedEncoding("send the body gzipped or as it is; nothing else is read", param=HEADER)
    return Inflated(request.receive, body_of(request)).receive


class Inflated:
    """The unpacking side of a request; the limit of its body counts for the unpacked bytes too."""

    def __init__(self, receive: Receive, body: Body) -> None:
        self._receive = receive
        self._body = body
        self._packed = memoryview(b"")
        """Arrived and not yet fed."""
        self._rest = b""
        """Fed and given back by zlib, for the piece was full."""
        self._all_arrived = False
        self._ended = False
        self._seen = 0
        self._member = zlib.decompressobj(_GZIP_ONLY)
        self._in_member = False

    async def receive(self) -> Message:
        """ASGI `receive`; raises BodyTooLarge, and MalformedGzip for a body that is damaged or cut short."""
        while not self._ended:
            if self._packed or self._rest:
                try:
                    piece = self._piece()
                except MalformedGzip:
                    await self._pass_over()
                    raise
                await asyncio.sleep(0)
                if piece:
                    self._count(len(piece))
                    return {"type": "http.request", "body": piece, "more_body": True}
            elif self._all_arrived:
                if self._in_member:
                    raise MalformedGzip("the gzipped body is cut short", param=HEADER)
                self._ended = True
                return {"type": "http.request", "body": b"", "more_body": False}
            else:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    return message
                self._packed = memoryview(message.get("body", b""))
                self._all_arrived = not message.get("more_body", False)
        return await self._receive()

    def _piece(self) -> bytes:
        fed = self._rest
        if not fed:
            fed, self._packed = bytes(self._packed[:FED_BYTES]), self._packed[FED_BYTES:]
        self._in_member = True
        try:
            piece = self._member.decompress(fed, PIECE_BYTES)
        except zlib.error:
            raise MalformedGzip("the gzipped body is damaged", param=HEADER) from None
        # What zlib still holds comes before the checksum, which is not fed yet then: nothing is left behind.
        self._rest = self._member.unconsumed_tail
        if self._member.eof:
            self._rest = self._member.unused_data
            self._member, self._in_member = zlib.decompressobj(_GZIP_ONLY), False
        return piece

    async def _pass_over(self) -> None:
        """Read a stream to its end: a client that still sends would not see what was stored."""
        while self._body.limit is None and not self._all_arrived:
            message = await self._receive()
            self._all_arrived = message["type"] == "http.disconnect" or not message.get("more_body", False)

    def _count(self, size: int) -> None:
        self._seen += size
        limit = self._body.limit
        if limit is not None and self._seen > limit:
            raise BodyTooLarge(f"the body, unpacked, is over the limit of {limit} bytes")
