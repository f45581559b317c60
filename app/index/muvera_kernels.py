"""The loops of `muvera.py` as machine code: token vectors into cells, empty cells filled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from app.index.compiled import kernel
from app.index.muvera import CELLS, KEPT, PLANES, REPETITIONS
from model.embedding import FloatArray


@kernel
def add(rows: FloatArray, signs: FloatArray, sums: FloatArray, counts: NDArray[np.int64]) -> None:
    """Each token vector into its cell of each division: projected sums, and how many."""
    turns, padded = signs.shape
    turned = np.empty(turns * padded, np.float32)
    # Coordinates of a random rotation are random projections; KEPT of them shrink a product by KEPT / P.
    scale = np.float32(1.0 / np.sqrt(KEPT))
    for row in range(rows.shape[0]):
        for turn in range(turns):
            first = turn * padded
            for at in range(padded):
                turned[first + at] = rows[row, at] * signs[turn, at] if at < rows.shape[1] else np.float32(0)
            half = 1
            while half < padded:
                for block in range(first, first + padded, 2 * half):
                    for at in range(block, block + half):
                        low, high = turned[at], turned[at + half]
                        turned[at], turned[at + half] = low + high, low - high
                half *= 2
        for repetition in range(REPETITIONS):
            cell = 0
            for plane in range(PLANES):
                cell = 2 * cell + (1 if turned[repetition * PLANES + plane] > 0 else 0)
            counts[repetition, cell] += 1
            first = REPETITIONS * PLANES + repetition * KEPT
            for at in range(KEPT):
                sums[repetition, cell, at] += scale * turned[first + at]


@kernel
def fill(sums: FloatArray, counts: NDArray[np.int64]) -> None:
    """Sums to means; an empty cell takes the mean of the nearest that is not, by the planes between them."""
    for repetition in range(REPETITIONS):
        for cell in range(CELLS):
            if counts[repetition, cell]:
                for at in range(KEPT):
                    sums[repetition, cell, at] /= np.float32(counts[repetition, cell])
        for cell in range(CELLS):
            if counts[repetition, cell]:
                continue
            nearest, distance = -1, PLANES + 1
            for other in range(CELLS):
                if counts[repetition, other]:
                    apart = 0
                    for plane in range(PLANES):
                        apart += ((cell ^ other) >> plane) & 1
                    if apart < distance:
                        nearest, distance = other, apart
            if nearest >= 0:
                for at in range(KEPT):
                    sums[repetition, cell, at] = sums[repetition, nearest, at]
