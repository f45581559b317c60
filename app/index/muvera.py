"""One vector for all token vectors of a text, so that late interaction can put up candidates by itself.

Fixed-dimensional encodings (MUVERA, arXiv 2405.19504): random hyperplanes divide the space into cells,
several times over; a document has the mean of its token vectors in each cell, a query their sum, both
projected to a few dimensions. The inner product of the two follows MaxSim. It only ranks candidates: they
are scored by MaxSim itself.

Legend: n token vectors, C ColBERT dimension, P the power of two from C on, F dimensions of an encoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from app.index.deferred import muvera_kernels as kernels
from model.embedding import FloatArray

REPETITIONS, PLANES, KEPT = 16, 4, 8
"""Divisions of the space, hyperplanes of each (16 cells), dimensions kept of a cell."""
CELLS = 2**PLANES
DIMENSIONS = REPETITIONS * CELLS * KEPT
"""F: 2,048, of which an index keeps a bit each and, in a mapped file, float16."""
_SEED = 0x4D5556


@dataclass(frozen=True, slots=True, eq=False)
class FixedEncoder:
    """Encodes token vectors of one width; the same width gives the same encodings everywhere."""

    signs: FloatArray
    """Of the random rotations that hyperplanes and projections are taken from. Shape: [turns, P]."""

    @classmethod
    def of(cls, width: int) -> FixedEncoder:
        """For C = `width`."""
        return _encoder(width)

    def document(self, rows: FloatArray) -> FloatArray:
        """Shapes: [n, C] -> [F]."""
        sums, counts = self._cells(rows)
        kernels.fill(sums, counts)
        return sums.reshape(-1)

    def query(self, rows: FloatArray) -> FloatArray:
        """Shapes: [n, C] -> [F]; its inner product with a document's is about their MaxSim."""
        sums, _ = self._cells(rows)
        return (sums / (max(1, len(rows)) * REPETITIONS)).reshape(-1).astype(np.float32)

    def _cells(self, rows: FloatArray) -> tuple[FloatArray, NDArray[np.int64]]:
        sums = np.zeros((REPETITIONS, CELLS, KEPT), np.float32)
        counts = np.zeros((REPETITIONS, CELLS), np.int64)
        kernels.add(np.ascontiguousarray(rows, np.float32), self.signs, sums, counts)
        return sums, counts


@lru_cache(maxsize=8)
def _encoder(width: int) -> FixedEncoder:
    padded = 1 << max(0, (width - 1).bit_length())
    turns = -(-REPETITIONS * (PLANES + KEPT) // padded)
    signs = np.random.Generator(np.random.PCG64(_SEED)).integers(0, 2, (turns, padded)) * 2 - 1
    return FixedEncoder(signs.astype(np.float32))
