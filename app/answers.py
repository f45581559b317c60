"""JSON answers that may be large: written piece by piece in a worker thread, sent piece by piece.

Python's own encoder holds the interpreter from the first byte to the last, and 66 million numbers took it
nine seconds in which nothing else was answered. Here no single call is longer than a few milliseconds.

Numbers of an array are written with as many digits as give back the same number of its own type: 9 for
float32, 5 for float16. NaN and Infinity are never written, for JSON has none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.errors import InferenceFailed
from model.embedding import Output

MAX_NUMBER_BYTES = 16
"""The longest float32 as it is written here, its comma included: `-1.23456789e-05,`."""
SEND_BYTES = 1 << 20
"""Pieces are sent together in parts of about this size."""

_LIST_PART = 4096
_DICTS = 512
_WALKED_LEVELS = 5
"""Below, containers are small (an explanation's rows, a client's metadata) and written in one call."""
_DIGITS = {2: 5, 4: 9}
"""Significant decimal digits that tell any two numbers apart, by bytes of the number."""


@dataclass(frozen=True, slots=True)
class Written:
    """A part of an answer that is JSON already, in pieces."""

    pieces: Iterable[str]


class PiecesResponse(Response):
    """A JSON body that lies in pieces: nobody joins hundreds of megabytes to send them."""

    media_type = "application/json"

    def __init__(self, pieces: list[bytes], status: int = 200, headers: Mapping[str, str] | None = None):
        super().__init__(None, status, headers)
        self._pieces = pieces
        self.headers["Content-Length"] = str(sum(map(len, pieces)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the pieces; the server's `send` waits where the client reads slowly."""
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def gathered(pieces: Iterable[str]) -> Iterator[bytes]:
    """Small pieces of text as UTF-8 in parts of about SEND_BYTES."""
    part: list[str] = []
    size = 0
    for piece in pieces:
        part.append(piece)
        size += len(piece)
        if size >= SEND_BYTES:
            yield "".join(part).encode()
            part, size = [], 0
    if part:
        yield "".join(part).encode()


def json_pieces(value: Any, level: int = 0) -> Iterator[str]:
    """The JSON of dicts, lists, plain values, arrays and what is `Written` among them.

    An iterator is a list made on the way.

    Raises InferenceFailed where an array holds NaN or Infinity.
    """
    if isinstance(value, np.ndarray):
        yield from _array_pieces(value)
    elif isinstance(value, Written):
        yield from value.pieces
    elif isinstance(value, Iterator):
        yield from _list_pieces(value, level)
    elif level >= _WALKED_LEVELS or not value or not isinstance(value, dict | list):
        yield _dumped(value)
    elif isinstance(value, dict):
        mark = "{"
        for name, child in value.items():
            yield f"{mark}{_dumped(name)}:"
            yield from json_pieces(child, level + 1)
            mark = ","
        yield "}"
    elif isinstance(value[0], dict | np.ndarray):
        yield from _list_pieces(value, level)
    else:
        for start in range(0, len(value), _LIST_PART):
            yield ("," if start else "[") + _dumped(value[start : start + _LIST_PART])[1:-1]
        yield "]"


def _list_pieces(values: Iterable[Any], level: int) -> Iterator[str]:
    yield "["
    for place, child in enumerate(values):
        if place:
            yield ","
        yield from json_pieces(child, level + 1)
    yield "]"


def dict_pieces(values: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The JSON list of very many small dicts of plain values, some hundreds in each piece."""
    yield "["
    mark, rest = "", iter(values)
    while part := list(islice(rest, _DICTS)):
        yield mark + _dumped(part)[1:-1]
        mark = ","
    yield "]"


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _array_pieces(array: NDArray[Any]) -> Iterator[str]:
    """Shape: [W] or [R, W]; a piece is a row, or a part of a long one."""
    if not np.isfinite(array).all():
        raise InferenceFailed("the model gave a number that is not finite")
    if array.ndim == 1:
        yield from _row_pieces(array)
        return
    yield "["
    for place, row in enumerate(array):
        if place:
            yield ","
        yield from _row_pieces(row)
    yield "]"


def _row_pieces(row: NDArray[Any]) -> Iterator[str]:
    yield "["
    for start in range(0, len(row), _LIST_PART):
        if start:
            yield ","
        yield _numbers(row[start : start + _LIST_PART])
    yield "]"


def _numbers(row: NDArray[Any]) -> str:
    """Numbers with commas between them: one format of the whole row is five times as fast as `json.dumps`."""
    if row.dtype.kind != "f":
        return str(row.tolist())[1:-1].replace(" ", "")
    digits = _DIGITS[row.dtype.itemsize]
    if bool((np.signbit(row) & (row == 0)).any()):
        # `%g` writes -0, which JSON's readers take for the integer 0: its sign would be lost.
        return ",".join(
            "-0.0" if text == "-0" else text for text in (f"{one:.{digits}g}" for one in row.tolist())
        )
    return ",".join([f"%.{digits}g"] * len(row)) % tuple(row.tolist())


def numbers_of(tokens: Iterable[int], outputs: Iterable[Output], *, dense: int, colbert: int) -> int:
    """Most numbers that a JSON answer holds for texts of so many tokens.

    `dense` and `colbert` are numbers a row, 0 where rows are no numbers (base64). A lexical weight is two
    numbers, an id and a value, and there are at most as many as tokens.
    """
    counts, wanted = list(tokens), set(outputs)
    total = 0
    if "dense" in wanted:
        total += dense * len(counts)
    if "sparse" in wanted:
        total += 2 * sum(counts)
    if "colbert" in wanted:
        total += colbert * sum(max(0, one - 1) for one in counts)
    return total
