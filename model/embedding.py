"""The value that one text becomes: what the model returns and every other room takes.

Legend: T tokens of the text (with `<s>` and `</s>`), D hidden size, C ColBERT dimension.
This file does not compute anything: `heads.py` makes embeddings, `scoring.py` compares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Output = Literal["dense", "sparse", "colbert"]
"""The three outputs of M3, by the names that the HTTP contract gives them."""

OUTPUTS: tuple[Output, ...] = get_args(Output)

Counting = Literal["kept", "whole"]
"""Which tokens of a text are counted: those that are kept where it is cut, or all."""

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class LexicalWeights:
    """M3's learned sparse vector: one positive weight for each distinct token id of a text.

    Shapes: `indices` [n] int32, strictly ascending; `values` [n] float32, all > 0.
    Raises ValueError where that does not hold.
    """

    indices: IntArray
    values: FloatArray

    def __post_init__(self) -> None:
        if self.indices.ndim != 1 or self.indices.shape != self.values.shape:
            raise ValueError(
                f"lexical weights need two equally long lists, got indices {self.indices.shape} "
                f"and values {self.values.shape}"
            )
        if self.indices.size and (self.indices[0] < 0 or bool(np.any(np.diff(self.indices) <= 0))):
            raise ValueError("lexical indices must be non-negative, distinct and in ascending order")
        if not bool(np.all(np.isfinite(self.values) & (self.values > 0))):
            raise ValueError("lexical values must be finite and greater than 0")

    def __len__(self) -> int:
        return int(self.indices.size)


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """Everything that one forward pass says of one text; an output that was not asked for is None.

    Shapes: `dense` [D] float32, unit length unless normalisation was turned off;
    `colbert` [T - 1, C] float32, a unit row for each token but `<s>`; `tokens` is T, after
    truncation; `truncated` tells whether the text had more.
    """

    tokens: int
    truncated: bool = False
    dense: FloatArray | None = None
    sparse: LexicalWeights | None = None
    colbert: FloatArray | None = None

    @property
    def outputs(self) -> frozenset[Output]:
        """The outputs that are present."""
        return frozenset(name for name in OUTPUTS if getattr(self, name) is not None)
