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


class EmbedRequest(RequestBody):
    """Texts to embed, and how to write the vectors."""

    texts: Texts = Field(description="One text or several.")
    kind: KindName = Field(default="passage", description="Chooses the default `max_length`.")
    outputs: list[OutputName] | None = Field(
        default=None, min_length=1, description="The outputs wanted; all that the model has unless given."
    )
    max_length: int | None = Field(
        default=None, ge=2, le=8192, description="Tokens kept of each text, `<s>` and `</s>` included."
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

    indices: list[int]
    values: list[float]
    tokens: list[str] | None = None


class Scale(ResponseBody):
    """Factors of int8 vectors: value = stored * scale, where scale = max|v| / 127."""

    dense: float | None = None
    colbert: list[float] | None = Field(default=None, description="One for each row.")


class EmbeddedText(ResponseBody):
    """The embedding of one text."""

    index: int = Field(description="Position in the request.")
    tokens: int = Field(description="Tokens that were embedded.")
    truncated: bool = Field(description="Whether the text had more.")
    dense: list[float] | list[int] | str | None = None
    sparse: SparseResult | None = None
    colbert: list[list[float]] | list[list[int]] | str | None = Field(
        default=None, description="A row for each token but `<s>`."
    )
    colbert_shape: list[int] | None = Field(default=None, description="Rows and width; with base64 only.")
    scale: Scale | None = Field(default=None, description="With int8 only.")


class EmbedResponse(ResponseBody):
    """Embeddings in the order of the texts."""

    model: str
    results: list[EmbeddedText]
    usage: Usage


class TextDocument(RequestBody):
    """A document to rerank, written as an object."""

    text: Text


RerankDocument = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[TextDocument, Tag("<object>")],
    branch({str: "<text>", dict: "<object>"}, "a string or an object with `text`"),
]


class RerankRequest(RequestBody):
    """A query and the texts to put in order of relevance to it."""

    query: Text
    documents: list[RerankDocument] = Field(min_length=1)
    mode: ModeName = "hybrid"
    weights: WeightsBody | None = Field(default=None, description="Of the hybrid mode.")
    top_n: int | None = Field(default=None, ge=1, description="Results returned; all unless given.")
    return_documents: bool = False


class RerankResult(ResponseBody):
    """One document's place."""

    index: int = Field(description="Position in the request's `documents`.")
    score: float
    scores: Scores
    text: str | None = None


class RerankResponse(ResponseBody):
    """Results, best first."""

    model: str
    mode: ModeName
    results: list[RerankResult]
    usage: Usage


class TokenizeRequest(RequestBody):
    """Texts to tokenise as /embed would."""

    texts: Texts
    kind: KindName = "passage"
    max_length: int | None = Field(default=None, ge=2, le=8192)


class TokenizedText(ResponseBody):
    """The tokens of one text, cut as /embed would cut them."""

    index: int
    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]] = Field(
        description="[start, end) in characters; [0, 0] for `<s>` and `</s>`."
    )
    count: int = Field(description="Tokens before the cut.")
    truncated: bool


class TokenizeResponse(ResponseBody):
    """Tokens in the order of the texts."""

    model: str
    results: list[TokenizedText]
