"""What the embedder needs of an encoder with heads, whoever computes it.

`tensorflow_engine.py` is float32 and half precision, `litert.py` is int8 on CPU. This file imports neither.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from model.config import EncoderConfig
from model.embedding import Embedding, IntArray, Output

Precision = Literal["float32", "float16", "bfloat16", "int8"]
Pooling = Literal["cls", "mean"]


class DeviceError(RuntimeError):
    """The device cannot compute in the precision that was asked for."""


@dataclass(slots=True)
class AttentionScores:
    """How many attention scores all passes so far took, counted once for all heads and blocks."""

    needed: int = 0
    """Between tokens of one text."""
    computed: int = 0
    """All, with padding or another text behind a mask among them. No linear layer computes any padding."""

    def add(self, needed: int, computed: int) -> None:
        """Those of one more pass."""
        self.needed += needed
        self.computed += computed


class Engine(Protocol):
    """Token ids to embeddings. Not thread-safe: one thread calls it."""

    @property
    def config(self) -> EncoderConfig:
        """Sizes and constants of the encoder."""

    @property
    def precision(self) -> Precision:
        """Arithmetic of the matrix products."""

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The outputs that it has heads for."""

    @property
    def colbert_dim(self) -> int | None:
        """Width of a ColBERT vector; None without heads."""

    @property
    def attention_scores(self) -> AttentionScores:
        """What its attention has computed so far, and what of that was needed."""

    def forward(
        self,
        batch: Sequence[IntArray],
        outputs: Collection[Output],
        *,
        normalize: bool = True,
        between: Callable[[], None] | None = None,
    ) -> list[Embedding]:
        """One forward pass over a batch of token ids ([T] int32 each), results in order.

        `between` is called where the work can be left for a moment without loss, which may be never; it may
        call `forward` itself. Raises MemoryError where the device's memory does not suffice,
        ValueError for an empty text, a text over `config.max_length`, an id outside the
        vocabulary, or an output that the engine has no head for.
        """


def check_batch(batch: Sequence[IntArray], config: EncoderConfig) -> None:
    """Raise ValueError for a text that the encoder cannot take."""
    for number, ids in enumerate(batch):
        if not 0 < len(ids) <= config.max_length:
            raise ValueError(f"text {number} has {len(ids)} tokens; 1 to {config.max_length} fit")
        # An id past the table would read another variable's memory or abort the process.
        if ids.min() < 0 or ids.max() >= config.vocab_size:
            raise ValueError(f"text {number} has a token id outside 0 to {config.vocab_size - 1}")


def check_outputs(asked: Collection[Output], present: Collection[Output]) -> None:
    """Raise ValueError for an output without a head."""
    if missing := sorted(set(asked) - set(present)):
        raise ValueError(f"this model has no {' and no '.join(missing)} head")
