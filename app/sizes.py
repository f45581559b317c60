"""How much memory the vectors of a request take, known once its tokens are counted."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from app.errors import AnswerTooLarge
from app.ports import ModelCard
from model.embedding import Output


def check_vectors(tokens: Sequence[int], outputs: AbstractSet[Output], card: ModelCard, limit: int) -> None:
    """Raise AnswerTooLarge, before the model works, where the vectors would take more bytes than `limit`."""
    size = vector_bytes(tokens, outputs, card)
    if size > limit:
        raise AnswerTooLarge(
            f"the vectors of this request would take {size} bytes as float32, the limit is {limit}; send "
            "fewer texts or shorter ones, or ask for fewer outputs: `colbert` has a row for each token"
        )


def vector_bytes(tokens: Sequence[int], outputs: AbstractSet[Output], card: ModelCard) -> int:
    """Most bytes that the outputs of texts of so many tokens take as float32 and int32."""
    numbers: dict[Output, int] = {
        "dense": len(tokens) * card.hidden_size,
        "sparse": 2 * sum(tokens),
        "colbert": card.colbert_dim * sum(max(0, one - 1) for one in tokens),
    }
    return 4 * sum(numbers[name] for name in outputs)
