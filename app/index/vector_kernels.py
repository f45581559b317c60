"""The loops of `vectors.py` as machine code: inner products with float16 rows, 1-bit codes, their scan.

Legend: N rows, D width, P padded width (a multiple of 64), W = P / 64 words, n chosen rows.
Rows come as the uint16 patterns of their float16 values, for compiled code knows no float16 on CPUs.
Nothing here checks bounds: shapes and row numbers are the caller's to check.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from app.index.compiled import inlined, kernel, loose_kernel
from model.embedding import FloatArray

Patterns = NDArray[np.uint16]
Places = NDArray[np.int64]
Words = NDArray[np.uint64]

QUERY_BITS = 4
"""Bits for a coordinate of a query: beside the rows' single bit their error is small (1 % of it)."""

_UNBIAS = np.float32(2.0**112)
_M1, _M2, _M4 = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333), np.uint64(0x0F0F0F0F0F0F0F0F)
_ONES, _1, _2, _4, _56 = (
    np.uint64(0x0101010101010101),
    np.uint64(1),
    np.uint64(2),
    np.uint64(4),
    np.uint64(56),
)


@inlined
def _value(pattern: np.uint16) -> np.float32:
    """A finite float16 from its pattern: exponent and fraction moved into place, then the exponent's bias."""
    bits = np.uint32(pattern)
    moved = ((bits & np.uint32(0x7FFF)) << np.uint32(13)) | ((bits & np.uint32(0x8000)) << np.uint32(16))
    return np.uint32(moved).view(np.float32) * _UNBIAS


@inlined
def _ones(word: np.uint64) -> np.uint64:
    """How many bits are set. LLVM knows this form and takes the processor's instruction for it."""
    word = word - ((word >> _1) & _M1)
    word = (word & _M2) + ((word >> _2) & _M2)
    word = (word + (word >> _4)) & _M4
    return np.uint64((word * _ONES) >> _56)


@loose_kernel
def inner_products(rows: Patterns, places: Places, query: FloatArray, out: FloatArray) -> None:
    """The query's products with some rows. Shapes: [N, D], [n], [D] -> [n]."""
    for i in range(len(places)):
        place = places[i]
        total = np.float32(0)
        for j in range(len(query)):
            total += _value(rows[place, j]) * query[j]
        out[i] = total


@kernel
def add_rows(rows: Patterns, places: Places, total: NDArray[np.float64]) -> None:
    """Add some rows to a sum. Shapes: [N, D], [n], [D]."""
    for i in range(len(places)):
        for j in range(len(total)):
            total[j] += _value(rows[places[i], j])


@inlined
def _hadamard(vector: FloatArray, begin: int, size: int) -> None:
    """The orthonormal Walsh-Hadamard transform of `size` (a power of two) values."""
    half = 1
    while half < size:
        for start in range(begin, begin + size, 2 * half):
            for j in range(start, start + half):
                one, other = vector[j], vector[j + half]
                vector[j], vector[j + half] = one + other, one - other
        half *= 2
    shrink = np.float32(1 / np.sqrt(size))
    for j in range(begin, begin + size):
        vector[j] *= shrink


@kernel
def rotate(vector: FloatArray, signs: NDArray[np.int8]) -> None:
    """Rotate in place, nearly at random: signs, then a Hadamard transform, in turn at either end.

    Shapes: [P], [rounds, P]. Where P is no power of two the transforms of both ends overlap.
    """
    width, size = len(vector), 1
    while 2 * size <= width:
        size *= 2
    for turn in range(len(signs)):
        for j in range(width):
            vector[j] *= signs[turn, j]
        _hadamard(vector, 0 if turn % 2 == 0 else width - size, size)


@kernel
def encode(
    rows: Patterns,
    centre: FloatArray,
    signs: NDArray[np.int8],
    codes: Words,
    scales: FloatArray,
    along: FloatArray,
) -> float:
    """1-bit codes of rows less their centre (RaBitQ, arXiv 2405.12497), and the sum of the codes' errors.

    Shapes: [n, D], [D], [rounds, P] -> [n, W], [n], [n]. With r the rotated residual, a code holds its
    signs, `scales` |r|^2 / |r|_1, and `along` the residual's product with the centre. The error of a code is
    1 - cos^2 of the angle between r and its signs.
    """
    width, padded = len(centre), signs.shape[1]
    vector = np.empty(padded, np.float32)
    errors = 0.0
    for i in range(len(rows)):
        product = 0.0
        for j in range(width):
            vector[j] = _value(rows[i, j]) - centre[j]
            product += vector[j] * centre[j]
        vector[width:] = 0
        rotate(vector, signs)
        length, square = 0.0, 0.0
        for j in range(padded):
            length += abs(vector[j])
            square += vector[j] * vector[j]
        for word in range(padded // 64):
            bits = np.uint64(0)
            for j in range(64):
                bits |= np.uint64(vector[64 * word + j] > 0) << np.uint64(j)
            codes[i, word] = bits
        along[i] = product
        scales[i] = square / length if length > 0 else 0.0
        errors += 1 - length * length / (padded * square) if square > 0 else 0.0
    return errors


@inlined
def _agreement(codes: Words, place: int, planes: Words) -> np.int64:
    """The sum of the query's 4-bit coordinates (two's complement) where a code has a bit."""
    a, b, c, d = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
    for j in range(codes.shape[1]):
        word = codes[place, j]
        a += _ones(word & planes[0, j])
        b += _ones(word & planes[1, j])
        c += _ones(word & planes[2, j])
        d += _ones(word & planes[3, j])
    return np.int64(a) + 2 * np.int64(b) + 4 * np.int64(c) - 8 * np.int64(d)


@kernel
def highest(values: FloatArray, count: int) -> NDArray[np.bool_]:
    """Which are the `count` highest, of equal ones the first. Shape: [n], 0 < count <= n -> [n]."""
    least = np.partition(values, len(values) - count)[len(values) - count]
    equal = count
    for value in values:
        if value > least:
            equal -= 1
    kept = np.empty(len(values), np.bool_)
    for i in range(len(values)):
        kept[i] = values[i] > least
        if values[i] == least and equal > 0:
            kept[i] = True
            equal -= 1
    return kept


@kernel
def _keep(bounds: FloatArray, places: Places, count: int) -> np.float32:
    """Move the `count` highest bounds to the front, in the order they had; gives the lowest of them."""
    kept = highest(bounds, count)
    at, least = 0, np.float32(np.inf)
    for i in range(len(bounds)):
        if kept[i] and at < count:
            bounds[at], places[at] = bounds[i], places[i]
            least = min(least, bounds[i])
            at += 1
    return least


@loose_kernel
def scan(
    codes: Words,
    scales: FloatArray,
    along: FloatArray,
    planes: Words,
    factors: FloatArray,
    blocks: Places,
    usable: NDArray[np.bool_],
    least: np.float32,
    count: int,
    bounds: FloatArray,
    places: Places,
) -> int:
    """Upper bounds of the products with usable rows of some blocks: the `count` highest above `least`.

    Shapes: [N, W], [N], [N], [4, W], [3], [m, 2] (begin, end), [N] or [0] (all usable) -> [b], [b] with
    b > count, in the rows' order; returns how many. A bound is factors[0] along + scale (factors[1]
    agreement + factors[2]).
    """
    all_usable = len(usable) == 0
    used = 0
    for block in range(len(blocks)):
        for i in range(blocks[block, 0], blocks[block, 1]):
            agreement = np.float32(_agreement(codes, i, planes))
            bound = factors[0] * along[i] + scales[i] * (factors[1] * agreement + factors[2])
            # The flag last: few rows come so far, and a branch on a random flag costs more than a bound.
            if bound > least and (all_usable or usable[i]):
                bounds[used], places[used] = bound, i
                used += 1
                if used == len(bounds):
                    least = _keep(bounds, places, count)
                    used = count
    if used > count:
        _keep(bounds[:used], places[:used], count)
        used = count
    return used


@loose_kernel
def scan_some(
    codes: Words,
    scales: FloatArray,
    along: FloatArray,
    planes: Words,
    factors: FloatArray,
    blocks: Places,
    chosen: Places,
    least: np.float32,
    count: int,
    bounds: FloatArray,
    places: Places,
) -> int:
    """`scan` over chosen rows alone, of which `blocks` counts. Shape of `chosen`: [n]."""
    used = 0
    for block in range(len(blocks)):
        for at in range(blocks[block, 0], blocks[block, 1]):
            i = chosen[at]
            agreement = np.float32(_agreement(codes, i, planes))
            bound = factors[0] * along[i] + scales[i] * (factors[1] * agreement + factors[2])
            if bound > least:
                bounds[used], places[used] = bound, i
                used += 1
                if used == len(bounds):
                    least = _keep(bounds, places, count)
                    used = count
    if used > count:
        _keep(bounds[:used], places[:used], count)
        used = count
    return used
