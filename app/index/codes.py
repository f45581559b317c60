"""Compressed ColBERT token vectors, and MaxSim straight from their codes.

A row of the quantised kinds is first turned by a fixed random rotation (two rounds of random signs and of a
Walsh-Hadamard transform of the largest power of two dimensions, at the front and at the end), after which its
values are nearly normal, whatever they were. Each value then becomes the nearest of a few levels, and the row
keeps one float32 scale, <v, l> / <l, l> for values v and levels l: the one of least squared error. A query is
rotated once; rows never are while searching. Nothing is learnt from a collection. (Rotation, codes and
one factor: RaBitQ, arXiv 2405.12497; the levels: Max 1960, Lloyd 1982.)

| kind | levels in units of the scale | a row of C values |
|---|---|---|
| 1bit | -1, 1 | ceil(C / 8) bytes, scale |
| 2bit | -10, -3, 3, 10 | ceil(C / 4) bytes, scale |
| 4bit | (x (460 + x^2) + 32) >> 6 for odd x from -15 to 15 | ceil(C / 2) bytes, scale |
| int8 | -127 to 127 | C bytes, scale |
| float16, float32 | not rotated | 2 C or 4 C bytes |

Byte j of the P = ceil(C * bits / 8) holds dimension j in its lowest bits, then j + P, j + 2 P, ...; numbers
are little-endian. The same vectors give the same bytes on every machine: this is a storage format.

Legend: C width, M query vectors, n rows or documents.
It does not choose candidates, and it neither stores nor reads blobs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from app.index.deferred import code_kernels as kernels
from app.index.deferred import code_vectors as steps
from app.index.workers import Workers
from model.embedding import FloatArray

Kind = Literal["float32", "float16", "int8", "4bit", "2bit", "1bit"]

SCALE_BYTES = 4
SEED = 0x7472697665630001
"""Of the signs; part of the format, as are the rounds."""
ROUNDS = 2
PARALLEL_WORK = 8_000_000
"""Multiplications from which on a search is divided: fewer take less time than to wake a thread."""
_BITS: dict[Kind, int] = {"float32": 32, "float16": 16, "int8": 8, "4bit": 4, "2bit": 2, "1bit": 1}
_LARGEST = {8: 128, 4: 161, 2: 10, 1: 1}
"""The largest level's size by bits, -128 where a blob is damaged."""
_UNIT = {4: 0.01667, 2: 0.151, 1: 0.7978846}
"""What makes the levels best for normal values; part of the format, for it places their borders."""
_DAMAGED = "stored token vectors are damaged: a number is not finite"


@dataclass(frozen=True)
class TokenCodec:
    """How token vectors of one width are stored and scored. Thread-safe."""

    kind: Kind
    width: int
    """C."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"token vectors are stored as {', '.join(get_args(Kind))}, not {self.kind!r}")
        if self.width < 1:
            raise ValueError(f"token vectors need a width of 1 or more, got {self.width}")

    @property
    def row_bytes(self) -> int:
        """Bytes of one token vector."""
        values = -(-self.width * self._bits // 8)
        return values if self._plain else values + SCALE_BYTES

    def encode(self, vectors: FloatArray) -> bytes:
        """Shape: [n, C] float32, n >= 1. Raises ValueError where that or a value does not fit."""
        if vectors.ndim != 2 or vectors.shape[1] != self.width or not len(vectors):
            raise ValueError(f"token vectors are [1 or more, {self.width}], got {list(vectors.shape)}")
        rows = np.ascontiguousarray(vectors, np.float32)
        if self._plain:
            if not np.isfinite(rows).all():
                raise ValueError("a token vector holds a value that is not finite")
            with np.errstate(over="ignore"):
                floats = rows.astype(self._float)
            # As patterns: NumPy takes longer to look at float16 than to look at everything else.
            if self._bits == 16 and ((floats.view("<u2") & 0x7C00) == 0x7C00).any():
                raise ValueError("a token vector holds a value that is too large for float16")
            return floats.tobytes()
        found = np.empty((len(rows), self.row_bytes), np.uint8)
        outcome = kernels.encode_rows(
            rows, self._bits, self._borders, self._gaps, self._signs, self._size, found
        )
        if outcome:
            problem = (
                "holds a value that is not finite" if outcome == 1 else "is too long for a float32 scale"
            )
            raise ValueError(f"a token vector {problem}")
        return found.tobytes()

    def rows(self, blob: bytes) -> int:
        """How many token vectors a blob holds. Raises ValueError where its length does not fit."""
        count, rest = divmod(len(blob), self.row_bytes)
        if rest or not count:
            raise ValueError(
                f"stored token vectors are damaged: {len(blob)} bytes are not 1 or more vectors of "
                f"{self.row_bytes} bytes ({self.kind}, width {self.width})"
            )
        return count

    def decode(self, blob: bytes) -> FloatArray:
        """The vectors that a blob stands for, [n, C]. Raises ValueError where it is damaged."""
        count = self.rows(blob)
        if self._plain:
            found = np.frombuffer(blob, self._float).reshape(count, self.width).astype(np.float32)
            if not np.isfinite(found).all():
                raise ValueError(_DAMAGED)
            return found
        found = np.empty((count, self.width), np.float32)
        codes = np.frombuffer(blob, np.uint8).reshape(count, self.row_bytes)
        if not kernels.decode_rows(codes, self._bits, self._signs, self._size, found):
            raise ValueError(_DAMAGED)
        return found

    def maxsim(
        self, query: FloatArray, blobs: Sequence[bytes], workers: Workers | None = None
    ) -> NDArray[np.float64]:
        """The mean over the query's vectors of the best dot product with each document's decoded vectors.

        Shapes: [M, C], n documents -> [n]. Raises ValueError where a blob is damaged or the query wrong.
        The query is rounded to 16 bits for codes, which moves a dot product by some 1e-6 of |q| |d|.
        """
        if query.ndim != 2 or query.shape[1] != self.width or not len(query):
            raise ValueError(f"a query is [1 or more, {self.width}], got {list(query.shape)}")
        lengths = np.fromiter(map(self.rows, blobs), np.int64, len(blobs))
        if not len(blobs):
            return np.zeros(0, np.float64)
        queries, steps = self._prepared(np.ascontiguousarray(query, np.float32))
        # Pointers to the bytes objects' own memory. The array keeps them alive, whatever becomes of `blobs`.
        pointers = (ctypes.c_char_p * len(blobs))(*blobs)
        addresses = np.frombuffer(bytes(pointers), np.uintp).astype(np.uint64)
        few = workers is None or int(lengths.sum()) * queries.size < PARALLEL_WORK
        parts, divided = _divided(lengths, 1 if workers is None or few else workers.threads)
        totals = np.zeros(len(blobs), np.float64)
        maxima = np.empty((len(divided), len(query)), np.float64)
        tasks: list[Callable[[], bool]] = [
            partial(self._score, addresses, pieces, queries, steps, totals, maxima) for pieces in parts
        ]
        if not all([task() for task in tasks] if workers is None else workers.run(tasks)):
            raise ValueError(_DAMAGED)
        for document in np.unique(divided):
            totals[document] = maxima[divided == document].max(axis=0).sum()
        return totals / len(query)

    def _score(
        self,
        addresses: NDArray[np.uint64],
        pieces: NDArray[np.int64],
        queries: NDArray[np.int16] | FloatArray,
        steps: NDArray[np.float64],
        totals: NDArray[np.float64],
        maxima: NDArray[np.float64],
    ) -> bool:
        block = np.zeros((kernels.BLOCK_ROWS, queries.shape[1]), queries.dtype)
        kind = np.float32 if self._plain else np.int32
        tile = np.empty((kernels.BLOCK_ROWS, kernels.GROUP), kind)
        return bool(
            kernels.best_sums(
                self._bits,
                self.width,
                self.row_bytes,
                addresses,
                pieces,
                queries,
                steps,
                block,
                tile,
                totals,
                maxima,
            )
        )

    def _prepared(self, query: FloatArray) -> tuple[NDArray[np.int16] | FloatArray, NDArray[np.float64]]:
        """The query as the kernel takes it, padded, and what 1 of each of its vectors is worth."""
        count = len(query)
        # Unpacking writes up to 7 values more than C.
        shape = _multiple(count, steps.TILE), _multiple(self.width + 7, steps.ALIGNMENT)
        if self._plain:
            if not np.isfinite(query).all():
                raise ValueError("a query vector holds a value that is not finite")
            floats = np.zeros(shape, np.float32)
            floats[:count, : self.width] = query
            return floats, np.ones(count, np.float64)
        rotated = np.empty(query.shape, np.float64)
        if not kernels.rotate_rows(query, self._signs, self._size, rotated):
            raise ValueError("a query vector holds a value that is not finite")
        sizes = np.abs(rotated)
        # No sum of products may leave int32: |sum| <= largest level x sum of the query's sizes, once rounded.
        most = (2**31 - 1) / _LARGEST[self._bits] - self.width
        with np.errstate(divide="ignore"):
            factors = np.minimum(32767 / sizes.max(axis=1), most / sizes.sum(axis=1))
        factors[~np.isfinite(factors)] = 1.0
        whole = np.zeros(shape, np.int16)
        np.rint(rotated * factors[:, None], out=whole[:count, : self.width], casting="unsafe")
        return whole, 1 / factors

    @property
    def _bits(self) -> int:
        return _BITS[self.kind]

    @property
    def _plain(self) -> bool:
        """Whether values are stored as floats, not as codes."""
        return self.kind in ("float32", "float16")

    @property
    def _float(self) -> str:
        return "<f4" if self._bits == 32 else "<f2"

    @property
    def _size(self) -> int:
        """The largest power of two that is not above C."""
        return 1 << (self.width.bit_length() - 1)

    @cached_property
    def _signs(self) -> FloatArray:
        """[ROUNDS, C] of +-1 / sqrt(size): SplitMix64 (Steele et al. 2014), its highest bits."""
        state = np.arange(1, ROUNDS * self.width + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        state += np.uint64(SEED)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        negative = (state ^ (state >> np.uint64(31))) >> np.uint64(63) == 1
        signs = np.where(negative, -1.0, 1.0) / np.sqrt(self._size)
        return np.asarray(signs.reshape(ROUNDS, self.width), np.float32)

    @cached_property
    def _levels(self) -> NDArray[np.int64]:
        """Ascending; see the table above and `code_kernels._level`."""
        codes = np.arange(2**self._bits)
        if self._bits == 1:
            return np.asarray(2 * codes - 1)
        if self._bits == 2:
            return np.asarray(7 * codes - 10 - (codes >> 1))
        odd = 2 * codes - 15
        return np.asarray((odd * (460 + odd * odd) + 32) >> 6)

    @cached_property
    def _borders(self) -> FloatArray:
        if self._bits not in _UNIT:
            return np.zeros(1, np.float32)
        return ((self._levels[1:] + self._levels[:-1]) * (_UNIT[self._bits] / 2)).astype(np.float32)

    @cached_property
    def _gaps(self) -> FloatArray:
        if self._bits not in _UNIT:
            return np.zeros(1, np.float32)
        return np.concatenate([self._levels[:1], np.diff(self._levels)]).astype(np.float32)


@lru_cache(maxsize=16)
def codec(kind: Kind, width: int) -> TokenCodec:
    """The codec of a kind, its tables made once. Raises ValueError for an unknown kind or a width below 1."""
    return TokenCodec(kind, width)


def _multiple(count: int, of: int) -> int:
    return -(-count // of) * of


def _divided(lengths: NDArray[np.int64], shares: int) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Equal shares of all rows, as `best_sums` takes them, and the document of each slot it is to fill."""
    ends = np.cumsum(lengths)
    starts = ends - lengths
    cuts = np.unique(np.linspace(0, ends[-1], shares + 1).astype(np.int64))
    parts: list[NDArray[np.int64]] = []
    divided: list[int] = []
    for low, high in pairwise(cuts):
        first, last = np.searchsorted(ends, low, "right"), np.searchsorted(starts, high, "left")
        begin = np.maximum(low - starts[first:last], 0)
        taken = np.minimum(ends[first:last], high) - starts[first:last] - begin
        slots = np.full(last - first, -1)
        for place in np.flatnonzero(taken < lengths[first:last]):
            slots[place] = len(divided)
            divided.append(int(first + place))
        parts.append(np.stack([np.arange(first, last), begin, taken, slots], axis=1))
    return parts, np.array(divided, np.int64)
