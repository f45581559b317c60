"""M3's three heads: last hidden states to dense vector, lexical weights and multi-vectors.

Legend: B texts, S packed tokens, T tokens of one text, D hidden, C ColBERT dimension, V vocabulary.
Source: arXiv 2402.03216, section 3.2, as FlagEmbedding's `modeling.py` computes it. No log1p on the
lexical weights, no [Q]/[D] markers, no punctuation filter: M3 has none of these.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from model.embedding import Embedding, FloatArray, IntArray, LexicalWeights
from model.encoder import Linear, Tensor, linear_variables

Pooling = Literal["cls", "mean"]


class Heads(keras.layers.Layer):  # type: ignore[misc]
    """The two learned heads. A dense-only model has none of them."""

    def __init__(self, hidden_size: int, colbert_dim: int, *, dtype: str) -> None:
        super().__init__(dtype=dtype)
        self.sparse_linear = Linear(hidden_size, 1, dtype=dtype)
        self.colbert_linear = Linear(hidden_size, colbert_dim, dtype=dtype)

    def token_weights(self, hidden: Tensor) -> Tensor:
        """relu(h . w + b) of every token. Shape: [S, D] -> [S]."""
        return tf.nn.relu(self.sparse_linear(hidden))[:, 0]

    def vectors(self, hidden: Tensor) -> Tensor:
        """A vector for every token, `<s>` included: the caller drops it. Shape: [S, D] -> [S, C]."""
        return self.colbert_linear(hidden)

    def named_variables(self) -> dict[str, Tensor]:
        """The heads' variables by their checkpoint names."""
        return linear_variables("sparse_linear", self.sparse_linear) | linear_variables(
            "colbert_linear", self.colbert_linear
        )


def pool(hidden: Tensor, starts: Tensor, pooling: Pooling) -> Tensor:
    """One vector a text: the state of `<s>`, or the mean of all states. Shape: [S, D] -> [B, D].

    `starts` [B + 1] as in `PackedBatch`. M3 is trained with `cls`; `mean` is for other checkpoints.
    """
    if pooling == "cls":
        return tf.gather(hidden, starts[:-1])
    texts = tf.repeat(tf.range(tf.size(starts) - 1), starts[1:] - starts[:-1])
    return tf.math.segment_mean(hidden, texts)


def unit_rows(rows: Tensor) -> Tensor:
    """Rows scaled to length 1 in float32, a zero row left as it is (torch's normalize, eps 1e-12)."""
    wide = tf.cast(rows, tf.float32)
    return wide / tf.maximum(tf.norm(wide, axis=-1, keepdims=True), 1e-12)


def lexical_weights(ids: IntArray, weights: FloatArray, unused: Collection[int]) -> LexicalWeights:
    """Per token id the MAX weight over its occurrences; unused ids and zero weights are dropped.

    Shapes: `ids`, `weights` [T]. `unused` are the ids of `<s>`, `</s>`, `<pad>`, `<unk>`;
    `<mask>` is not among them, as in the reference.
    """
    kept = (weights > 0) & ~np.isin(ids, list(unused))
    order = np.argsort(ids[kept], kind="stable")
    sorted_ids, sorted_weights = ids[kept][order], weights[kept][order]
    if not sorted_ids.size:
        return LexicalWeights(np.empty(0, np.int32), np.empty(0, np.float32))
    first = np.flatnonzero(np.diff(sorted_ids, prepend=-1))
    return LexicalWeights(
        sorted_ids[first].astype(np.int32, copy=False),
        np.maximum.reduceat(sorted_weights, first).astype(np.float32, copy=False),
    )


def split_embeddings(
    batch: Sequence[IntArray],
    starts: IntArray,
    *,
    dense: NDArray[np.float32] | None,
    token_weights: NDArray[np.float32] | None,
    vectors: NDArray[np.float32] | None,
    unused: Collection[int],
) -> list[Embedding]:
    """Cut the arrays of a packed forward pass into one `Embedding` a text.

    Shapes: `dense` [B, D]; `token_weights` [S]; `vectors` [S, C]. The ColBERT rows drop `<s>` and
    keep `</s>`: T - 1 rows. Rows are copied, so that one kept embedding does not hold its batch.
    """
    return [
        Embedding(
            tokens=len(ids),
            dense=None if dense is None else dense[number].copy(),
            sparse=None if token_weights is None else lexical_weights(ids, token_weights[begin:end], unused),
            colbert=None if vectors is None else vectors[begin + 1 : end].copy(),
        )
        for number, (ids, begin, end) in enumerate(zip(batch, starts[:-1], starts[1:], strict=True))
    ]
