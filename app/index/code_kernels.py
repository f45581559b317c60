"""Machine code for `codes.py`: the rotation, coding and decoding of rows and MaxSim from their codes.

Legend: C width, W width of a row once unpacked (C and its padding), R rows of a block, M query vectors,
n documents. What is rotated lies as [C, LANES]: LANES rows side by side, so that each step is one of vectors.
The format is described in `codes.py`. Nothing here checks lengths or shapes; its callers must, for addresses
are taken as they are given. Coding rounds the same on every machine (no sum is reordered), scoring need not.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from app.index.code_vectors import (
    LANES,
    TILE,
    butterflies,
    float_products,
    nearest_of_2,
    nearest_of_4,
    nearest_of_16,
    pointer,
    rounded,
    scaled,
    transpose_bytes,
    transpose_floats,
    whole_products,
)
from app.index.compiled import inlined, kernel, loose_kernel

BLOCK_ROWS = 64
"""Rows unpacked at once: 128 KiB of int16 at C = 1024 stay in a core's own cache."""
GROUP = 64
"""Query vectors whose products with a block are kept at once."""
FLOATS = 16
"""From this many bits on a value is a float, not a code."""


@inlined
def _level(bits: int, code: Any) -> Any:
    """The whole number that a code stands for; see `codes.py`."""
    if bits == 1:
        return 2 * code - 1
    if bits == 2:
        return 7 * code - 10 - (code >> 1)
    odd = 2 * code - 15
    return (odd * (460 + odd * odd) + 32) >> 6


@inlined
def _float32(low: Any, high: Any) -> Any:
    """Two halves of a little-endian float32."""
    return np.uint32(np.uint32(low) | (np.uint32(high) << np.uint32(16))).view(np.float32)


@inlined
def _scale(row: Any, at: int) -> Any:
    """The little-endian float32 at a byte, which need not be aligned."""
    low = np.uint32(row[at]) | (np.uint32(row[at + 1]) << np.uint32(8))
    high = np.uint32(row[at + 2]) | (np.uint32(row[at + 3]) << np.uint32(8))
    return _float32(low, high)


@inlined
def _unpack(bits: int, row: Any, width: int, found: Any) -> None:
    """The levels of one row's codes, in the order of the dimensions."""
    if bits == 8:
        for place in range(width):
            found[place] = np.int8(row[place])
    elif bits == 1:
        plane = (width + 7) // 8
        for part in range(8):
            to = found[part * plane : (part + 1) * plane]
            for place in range(plane):
                to[place] = _level(1, (row[place] >> part) & 1)
    elif bits == 2:
        plane = (width + 3) // 4
        for part in range(4):
            to = found[part * plane : (part + 1) * plane]
            for place in range(plane):
                to[place] = _level(2, (row[place] >> (2 * part)) & 3)
    elif bits == 4:
        plane = (width + 1) // 2
        for part in range(2):
            to = found[part * plane : (part + 1) * plane]
            for place in range(plane):
                to[place] = _level(4, (row[place] >> (4 * part)) & 15)


@inlined
def _hadamard(lanes: Any, size: int) -> None:
    """Walsh-Hadamard transform, not normalised, of `size` (a power of two) times LANES values, in place."""
    step, row = 1, np.uint64(LANES * 4)
    base = np.uint64(lanes.ctypes.data)
    while step * 4 <= size:
        # Two steps of the transform at once halve the way through the cache.
        for group in range(0, size, 4 * step):
            for place in range(group, group + step):
                butterflies(base + np.uint64(place) * row, np.uint64(step) * row)
        step *= 4
    if step < size:
        twos = lanes.reshape(2, step * LANES)
        for k in range(step * LANES):
            a, b = twos[0, k], twos[1, k]
            twos[0, k], twos[1, k] = a + b, a - b


@inlined
def _turned(lanes: Any, signs: Any) -> None:
    """Multiply each dimension of [C * LANES] by its sign, and by what keeps the transform's lengths."""
    for place in range(len(signs)):
        scaled(np.uint64(lanes.ctypes.data) + np.uint64(place * LANES * 4), signs[place])


@inlined
def _shortened(lanes: Any, factor: Any) -> None:
    """Keep the lengths of those dimensions that both transforms take."""
    for place in range(len(lanes)):
        lanes[place] *= factor


@inlined
def _rotate(lanes: Any, signs: Any, size: int) -> None:
    """Both rounds: signs, transform of the first `size` dimensions, transform of the last, in place."""
    width = signs.shape[1]
    for turn in range(signs.shape[0]):
        _turned(lanes, signs[turn])
        _hadamard(lanes[: size * LANES], size)
        if size < width:
            _shortened(lanes[(width - size) * LANES : size * LANES], abs(signs[0, 0]))
            _hadamard(lanes[(width - size) * LANES : width * LANES], size)


@inlined
def _rotate_back(lanes: Any, signs: Any, size: int) -> None:
    """The transpose of `_rotate`."""
    width = signs.shape[1]
    for turn in range(signs.shape[0] - 1, -1, -1):
        if size < width:
            _hadamard(lanes[(width - size) * LANES : width * LANES], size)
            _shortened(lanes[(width - size) * LANES : size * LANES], abs(signs[0, 0]))
        _hadamard(lanes[: size * LANES], size)
        _turned(lanes, signs[turn])


@inlined
def _load(vectors: Any, first: int, rows: int, scratch: Any, lanes: Any, peaks: Any) -> bool:
    """Copy rows into lanes, each divided by its largest value; False where one is not finite."""
    width = vectors.shape[1]
    for lane in range(LANES):
        peaks[lane] = 0.0
        to = scratch[lane]
        if lane >= rows:
            to[:] = np.float32(0)
            continue
        row = vectors[first + lane]
        bits, peak = row.view(np.uint32), np.uint32(0)
        for place in range(width):
            # Without the sign the bits of floats are ordered as they are; NaN is above infinity.
            peak = max(peak, np.uint32(bits[place] & np.uint32(0x7FFFFFFF)))
        if peak >= np.uint32(0x7F800000):
            return False
        peaks[lane] = np.float64(np.uint32(peak).view(np.float32))
        factor = 1.0 / peaks[lane] if peak > 0 else 0.0
        for place in range(width):
            to[place] = np.float32(row[place] * factor)
    _to_lanes(scratch, lanes)
    return True


@inlined
def _to_lanes(scratch: Any, lanes: Any) -> None:
    """[LANES, C] -> [C, LANES]; C is padded to a multiple of LANES."""
    for start in range(0, scratch.shape[1], LANES):
        at = np.uint64(start * 4)
        transpose_floats(
            np.uint64(scratch.ctypes.data) + at,
            np.uint64(scratch.shape[1] * 4),
            np.uint64(lanes.ctypes.data) + at * np.uint64(LANES),
            np.uint64(LANES * 4),
        )


@inlined
def _from_lanes(lanes: Any, scratch: Any) -> None:
    """[C, LANES] -> [LANES, C]."""
    for start in range(0, scratch.shape[1], LANES):
        at = np.uint64(start * 4)
        transpose_floats(
            np.uint64(lanes.ctypes.data) + at * np.uint64(LANES),
            np.uint64(LANES * 4),
            np.uint64(scratch.ctypes.data) + at,
            np.uint64(scratch.shape[1] * 4),
        )


@inlined
def _padded(count: int) -> int:
    """The next multiple of LANES."""
    return (count + LANES - 1) // LANES * LANES


@kernel
def rotate_rows(vectors: Any, signs: Any, size: int, found: Any) -> bool:
    """Rotate [n, C] into `found` [n, C] float64; False where a value is not finite."""
    count, width = vectors.shape
    scratch = np.zeros((LANES, _padded(width)), np.float32)
    lanes, peaks = np.zeros(scratch.size, np.float32), np.empty(LANES, np.float64)
    for first in range(0, count, LANES):
        rows = min(LANES, count - first)
        if not _load(vectors, first, rows, scratch, lanes, peaks):
            return False
        _rotate(lanes, signs, size)
        _from_lanes(lanes, scratch)
        for lane in range(rows):
            for place in range(width):
                found[first + lane, place] = scratch[lane, place] * peaks[lane]
    return True


@inlined
def _sums(terms: Any, places: int, found: Any) -> None:
    """Sum each lane of [places * LANES] by halves, which vectorises and rounds the same everywhere."""
    while places > 1:
        half = places // 2
        head, tail = terms[: half * LANES], terms[(places - half) * LANES : places * LANES]
        for k in range(half * LANES):
            head[k] += tail[k]
        places -= half
    found[:] = terms[:LANES]


@inlined
def _code_bytes(lanes: Any, width: int, terms: Any, packed: Any, scales: Any, factors: Any) -> None:
    """int8: each lane's largest value is 127."""
    for k in range(width * LANES):
        terms[k] = abs(lanes[k])
    places = width
    while places > 1:
        half = places // 2
        head, tail = terms[: half * LANES], terms[(places - half) * LANES : places * LANES]
        for k in range(half * LANES):
            head[k] = max(head[k], tail[k])
        places -= half
    for lane in range(LANES):
        factors[lane] = np.float32(127) / terms[lane] if terms[lane] > 0 else np.float32(0)
        scales[lane] = terms[lane] / np.float32(127)
    given = np.uint64(lanes.ctypes.data), np.uint64(factors.ctypes.data)
    for place in range(width):
        rounded(np.uint64(place), *given, np.uint64(packed.ctypes.data))


@inlined
def _code_levels(
    lanes: Any,
    width: int,
    bits: int,
    borders: Any,
    gaps: Any,
    codes: Any,
    terms: Any,
    others: Any,
    packed: Any,
    scales: Any,
    sums: Any,
) -> None:
    """The nearest level of each value in units of its row's root mean square, and the best scale for them."""
    values = lanes[: width * LANES]
    for k in range(width * LANES):
        terms[k] = values[k] * values[k]
    _sums(terms, width, sums)
    for lane in range(LANES):
        scales[lane] = np.sqrt(np.float32(width) / sums[lane]) if sums[lane] > 0 else np.float32(0)
    given = np.uint64(lanes.ctypes.data), np.uint64(scales.ctypes.data)
    levels = np.uint64(borders.ctypes.data), np.uint64(gaps.ctypes.data)
    found = np.uint64(codes.ctypes.data), np.uint64(terms.ctypes.data), np.uint64(others.ctypes.data)
    for place in range(width):
        at = np.uint64(place)
        if bits == 1:
            nearest_of_2(at, *given, *levels, *found)
        elif bits == 2:
            nearest_of_4(at, *given, *levels, *found)
        else:
            nearest_of_16(at, *given, *levels, *found)
    _sums(others, width, sums)
    for lane in range(LANES):
        scales[lane] = np.float32(1) / (scales[lane] * sums[lane]) if scales[lane] > 0 else np.float32(0)
    _sums(terms, width, sums)
    for lane in range(LANES):
        scales[lane] *= sums[lane]
    stride = len(codes) * bits // 8
    packed[:stride] = codes[:stride]
    for part in range(1, 8 // bits):
        these, factor = codes[part * stride : (part + 1) * stride], np.uint8(1 << (part * bits))
        for k in range(stride):
            packed[k] |= np.uint8(these[k] * factor)


@kernel
def encode_rows(vectors: Any, bits: int, borders: Any, gaps: Any, signs: Any, size: int, found: Any) -> int:
    """Code [n, C] into `found` [n, row_bytes]; 0, or 1 where a value is not finite, 2 where a scale is not.

    `borders` [2 ** bits - 1] in root mean squares of a row: where one level ends and the next begins;
    `gaps` [2 ** bits]: the first level, then each level less the one before. Both are unused for int8.
    """
    count, width = vectors.shape
    per = 8 // bits
    plane = (width + per - 1) // per
    scratch = np.zeros((LANES, _padded(width)), np.float32)
    lanes, peaks = np.zeros(scratch.size, np.float32), np.empty(LANES, np.float64)
    terms, others = np.empty(width * LANES, np.float32), np.empty(width * LANES, np.float32)
    # Codes of the dimensions that pad the last plane stay 0.
    codes = np.zeros(plane * per * LANES, np.uint8)
    packed, turned = np.zeros(_padded(plane) * LANES, np.uint8), np.empty((LANES, _padded(plane)), np.uint8)
    scales, sums = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for first in range(0, count, LANES):
        rows = min(LANES, count - first)
        if not _load(vectors, first, rows, scratch, lanes, peaks):
            return 1
        _rotate(lanes, signs, size)
        if bits == 8:
            _code_bytes(lanes, width, terms, packed, scales, sums)
        else:
            _code_levels(lanes, width, bits, borders, gaps, codes, terms, others, packed, scales, sums)
        for start in range(0, turned.shape[1], LANES):
            transpose_bytes(
                np.uint64(packed.ctypes.data) + np.uint64(start * LANES),
                np.uint64(LANES),
                np.uint64(turned.ctypes.data) + np.uint64(start),
                np.uint64(turned.shape[1]),
            )
        for lane in range(rows):
            to = found[first + lane]
            for place in range(plane):
                to[place] = turned[lane, place]
            scale = np.float32(scales[lane] * peaks[lane])
            if not np.isfinite(scale):
                return 2
            number = np.float32(scale).view(np.uint32)
            for part in range(4):
                to[plane + part] = np.uint8((number >> np.uint32(8 * part)) & np.uint32(255))
    return 0


@kernel
def decode_rows(blob: Any, bits: int, signs: Any, size: int, found: Any) -> bool:
    """Decode [n, row_bytes] into `found` [n, C]; False where a scale is not finite."""
    count, width = found.shape
    scratch = np.zeros((LANES, _padded(width)), np.float32)
    lanes, levels = np.zeros(scratch.size, np.float32), np.zeros(width + 8, np.int16)
    scales = np.empty(LANES, np.float32)
    for first in range(0, count, LANES):
        rows = min(LANES, count - first)
        for lane in range(rows):
            row = blob[first + lane]
            scales[lane] = _scale(row, len(row) - 4)
            if not np.isfinite(scales[lane]):
                return False
            _unpack(bits, row, width, levels)
            for place in range(width):
                scratch[lane, place] = levels[place]
        _to_lanes(scratch, lanes)
        _rotate_back(lanes, signs, size)
        _from_lanes(lanes, scratch)
        for lane in range(rows):
            for place in range(width):
                found[first + lane, place] = scratch[lane, place] * scales[lane]
    return True


@inlined
def _fill(bits: int, row: Any, width: int, found: Any) -> float:
    """Unpack a row of any kind and return its scale; NaN where a number of it is not finite."""
    if bits < FLOATS:
        scale = _scale(row, len(row) - 4)
        _unpack(bits, row, width, found)
        return np.float64(scale) if np.isfinite(scale) else np.nan
    if bits == 32:
        words, most = row.view(np.uint32), np.uint32(0)
        for place in range(width):
            found[place] = np.uint32(words[place]).view(np.float32)
            most = max(most, np.uint32(words[place] & np.uint32(0x7FFFFFFF)))
        return 1.0 if most < np.uint32(0x7F800000) else np.nan
    halves, largest = row.view(np.uint16), np.uint16(0)
    for place in range(width):
        half = np.uint32(halves[place])
        word = ((half & np.uint32(0x7FFF)) << np.uint32(13)) | ((half & np.uint32(0x8000)) << np.uint32(16))
        # The exponent's bias is 112 less; the product is exact for subnormal halves too.
        found[place] = np.uint32(word).view(np.float32) * np.float32(2.0**112)
        largest = max(largest, np.uint16(half & np.uint32(0x7FFF)))
    return 1.0 if largest < np.uint16(0x7C00) else np.nan


@inlined
def _dots(bits: int, queries: Any, block: Any, rows: int, first: int, last: int, found: Any) -> None:
    """Dot products of the first rows of a block with some query vectors, into [R, GROUP].

    Up to TILE - 1 rows more are computed, from whatever the block held before; nobody reads them.
    """
    length = np.uint64(queries.shape[1])
    step, across = length * np.uint64(queries.itemsize), np.uint64(found.shape[1] * found.itemsize)
    for query in range(first, last, TILE):
        at = np.uint64(queries.ctypes.data) + np.uint64(query) * step
        column = np.uint64(found.ctypes.data) + np.uint64((query - first) * found.itemsize)
        for row in range(0, rows, TILE):
            here, to = np.uint64(block.ctypes.data) + np.uint64(row) * step, column + np.uint64(row) * across
            if bits < FLOATS:
                whole_products(at, step, here, step, to, across, length)
            else:
                float_products(at, step, here, step, to, across, length)


@loose_kernel
def best_sums(
    bits: int,
    width: int,
    row_bytes: int,
    addresses: Any,
    pieces: Any,
    queries: Any,
    steps: Any,
    block: Any,
    tile: Any,
    totals: Any,
    partial: Any,
) -> bool:
    """Add up each query vector's best dot product with each document; False where a number is not finite.

    `addresses` [n] of the blobs; `pieces` [k, 4]: document, first row, rows, and -1 or the row of `partial`
    [slots, M] that takes the piece's maxima instead of `totals` [n], because others have the rest of the
    document. `queries` [M padded to TILE, W] as the block's type, `steps` [M]: what a query's 1 is worth.
    """
    count = len(steps)
    scales = np.ones(BLOCK_ROWS, np.float64)
    best = np.full(len(queries), -np.inf, np.float64)
    ends, owners, closed = (
        np.empty(BLOCK_ROWS, np.int64),
        np.empty(BLOCK_ROWS, np.int64),
        np.empty(BLOCK_ROWS, np.bool_),
    )
    piece, at = 0, 0
    while piece < len(pieces):
        used, parts = 0, 0
        while piece < len(pieces) and used < BLOCK_ROWS:
            document, start, rows = pieces[piece, 0], pieces[piece, 1], pieces[piece, 2]
            take = min(BLOCK_ROWS - used, rows - at)
            first = addresses[document] + np.uint64((start + at) * row_bytes)
            source = numba.carray(pointer(np.uint64(first)), (take, row_bytes), np.uint8)
            for row in range(take):
                scale = _fill(bits, source[row], width, block[used + row])
                if np.isnan(scale):
                    return False
                scales[used + row] = scale
            used += take
            at += take
            ends[parts], owners[parts], closed[parts] = used, piece, at == rows
            parts += 1
            if at == rows:
                piece, at = piece + 1, 0
        for low in range(0, count, GROUP):
            high = min(low + GROUP, len(queries))
            _dots(bits, queries, block, used, low, high, tile)
            begin, here = 0, best[low:high]
            for part in range(parts):
                for row in range(begin, ends[part]):
                    products, scale = tile[row], scales[row]
                    for lane in range(high - low):
                        product = products[lane] * scale
                        here[lane] = product if product > here[lane] else here[lane]
                begin = ends[part]
                if closed[part]:
                    document, slot = pieces[owners[part], 0], pieces[owners[part], 3]
                    for lane in range(min(high, count) - low):
                        if slot < 0:
                            totals[document] += here[lane] * steps[low + lane]
                        else:
                            partial[slot, low + lane] = here[lane] * steps[low + lane]
                    here[:] = -np.inf
    return True
