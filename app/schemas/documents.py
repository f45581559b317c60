"""Wire formats of collections and their documents."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from app.index.collection import ColbertKind, DenseKind
from app.schemas.base import (
    EmbeddingBody,
    ErrorBody,
    ErrorDetail,
    RequestBody,
    ResponseBody,
    SearchWeights,
    Usage,
)
from app.schemas.integers import INTEGER

MAX_ID_BYTES = 512
DocumentId = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_BYTES)]


class CollectionBody(RequestBody):
    """Settings of a new collection; they hold for its life."""

    dense_index: DenseKind = Field(
        default="auto",
        description="How dense candidates are found: `exact` looks at every vector, `auto` does so until "
        "there are too many.",
    )
    colbert: ColbertKind = Field(
        default="float16",
        description="How token vectors are stored. 1024 numbers take 2 KB as float16, 260 bytes as 2bit.",
    )
    colbert_pooling: Annotated[int, Field(ge=1, le=8), INTEGER] = Field(
        default=1,
        description="Merge neighbouring token vectors that are nearly the same until one in so many is left.",
    )
    colbert_candidates: bool = Field(
        default=False,
        description="Let ColBERT put up candidates too, so that what only late interaction finds is found.",
    )
    bm25: bool = Field(
        default=False,
        description="Count every token of the texts, also beyond the model's length, and let BM25 find and "
        "score documents too. 6 bytes for each distinct token of a text, and 7 in the index.",
    )
    fusion: SearchWeights | None = Field(
        default=None,
        description="Weights of a hybrid search that names none; 0.4, 0.2 and 0.4 unless given, and of those "
        "given the ones left out are 0.",
    )


class StoredBytes(ResponseBody):
    """Bytes as stored, by part."""

    text: int = Field(description="Texts as UTF-8.")
    metadata: int = Field(description="Metadata as JSON.")
    dense: int = Field(description="Dense vectors.")
    sparse: int = Field(description="Lexical weights.")
    colbert: int = Field(description="Token vectors.")
    bm25: int = Field(description="Token ids with their counts.")


class CollectionDescription(ResponseBody):
    """A collection: what it is and how much it holds."""

    name: str = Field(description="Its name, as in the path.")
    count: int = Field(description="Documents.")
    bytes: StoredBytes = Field(description="What they take, by part.")
    settings: dict[str, Any] = Field(description="As it was created; they hold for its life.")
    fingerprint: str = Field(description="Of the model that made its vectors.")
    hidden_size: int = Field(description="Numbers of a dense vector.")
    colbert_dim: int = Field(description="Numbers of a token vector.")
    created: str = Field(description="When, in ISO 8601.")


class CollectionList(ResponseBody):
    """All collections, by name."""

    collections: list[CollectionDescription] = Field(description="A description of each.")


class DocumentBody(RequestBody):
    """A document to store. Outputs that `embedding` lacks are computed from the text."""

    id: DocumentId | None = Field(
        default=None, description="A new one is made unless given; at most 512 bytes."
    )
    # Before `text`, whose check looks at it.
    title: str | None = Field(
        default=None, description="Put before the text, `title. text`; so it is stored and embedded."
    )
    text: str = Field(description="What is embedded and stored; may be empty where there is a title.")
    metadata: dict[str, Any] = Field(default_factory=dict, description="JSON for filters and for answers.")
    embedding: EmbeddingBody | None = Field(
        default=None, description="Vectors made before; outputs left out are computed."
    )

    @field_validator("text")
    @classmethod
    def _says_something(cls, text: str, info: ValidationInfo) -> str:
        if not text and not (info.data.get("title") or "").strip():
            raise PydanticCustomError(
                "empty_text", "a text, or else a title, of at least 1 character is expected"
            )
        return text


class UpsertObject(RequestBody):
    """The body of an upsert, written as an object; a bare list of documents does as well."""

    documents: list[DocumentBody] = Field(
        min_length=1, description="At least one, at most `max_texts` of /info."
    )


class DocumentResult(ResponseBody):
    """What became of one document: `status` where it was stored, `error` where it was not."""

    index: int = Field(description="Position in the request.")
    id: str | None = Field(default=None, description="Its id, where it is known.")
    status: Literal["upserted"] | None = Field(default=None, description="Durable and searchable.")
    tokens: int | None = Field(default=None, description="Tokens that were embedded.")
    truncated: bool | None = Field(default=None, description="Whether the text had more.")
    error: ErrorDetail | None = Field(default=None, description="Why it was not stored.")


class UpsertResponse(ResponseBody):
    """One result for each document, in order; those without `error` are durable and searchable."""

    collection: str = Field(description="Where they are stored.")
    upserted: int = Field(description="Documents stored.")
    failed: int = Field(description="Documents with an `error`.")
    results: list[DocumentResult] = Field(description="In the order of the request.")
    usage: Usage = Field(description="What it cost.")
    model: str = Field(description="The model that embedded them.")


class UpsertRefusal(ErrorBody):
    """The answer where no document could be stored."""

    results: list[DocumentResult] | None = Field(
        default=None, description="One for each document, where they were looked at."
    )


class DocumentResponse(ResponseBody):
    """A stored document."""

    id: str = Field(description="Its id, unique in the collection.")
    text: str = Field(description="As it was embedded, with the title before it.")
    metadata: dict[str, Any] = Field(description="As it was sent.")
    tokens: int = Field(description="Tokens that were embedded.")
    truncated: bool = Field(description="Whether the text had more.")
    outputs: list[str] = Field(description="The vectors that are stored with it.")


class DeleteRequest(RequestBody):
    """Which documents to delete: by `ids` or by `filter`, one of the two."""

    ids: list[DocumentId] | None = Field(
        default=None, min_length=1, description="Ids that are not there are passed over."
    )
    filter: dict[str, Any] | None = Field(
        default=None,
        min_length=1,
        description="As in a search; an empty one is refused, for it would mean all.",
    )


class Deleted(ResponseBody):
    """How many documents were deleted; ids that were not there do not count."""

    deleted: int = Field(description="Documents that are gone now.")
