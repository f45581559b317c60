"""M3's heads on TensorFlow: last hidden states to dense vector, token weights and multi-vectors.

Legend: B texts, S packed tokens, T tokens of one text, D hidden, C ColBERT dimension, V vocabulary.
Source: arXiv 2402.03216, section 3.2, as FlagEmbedding's `modeling.py` computes it. What becomes of
the arrays, text by text, is in `outputs.py`.
"""

from __future__ import annotations

import tensorflow as tf

from model.encoder import Linear, Tensor, linear_variables
from model.engine import Pooling


class Heads(tf.Module):  # type: ignore[misc]
    """The two learned heads. A dense-only model has none of them."""

    def __init__(self, hidden_size: int, colbert_dim: int, *, dtype: str) -> None:
        super().__init__()
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
