"""Wire formats of searching."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from app.schemas.base import (
    EmbeddingBody,
    RequestBody,
    ResponseBody,
    Scores,
    SearchMode,
    SearchWeights,
    Text,
    Usage,
)
from app.schemas.integers import Count


class EmbeddingQuery(RequestBody):
    """A query that was embedded before."""

    embedding: EmbeddingBody = Field(description="The query's vectors; a leg without one has no weight.")


def _query_branch(value: Any) -> str | None:
    if isinstance(value, str):
        return "<text>"
    if isinstance(value, list):
        return "<list>"
    if isinstance(value, dict):
        return "<wrapped>" if "embedding" in value else "<embedding>"
    return None


Query = Annotated[
    Annotated[Text, Tag("<text>")]
    | Annotated[Annotated[list[Text], Field(min_length=1)], Tag("<list>")]
    | Annotated[EmbeddingQuery, Tag("<wrapped>")]
    | Annotated[EmbeddingBody, Tag("<embedding>")],
    Discriminator(
        _query_branch,
        custom_error_type="wrong_type",
        custom_error_message="a string, a list of strings or an embedding is expected",
    ),
]


class SearchBody(RequestBody):
    """A search: what for, how to score, what to return."""

    query: Query = Field(description="A text, several, or an embedding made before.")
    mode: SearchMode = Field(
        default="hybrid",
        description="The score that orders the hits. `bm25` needs a text and a collection made with `bm25`; "
        "the model is not asked then, so the other scores are null.",
    )
    weights: SearchWeights | None = Field(
        default=None,
        description="Of the hybrid mode; the collection's unless given, and of those given the ones left out "
        "are 0.",
    )
    fusion: Literal["weighted", "rrf"] = Field(
        default="weighted", description="How hybrid unites the scores."
    )
    top_k: Count = Field(default=10, description="Hits returned.")
    candidates: Count | None = Field(
        default=None,
        description="Documents that each leg puts up for exact scoring. Unless given, 100 or `top_k`, and "
        "more while others could still reach the top.",
    )
    filter: dict[str, Any] | None = Field(
        default=None, description='E.g. {"lang": "en", "year": {"$gte": 2020}}.'
    )
    exact: bool = Field(default=False, description="Score every document that the filter allows.")
    explain: bool = Field(default=False, description="Add where each score comes from.")
    include: list[Literal["text", "metadata"]] = Field(
        default=["text", "metadata"], description="What of a document to return."
    )


class DefaultSearchBody(SearchBody):
    """A search of the collection that is named in the body."""

    collection: str = Field(default="default", description="The collection to search.")


class SearchScores(Scores):
    """The true score of each leg; null where one side lacks what it needs."""

    bm25: float | None = Field(
        default=None, description="BM25 over the tokens of the whole texts; of collections made with `bm25`."
    )


class Ranks(ResponseBody):
    """The place in each leg among the candidates, from 1; null without a place."""

    dense: int | None = Field(description="By the dense score.")
    sparse: int | None = Field(description="By the lexical score.")
    colbert: int | None = Field(description="By the ColBERT score.")
    bm25: int | None = Field(default=None, description="By the BM25 score; of collections made with `bm25`.")


class MatchedToken(ResponseBody):
    """A token id that query and document share; the products sum to the sparse score."""

    token: str = Field(description="The vocabulary's entry.")
    id: int = Field(description="Token id.")
    query_weight: float = Field(description="Its lexical weight in the query.")
    document_weight: float = Field(description="Its lexical weight in the document.")
    product: float = Field(description="Its part of the sparse score.")


class WeighedToken(ResponseBody):
    """A token id that query and document share, as BM25 counts it; the products sum to its score."""

    token: str = Field(description="The vocabulary's entry.")
    id: int = Field(description="Token id.")
    idf: float = Field(description="More the fewer documents have it.")
    query_tf: int = Field(description="How often it stands in the query.")
    tf: int = Field(description="How often it stands in the whole document.")
    product: float = Field(description="Its part of the BM25 score.")


class AlignedToken(ResponseBody):
    """A query vector and the document vector nearest to it; the similarities' mean is the ColBERT score.

    Tokens and offsets are null where the vectors came from the client and do not fit the text.
    """

    query_token: str | None = Field(description="The vocabulary's entry.")
    query_offset: tuple[int, int] | None = Field(description="[start, end) in characters of the query.")
    document_token: str | None = Field(description="The vocabulary's entry.")
    document_offset: tuple[int, int] | None = Field(
        description="[start, end) in characters of the stored text."
    )
    similarity: float = Field(description="Inner product of the two vectors.")


class Explanation(ResponseBody):
    """Where the scores come from."""

    matched_tokens: list[MatchedToken] = Field(description="Largest product first.")
    alignment: list[AlignedToken] = Field(description="In the order of the query's tokens.")
    bm25: list[WeighedToken] | None = Field(
        default=None, description="Largest product first; of collections made with `bm25`."
    )


class HitBody(ResponseBody):
    """One document found."""

    id: str = Field(description="The document's id.")
    score: float = Field(description="What orders the hits.")
    scores: SearchScores = Field(description="The true score of each leg.")
    ranks: Ranks = Field(description="The place in each leg.")
    text: str | None = Field(default=None, description="Where `include` has it.")
    metadata: dict[str, Any] | None = Field(default=None, description="Where `include` has it.")
    explanation: Explanation | None = Field(default=None, description="With `explain`.")


class SearchResponse(ResponseBody):
    """Hits of one query, best first."""

    collection: str = Field(description="The collection that was searched.")
    mode: SearchMode = Field(description="As it was asked for.")
    hits: list[HitBody] = Field(description="Best first, at most `top_k`.")
    usage: Usage = Field(description="What it cost.")
    model: str = Field(description="The model's name.")


class HitList(ResponseBody):
    """Hits of one query of several."""

    hits: list[HitBody] = Field(description="Best first, at most `top_k`.")


class ManySearchResponse(ResponseBody):
    """Hits of several queries, in their order."""

    collection: str = Field(description="The collection that was searched.")
    mode: SearchMode = Field(description="As it was asked for.")
    results: list[HitList] = Field(description="One for each query.")
    usage: Usage = Field(description="What it cost.")
    model: str = Field(description="The model's name.")
