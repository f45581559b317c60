"""The loop of `pooling.py` as machine code: neighbouring token vectors that are nearly alike become one."""

from __future__ import annotations

from typing import Any

import numpy as np

from app.index.compiled import inlined, kernel


@inlined
def _product(one: Any, other: Any) -> float:
    """Dot product."""
    total = 0.0
    for place in range(len(one)):
        total += one[place] * other[place]
    return total


@inlined
def _cosine(sums: Any, lengths: Any, one: int, other: int) -> float:
    """0 where one of them is the zero vector."""
    if lengths[one] == 0 or lengths[other] == 0:
        return 0.0
    return float(_product(sums[one], sums[other]) / lengths[one] / lengths[other])


@kernel
def merge_neighbours(vectors: Any, most: int, groups: Any) -> int:
    """Write the group of each row, from 0, into `groups` [n]: the two neighbouring groups of the largest
    cosine become one until at most `most` are left; of equals the first. Returns how many there are."""
    count, width = vectors.shape
    sums, lengths = vectors.astype(np.float64), np.empty(count, np.float64)
    following, previous = np.arange(1, count + 1), np.arange(-1, count - 1)
    cosines = np.full(count, -np.inf, np.float64)
    for row in range(count):
        lengths[row] = np.sqrt(_product(sums[row], sums[row]))
    for row in range(count - 1):
        cosines[row] = _cosine(sums, lengths, row, row + 1)
    left = count
    while left > most:
        row = int(np.argmax(cosines))
        gone = following[row]
        for place in range(width):
            sums[row, place] += sums[gone, place]
        lengths[row] = np.sqrt(_product(sums[row], sums[row]))
        following[row] = following[gone]
        cosines[gone] = -np.inf
        groups[gone] = -1
        after, before = following[row], previous[row]
        cosines[row] = -np.inf
        if after < count:
            previous[after] = row
            cosines[row] = _cosine(sums, lengths, row, after)
        if before >= 0:
            cosines[before] = _cosine(sums, lengths, before, row)
        left -= 1
    number = -1
    for row in range(count):
        number += groups[row] >= 0
        groups[row] = number
    return int(left)
