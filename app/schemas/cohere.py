"""Wire formats of Cohere's /v1/embed and /v2/embed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from app.schemas.base import Cut, ForeignBody, RefusedIfFilled, ResponseBody, Text, VectorKind
from app.schemas.integers import Count, Kept
from app.schemas.rerankers import Meta


class TextPart(ForeignBody):
    """A part of an input: a text. Pictures are refused."""

    type: Literal["text"] = Field(description="Only `text`.")
    text: Text = Field(description="What is embedded.")


class EmbedInput(ForeignBody):
    """An input written as parts."""

    content: list[TextPart] = Field(min_length=1, max_length=1, description="One part, a text.")


Texts = Annotated[list[Text], Field(min_length=1)]
Inputs = Annotated[list[EmbedInput], Field(min_length=1)]


class CohereEmbedRequest(ForeignBody):
    """Texts to embed: `texts` or `inputs`. Unknown fields are ignored, null is the same as absent."""

    texts: Texts | None = Field(default=None, description="The texts.")
    inputs: Inputs | None = Field(default=None, description="The texts as lists of parts.")
    images: Annotated[list[Any] | None, RefusedIfFilled] = Field(
        default=None, description="Refused: the model reads texts."
    )
    model: str | None = Field(default=None, description="Any name is accepted.")
    input_type: str | None = Field(
        default=None, description="`search_query` chooses the length limit of queries, nothing else."
    )
    embedding_types: list[VectorKind] | None = Field(
        default=None, description="The formats wanted; `float` unless given."
    )
    truncate: Cut | None = Field(default=None, description="What becomes of long texts; `END` unless given.")
    max_tokens: Kept | None = Field(
        default=None,
        description="Tokens kept of each text, `<s>` and `</s>` included; capped at the model's limit.",
    )
    output_dimension: Count | None = Field(
        default=None, description="The model's own width or nothing: its vectors cannot be shortened."
    )


class CohereEmbeddings(ResponseBody):
    """Vectors by format, in the order of the texts."""

    floats: list[list[float]] | None = Field(default=None, alias="float", description="Numbers.")
    int8: list[list[int]] | None = Field(default=None, description="-127 to 127; compare them by cosine.")
    uint8: list[list[int]] | None = Field(default=None, description="The same plus 128.")
    binary: list[list[int]] | None = Field(default=None, description="`ubinary` minus 128.")
    ubinary: list[list[int]] | None = Field(default=None, description="A bit a number, eight to a byte.")
    base64: list[str] | None = Field(default=None, description="Base64 of little-endian float32.")


class _CohereEmbedResponse(ResponseBody):
    id: str = Field(description="The same as `X-Request-ID`.")
    texts: list[str] = Field(description="As they were sent.")
    meta: Meta = Field(description="Version and units.")


class CohereEmbedResponse(_CohereEmbedResponse):
    """Vectors in the formats that were asked for."""

    response_type: Literal["embeddings_by_type"] = Field(description="Always `embeddings_by_type`.")
    embeddings: CohereEmbeddings = Field(description="By format.")


class CohereFloatsResponse(_CohereEmbedResponse):
    """Vectors as version 1 gives them where no format was asked for."""

    response_type: Literal["embeddings_floats"] = Field(description="Always `embeddings_floats`.")
    embeddings: list[list[float]] = Field(description="One for each text.")
