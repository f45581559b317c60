"""MaxSim of one query against many documents at once: `scoring.colbert_score` for a list of them.

Legend: M query vectors, N vectors of all documents together, C ColBERT dimension, n documents.
It only scores: candidates come from the dense and the lexical index.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.embedding import FloatArray

CHUNK_BYTES = 64 * 2**20
"""Float32 document vectors at once; one document of 8,191 vectors of 1,024 is 32 MiB."""
SIMILARITY_BYTES = 16 * 2**20
"""Float32 similarities at once: a long query is taken in slices."""


def maxsim(query: FloatArray, documents: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """The mean over the query's vectors of the best dot product with each document's.

    Shapes: [M, C], n times [rows, C] of float16 or float32, at least one row -> [n].
    """
    scores = [_chunk(query, chunk) for chunk in _chunks(documents)]
    return np.concatenate(scores) if scores else np.empty(0, np.float64)


def _chunk(query: FloatArray, documents: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    lengths = np.array([len(one) for one in documents])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    together = np.concatenate(documents).astype(np.float32, copy=False)  # [N, C]
    step = max(1, SIMILARITY_BYTES // (4 * len(together)))
    total = np.zeros(len(documents), np.float64)
    for first in range(0, len(query), step):
        similarities = together @ query[first : first + step].T  # [N, M]
        total += np.maximum.reduceat(similarities, starts, axis=0).sum(axis=1, dtype=np.float64)
    return total / len(query)


def _chunks(documents: Sequence[NDArray[Any]]) -> Iterator[Sequence[NDArray[Any]]]:
    """Consecutive documents that fit together; a document is never divided."""
    first, used = 0, 0
    for place, document in enumerate(documents):
        size = 4 * document.size
        if place > first and used + size > CHUNK_BYTES:
            yield documents[first:place]
            first, used = place, 0
        used += size
    if first < len(documents):
        yield documents[first:]
