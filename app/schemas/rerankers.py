"""Wire formats of /v1/rerank (Jina, Cohere v1) and /v2/rerank (Cohere v2)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, WithJsonSchema

from app.schemas.base import ForeignBody, ResponseBody, TextItem
from app.schemas.integers import Count, Kept

ByTextAlone = WithJsonSchema(
    {"anyOf": [{"type": "array", "items": {"const": "text"}, "maxItems": 1}, {"type": "null"}]}
)
"""The handler refuses other fields and says so."""


class ForeignRerankRequest(ForeignBody):
    """A query and texts to put in order. Unknown fields are ignored, null is the same as absent."""

    query: TextItem = Field(description="What to be relevant to; a text, or Jina's `{text}`.")
    documents: list[TextItem] = Field(min_length=1, description="Texts, or objects with `text`.")
    model: str | None = Field(default=None, description="Any name is accepted.")
    top_n: Count | None = Field(default=None, description="Results returned; all unless given.")
    return_documents: bool | None = Field(
        default=None, description="Also each document's text: true unless given at /v1, false at /v2."
    )
    max_tokens_per_doc: Kept | None = Field(
        default=None,
        description="Tokens kept of each document, `<s>` and `</s>` included; capped at the model's limit.",
    )
    rank_fields: Annotated[list[str] | None, ByTextAlone] = Field(
        default=None, description="Cohere v1: only `text` can be ranked by."
    )


class DocumentText(ResponseBody):
    """A document."""

    text: str = Field(description="Its text, as it was sent.")


class RelevanceResult(ResponseBody):
    """One document's place."""

    index: int = Field(description="Position in the request's `documents`.")
    relevance_score: float = Field(
        description="The hybrid score of /rerank; it orders and is no probability."
    )
    document: DocumentText | None = Field(default=None, description="With `return_documents`.")


class TotalTokens(ResponseBody):
    """What a request cost."""

    total_tokens: int = Field(description="Tokens that the model read, of the query and all documents.")


class ApiVersion(ResponseBody):
    """The version of Cohere's API that is imitated."""

    version: str = Field(description="`1` or `2`.")


class BilledUnits(ResponseBody):
    """What Cohere would count; nothing is billed."""

    search_units: int | None = Field(default=None, description="One for each rerank request.")
    input_tokens: int | None = Field(default=None, description="Tokens embedded.")


class Meta(ResponseBody):
    """What Cohere's clients look at."""

    api_version: ApiVersion = Field(description="Of the API that is imitated.")
    billed_units: BilledUnits = Field(description="What Cohere would count.")


class CohereRerankResponse(ResponseBody):
    """Results, best first."""

    id: str = Field(description="The same as `X-Request-ID`.")
    results: list[RelevanceResult] = Field(description="`top_n` of them.")
    meta: Meta = Field(description="Version and units.")


class JinaRerankResponse(CohereRerankResponse):
    """The same with what Jina's clients look at."""

    model: str = Field(description="The model that served.")
    usage: TotalTokens = Field(description="What it cost.")


class CohereErrorBody(ResponseBody):
    """An error of a route under /v2."""

    message: str = Field(description="What was wrong, with the field that it is about in front.")
    code: str = Field(description="For programs, e.g. `text_too_long`.")
    param: str | None = Field(description="The field that it is about.")
    request_id: str = Field(description="The same as `X-Request-ID`.")
