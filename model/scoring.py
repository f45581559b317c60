"""M3's equations: how two embeddings are compared (arXiv 2402.03216, section 3.2).

Legend: D hidden size, C ColBERT dimension, M query vectors, N document vectors.
NumPy only, in float32 as the vectors come. It neither finds candidates nor ranks them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.embedding import FloatArray, LexicalWeights


@dataclass(frozen=True, slots=True)
class FusionWeights:
    """The weights of the hybrid score; the default is that of the model card's example.

    `bm25` is that of a fourth score, which is none of the model's: 0 unless it is wanted.
    Raises ValueError where one is negative or not finite, or their sum is 0 or not finite.
    """

    dense: float = 0.4
    sparse: float = 0.2
    colbert: float = 0.4
    bm25: float = 0.0

    def __post_init__(self) -> None:
        values = (self.dense, self.sparse, self.colbert, self.bm25)
        if not all(np.isfinite(value) and value >= 0 for value in values):
            raise ValueError(f"fusion weights must be finite and not negative, got {values}")
        if not 0 < sum(values) < np.inf:
            raise ValueError("the fusion weights must have a sum that is greater than 0 and finite")


def dense_score(query: FloatArray, document: FloatArray) -> float:
    """Dot product of two dense vectors. Shapes: [D], [D]."""
    return float(query @ document)


def lexical_score(query: LexicalWeights, document: LexicalWeights) -> float:
    """Sum of the products of the weights of shared token ids (s_lex)."""
    _, ours, theirs = np.intersect1d(query.indices, document.indices, assume_unique=True, return_indices=True)
    return float(query.values[ours] @ document.values[theirs])


def colbert_score(query: FloatArray, document: FloatArray) -> float:
    """MaxSim: the mean over the query's vectors of the best dot product with the document's.

    Shapes: [M, C], [N, C]. A mean, where other engines sum. Both sides hold true tokens only:
    a zero row for padding would turn a negative best similarity into 0.
    """
    return float((query @ document.T).max(axis=1).mean())  # [M, N] -> [M]


def hybrid_score(
    weights: FusionWeights,
    dense: NDArray[np.floating] | float,
    sparse: NDArray[np.floating] | float,
    colbert: NDArray[np.floating] | float,
    bm25: NDArray[np.floating] | float = 0.0,
) -> NDArray[np.float64]:
    """Weighted mean of the scores: (w_d d + w_s s + w_c c + w_b b) / (w_d + w_s + w_c + w_b)."""
    # Divided first, so that no weight, however large, overflows a product.
    total = weights.dense + weights.sparse + weights.colbert + weights.bm25
    blend = (
        weights.dense / total * np.asarray(dense, np.float64)
        + weights.sparse / total * np.asarray(sparse, np.float64)
        + weights.colbert / total * np.asarray(colbert, np.float64)
    )
    if weights.bm25:
        blend = blend + weights.bm25 / total * np.asarray(bm25, np.float64)
    return np.asarray(blend, np.float64)
