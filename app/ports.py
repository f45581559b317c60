"""What the service needs of a model, as a port: `model.embedder.Embedder` fits it, and so does a fake.

Routes, batcher and index see embeddings and token ids only, so that their tests run without TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from model.embedding import Counting, Embedding, IntArray, LexicalWeights, Output


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a client may ask about the model that serves it."""

    name: str
    """Checkpoint as the operator named it: a hub id or a folder's last part, never a path."""
    revision: str | None
    fingerprint: str
    """Hex digest over weights and tokenizer: the vectors of two fingerprints do not mix."""
    engine: str
    """Who computes the forward pass, e.g. `tensorflow`."""
    precision: str
    """`float32`, `float16`, `bfloat16` or `int8`."""
    outputs: tuple[Output, ...]
    """The outputs that the checkpoint has heads for."""
    hidden_size: int
    colbert_dim: int
    vocab_size: int
    max_length: int
    """Longest text in tokens, `<s>` and `</s>` included."""


class Tokenized(Protocol):
    """A text as token ids, `<s>` and `</s>` included, cut to the length that was asked for."""

    @property
    def ids(self) -> IntArray:
        """Shape [T] int32."""

    @property
    def offsets(self) -> Sequence[tuple[int, int]]:
        """T pairs [start, end) of character positions in the text; (0, 0) for `<s>` and `</s>`."""

    @property
    def total(self) -> int:
        """Tokens before the cut; `total > len(ids)` means truncated."""

    @property
    def terms(self) -> LexicalWeights | None:
        """How often each id stands in the text, or in what was kept; None where nobody asked.

        Without `<s>`, `</s>`, `<pad>`, `<unk>`.
        """


class TextModel(Protocol):
    """The model as the service sees it. `tokenize` is thread-safe; `forward` is called by one thread."""

    @property
    def card(self) -> ModelCard:
        """Sizes, names and the fingerprint."""

    def tokenize(
        self, texts: Sequence[str], max_length: int | None, *, count_terms: Counting | None = None
    ) -> Sequence[Tokenized]:
        """Texts to token ids of at most `max_length` (2 to `card.max_length`; None is no limit), in order.

        `count_terms` gives them their `terms`.
        """

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary's entries for token ids, e.g. `▁Hello`."""

    def forward(
        self,
        batch: Sequence[IntArray],
        outputs: Collection[Output],
        *,
        normalize: bool = True,
        between: Callable[[], None] | None = None,
    ) -> list[Embedding]:
        """ONE forward pass over a whole batch of token ids, results in order.

        Where the engine works in parts it calls `between` after each but the last, and that may call
        `forward` itself. Raises MemoryError where the batch is too large for the memory.
        `Embedding.truncated` is left False: only the caller knows it.
        """


@runtime_checkable
class CountsAttention(Protocol):
    """A model that knows how much of its attention was for nothing; not every model does."""

    @property
    def attention_scores(self) -> tuple[int, int]:
        """Of all passes so far: scores between tokens of one text, and all that were computed."""
