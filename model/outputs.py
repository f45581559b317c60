"""The arrays of a forward pass, cut into one `Embedding` a text. NumPy, shared by all engines.

Legend: B texts, S packed tokens, T tokens of one text, D hidden, C ColBERT dimension.
No log1p on the lexical weights, no [Q]/[D] markers, no punctuation filter: M3 has none of these.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from model.embedding import Embedding, FloatArray, IntArray, LexicalWeights


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
