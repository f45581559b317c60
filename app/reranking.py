"""Texts in order of relevance to a query: what the native route and the imitated ones have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.index.fusion import weights_present
from app.service import Service
from app.telemetry import Record
from model.embedding import OUTPUTS, Embedding, Output
from model.scoring import FusionWeights, colbert_score, dense_score, hybrid_score, lexical_score


@dataclass(frozen=True, slots=True)
class Scored:
    """A text's place in the request, what orders it, and its score of each output; None where it has none."""

    index: int
    score: float
    scores: Mapping[Output, float | None]


@dataclass(frozen=True, slots=True)
class Candidates:
    """A query and the texts that are to be scored against it, embedded."""

    query: Embedding
    texts: Sequence[Embedding]
    weights: FusionWeights
    """Of the hybrid score; 0 for an output that the model lacks."""

    @property
    def tokens(self) -> int:
        """Tokens of all of them."""
        return self.query.tokens + sum(one.tokens for one in self.texts)

    @property
    def truncated(self) -> int:
        """How many of them had more tokens than were kept."""
        return sum(one.truncated for one in (self.query, *self.texts))

    def best_first(self, by: Output | None = None) -> list[Scored]:
        """All texts, by their hybrid score or by that of one output; equal ones keep their order.

        Takes about as long as writing ten JSON values for each token.
        """
        scored = [self._scored(place, one, by) for place, one in enumerate(self.texts)]
        return sorted(scored, key=lambda one: -one.score)

    def _scored(self, place: int, text: Embedding, by: Output | None) -> Scored:
        scores = _scores(self.query, text)
        if by is None:
            score = float(hybrid_score(self.weights, *(scores[name] or 0.0 for name in OUTPUTS)))
        else:
            score = scores[by] or 0.0
        return Scored(place, score, scores)


async def embed_candidates(
    service: Service,
    record: Record,
    query: str,
    texts: Sequence[str],
    *,
    weights: FusionWeights | None = None,
    text_tokens: int | None = None,
) -> Candidates:
    """Embed a query and texts with every output that the model has.

    `text_tokens` bounds the tokens of each text, the service's setting does unless given. Raises
    LimitExceeded where it is more than the model takes, QueryInvalid where no output has a weight.
    """
    outputs = service.outputs(None, "outputs")
    present = weights_present(weights or FusionWeights(), outputs)
    tokenized = [
        *await service.tokenize([query], service.length_limit("query", None)),
        *await service.tokenize(texts, service.length_limit("passage", text_tokens)),
    ]
    embedded = await service.embed_tokens(record, tokenized, outputs)
    return Candidates(embedded.embeddings[0], embedded.embeddings[1:], present)


def _scores(query: Embedding, text: Embedding) -> dict[Output, float | None]:
    scores: dict[Output, float | None] = {"dense": None, "sparse": None, "colbert": None}
    if query.dense is not None and text.dense is not None:
        scores["dense"] = dense_score(query.dense, text.dense)
    if query.sparse is not None and text.sparse is not None:
        scores["sparse"] = lexical_score(query.sparse, text.sparse)
    if query.colbert is not None and text.colbert is not None:
        scores["colbert"] = colbert_score(query.colbert, text.colbert)
    return scores
