"""Fewer token vectors for a document: neighbours that are nearly the same become one.

It loses quality where neighbouring tokens differ; `benchmarks/codes.py` measures how much.
Legend: n token vectors, C their width, k vectors that are left.
"""

from __future__ import annotations

import numpy as np

from app.index.deferred import pooling_kernels as kernels
from model.embedding import FloatArray, IntArray


def pooled(vectors: FloatArray, factor: int) -> tuple[FloatArray, IntArray]:
    """Merge neighbouring token vectors that are nearly the same until at most ceil(n / factor) are left.

    Shapes: [n, C], n >= 1 -> [k, C] and the group of each row [n], ascending from 0. The two neighbouring
    groups of the largest cosine become one, over and over; a group's vector has the direction of its rows'
    sum and their mean length. Raises ValueError where a value is not finite or the factor is below 1.
    """
    if factor < 1 or vectors.ndim != 2 or not vectors.size or not np.isfinite(vectors).all():
        raise ValueError(f"pooling takes finite vectors and a factor of 1 or more, got {factor}")
    groups = np.zeros(len(vectors), np.int32)
    most = -(-len(vectors) // factor)
    count = kernels.merge_neighbours(np.ascontiguousarray(vectors, np.float32), most, groups)
    if count == len(vectors):
        return vectors.astype(np.float32), groups
    starts = np.searchsorted(groups, np.arange(count))
    rows = vectors.astype(np.float64)
    sums = np.add.reduceat(rows, starts, axis=0)
    lengths = np.add.reduceat(np.linalg.norm(rows, axis=1), starts) / np.diff(starts, append=len(rows))
    norms = np.linalg.norm(sums, axis=1)
    factors = np.divide(lengths, norms, out=np.zeros_like(norms), where=norms > 0)
    return (sums * factors[:, None]).astype(np.float32), groups
