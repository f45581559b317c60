"""Wire formats of /embed, /rerank and /tokenize."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from app.schemas.base import (
    KindName,
    ModeName,
    OutputName,
    RequestBody,
    ResponseBody,
    Scores,
    Text,
    Texts,
    Usage,
    WeightsBody,
    branch,
)
from app.schemas.integers import Count, Length


class EmbedRequest(RequestBody):
    """Texts to embed, and how to write the vectors."""

    texts: Texts = Field(description="One text or several.")
    kind: KindName = Field(default="passage", description="Chooses the default `max_length`.")
    outputs: list[OutputName] | None = Field(
        default=None, min_length=1, description="The outputs wanted; all that the model has unless given."
    )
    max_length: Length | None = Field(
        default=None, description="Tokens kept of each text, `<s>` and `</s>` included."
    )
    truncate: bool = Field(default=True, description="false answers 413 where a text is longer.")
    normalize: bool = Field(default=True, description="Unit length for dense and ColBERT vectors.")
    encoding: Literal["float", "base64"] = Field(
        default="float", description="Vectors as numbers, or as base64 of little-endian bytes."
    )
    dtype: Literal["float32", "float16", "int8", "binary"] = Field(
        default="float32", description="Number format of dense and ColBERT vectors."
    )
    return_tokens: bool = Field(
        default=False, description="Also the vocabulary's entry of each lexical weight."
    )


class SparseResult(ResponseBody):
    """Lexical weights of one text."""

    indices: list[int] = Field(description="Token ids, ascending.")
    values: list[float] = Field(description="The weight of each, greater than 0.")
    tokens: list[str] | None = Field(
        default=None, description="The vocabulary's entries; with `return_tokens`."
    )


class Scale(ResponseBody):
    """Factors of int8 vectors: value = stored * scale, where scale = max|v| / 127."""

    dense: float | None = Field(default=None, description="Of the dense vector.")
    colbert: list[float] | None = Field(default=None, description="One for each row.")


class EmbeddedText(ResponseBody):
    """The embedding of one text."""

    index: int = Field(description="Position in the request.")
    tokens: int = Field(description="Tokens that were embedded.")
    truncated: bool = Field(description="Whether the text had more.")
    dense: list[float] | list[int] | str | None = Field(
        default=None, description="The dense vector, as `encoding` and `dtype` say."
    )
    sparse: SparseResult | None = Field(default=None, description="Lexical weights.")
    colbert: list[list[float]] | list[list[int]] | str | None = Field(
        default=None, description="A row for each token but `<s>`."
    )
    colbert_shape: list[int] | None = Field(default=None, description="Rows and width; with base64 only.")
    scale: Scale | None = Field(default=None, description="With int8 only.")


class EmbedResponse(ResponseBody):
    """Embeddings in the order of the texts."""

    model: str = Field(description="The model's name.")
    results: list[EmbeddedText] = Field(description="One for each text.")
    usage: Usage = Field(description="What it cost.")


class TextDocument(RequestBody):
    """A document to rerank, written as an object."""

    text: Text = Field(description="What is scored.")


RerankDocument = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[TextDocument, Tag("<object>")],
    branch({str: "<text>", dict: "<object>"}, "a string or an object with `text`"),
]


class RerankRequest(RequestBody):
    """A query and the texts to put in order of relevance to it."""

    query: Text = Field(description="What to be relevant to.")
    documents: list[RerankDocument] = Field(min_length=1, description="Texts, or objects with `text`.")
    mode: ModeName = Field(default="hybrid", description="The score that orders.")
    weights: WeightsBody | None = Field(
        default=None,
        description="Of the hybrid mode; 0.4, 0.2 and 0.4 unless given, and of those given the ones left out "
        "are 0.",
    )
    top_n: Count | None = Field(default=None, description="Results returned; all unless given.")
    return_documents: bool = Field(default=False, description="Also each document's text.")


class RerankResult(ResponseBody):
    """One document's place."""

    index: int = Field(description="Position in the request's `documents`.")
    score: float = Field(description="What orders the results.")
    scores: Scores = Field(description="The score of each output.")
    text: str | None = Field(default=None, description="With `return_documents`.")


class RerankResponse(ResponseBody):
    """Results, best first."""

    model: str = Field(description="The model's name.")
    mode: ModeName = Field(description="As it was asked for.")
    results: list[RerankResult] = Field(description="`top_n` of them.")
    usage: Usage = Field(description="What it cost.")


class TokenizeRequest(RequestBody):
    """Texts to tokenise as /embed would."""

    texts: Texts = Field(description="One text or several.")
    kind: KindName = Field(default="passage", description="Chooses the default `max_length`.")
    max_length: Length | None = Field(
        default=None, description="Tokens kept of each text, `<s>` and `</s>` included."
    )


class TokenizedText(ResponseBody):
    """The tokens of one text, cut as /embed would cut them."""

    index: int = Field(description="Position in the request.")
    ids: list[int] = Field(description="Token ids.")
    tokens: list[str] = Field(description="The vocabulary's entry of each id.")
    offsets: list[tuple[int, int]] = Field(
        description="[start, end) in characters; [0, 0] for `<s>` and `</s>`."
    )
    count: int = Field(description="Tokens before the cut.")
    truncated: bool = Field(description="Whether the text had more.")


class TokenizeResponse(ResponseBody):
    """Tokens in the order of the texts."""

    model: str = Field(description="The model's name.")
    results: list[TokenizedText] = Field(description="One for each text.")
