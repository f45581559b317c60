"""A stream of bytes as lines, none of which may fill the memory."""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator


async def lines(stream: AsyncIterator[bytes], limit: int) -> AsyncIterator[bytes | None]:
    """Lines without their ends, blank ones left out; None stands for a line of more than `limit` bytes.

    A byte order mark before the first line is no part of it: some editors put one there.
    """
    mark = codecs.BOM_UTF8
    rest = bytearray()
    too_long = False
    async for chunk in stream:
        *whole, last = chunk.split(b"\n")
        for piece in whole:
            rest += piece
            if too_long or len(rest) > limit:
                yield None
            elif stripped := bytes(rest).removeprefix(mark).strip():
                yield stripped
            rest.clear()
            too_long, mark = False, b""
        if not too_long:
            rest += last
            if len(rest) > limit:
                too_long = True
                rest.clear()
    if too_long:
        yield None
    elif stripped := bytes(rest).removeprefix(mark).strip():
        yield stripped
