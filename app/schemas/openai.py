"""Wire formats of /v1/embeddings and /v1/models: OpenAI's, with what Jina's clients send beside it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from app.schemas.base import (
    Cut,
    ForeignBody,
    RefusedIfTrue,
    ResponseBody,
    Text,
    TextItem,
    TextObject,
    VectorKind,
    branch,
)
from app.schemas.integers import INTEGERS_WITHIN, Count, Length

TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


def _input_branch(value: Any) -> str | None:
    """By the JSON type, of a list by that of its first item: thousands of ids are not asked one by one."""
    if isinstance(value, list):
        first = value[0] if value else None
        if isinstance(first, int | float):
            return "<ids>"
        return "<id lists>" if isinstance(first, list) else "<texts>"
    if isinstance(value, str):
        return "<text>"
    return "<object>" if isinstance(value, dict) else None


Input = Annotated[
    Annotated[Text, Tag("<text>")]
    | Annotated[TextObject, Tag("<object>")]
    | Annotated[Annotated[list[TextItem], Field(min_length=1)], Tag("<texts>")]
    | Annotated[TokenIds, Tag("<ids>")]
    | Annotated[Annotated[list[TokenIds], Field(min_length=1)], Tag("<id lists>")],
    Discriminator(
        _input_branch,
        custom_error_type="wrong_type",
        custom_error_message="a text, texts, token ids or lists of token ids are expected",
    ),
    INTEGERS_WITHIN,
]
Truncate = Annotated[
    Annotated[bool, Tag("<bool>")] | Annotated[Cut, Tag("<word>")],
    branch({bool: "<bool>", str: "<word>"}, "true, false, `NONE`, `START` or `END`"),
]
OneOrMore = Annotated[
    Annotated[VectorKind, Tag("<one>")] | Annotated[list[VectorKind], Tag("<list>")],
    branch({str: "<one>", list: "<list>"}, "a string or a list of strings"),
]


class EmbeddingsRequest(ForeignBody):
    """Texts or token ids to embed. Unknown fields are ignored, null is the same as absent."""

    input: Input = Field(
        description="One text or several (Jina's `{text}` too), or the model's token ids, `<s>` to `</s>`."
    )
    model: str | None = Field(default=None, description="Any name is accepted; the answer says what served.")
    encoding_format: Literal["float", "base64"] | None = Field(
        default=None, description="Numbers, or base64 of little-endian float32."
    )
    dimensions: Count | None = Field(
        default=None, description="The model's own width or nothing: its vectors cannot be shortened."
    )
    embedding_type: OneOrMore | None = Field(
        default=None,
        description="Jina's name for `encoding_format`, with `int8`, `uint8`, `binary` and `ubinary`.",
    )
    encoding_type: OneOrMore | None = Field(default=None, description="The same, as LlamaIndex calls it.")
    task: str | None = Field(
        default=None,
        description="Jina's: what ends in `query` chooses the length limit of queries, nothing else.",
    )
    input_type: str | None = Field(default=None, description="`query` or `passage`, with the same effect.")
    normalized: bool | None = Field(default=None, description="Unit length; true unless given.")
    truncate: Truncate | None = Field(
        default=None, description="What becomes of long texts; cut at the end unless false or `NONE`."
    )
    max_length: Length | None = Field(default=None, description="Trivec's own: tokens kept of each text.")
    late_chunking: Annotated[bool | None, RefusedIfTrue] = Field(
        default=None, description="Jina's; true is refused."
    )
    return_multivector: Annotated[bool | None, RefusedIfTrue] = Field(
        default=None, description="Jina's; true is refused, /embed has them."
    )

    def vector_kinds(self) -> set[VectorKind]:
        """The formats that were asked for, by whichever of the three names."""
        asked: set[VectorKind] = set()
        for one in (self.encoding_format, self.embedding_type, self.encoding_type):
            asked.update([one] if isinstance(one, str) else one or [])
        return asked


class EmbeddingData(ResponseBody):
    """The dense vector of one text."""

    object: Literal["embedding"] = Field(description="Always `embedding`.")
    index: int = Field(description="Position in the request.")
    embedding: list[float] | list[int] | str = Field(description="The vector, as it was asked for.")


class EmbeddingsUsage(ResponseBody):
    """What a request cost."""

    prompt_tokens: int = Field(description="Tokens that the model read, `<s>` and `</s>` included.")
    total_tokens: int = Field(description="The same.")


class EmbeddingsResponse(ResponseBody):
    """Dense vectors in the order of the texts."""

    object: Literal["list"] = Field(description="Always `list`.")
    data: list[EmbeddingData] = Field(description="One for each text.")
    model: str = Field(description="The model that served.")
    usage: EmbeddingsUsage = Field(description="What it cost.")


class ModelObject(ResponseBody):
    """The model that serves."""

    id: str = Field(description="Its name.")
    object: Literal["model"] = Field(description="Always `model`.")
    created: int = Field(description="When it was loaded, in seconds since 1970.")
    owned_by: str = Field(description="Always `trivec`.")


class ModelList(ResponseBody):
    """The models: one."""

    object: Literal["list"] = Field(description="Always `list`.")
    data: list[ModelObject] = Field(description="The model that serves.")


class OpenAIErrorDetail(ResponseBody):
    """What went wrong, in OpenAI's terms."""

    message: str = Field(description="What was wrong, the limit, what to do.")
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"] = Field(
        description="Whose fault."
    )
    param: str | None = Field(description="The field that it is about.")
    code: str = Field(description="For programs, e.g. `context_length_exceeded`.")
    request_id: str = Field(description="The same as `X-Request-ID`.")


class OpenAIErrorBody(ResponseBody):
    """An error of a route under /v1, in the words of three APIs at once."""

    error: OpenAIErrorDetail = Field(description="For OpenAI's clients.")
    detail: str = Field(description="The message with its field, for Jina's.")
    message: str = Field(description="The same for Cohere's.")
