"""Wire formats of collections and their documents."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from app.schemas.base import EmbeddingBody, ErrorDetail, RequestBody, ResponseBody, Text, Usage, WeightsBody

MAX_ID_BYTES = 512
DocumentId = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_BYTES)]


class CollectionBody(RequestBody):
    """Settings of a new collection; they hold for its life."""

    dense_index: Literal["exact"] = Field(default="exact", description="How dense vectors are searched.")
    colbert: Literal["float16", "float32"] = Field(
        default="float16", description="How token vectors are stored."
    )
    fusion: WeightsBody = Field(
        default_factory=WeightsBody, description="Weights of a hybrid search that names none."
    )


class StoredBytes(ResponseBody):
    """Bytes as stored, by part."""

    text: int
    metadata: int
    dense: int
    sparse: int
    colbert: int


class CollectionDescription(ResponseBody):
    """A collection: what it is and how much it holds."""

    name: str
    count: int = Field(description="Documents.")
    bytes: StoredBytes
    settings: dict[str, Any]
    fingerprint: str = Field(description="Of the model that made its vectors.")
    hidden_size: int
    colbert_dim: int
    created: str


class CollectionList(ResponseBody):
    """All collections, by name."""

    collections: list[CollectionDescription]


class DocumentBody(RequestBody):
    """A document to store. Outputs that `embedding` lacks are computed from the text."""

    id: DocumentId | None = Field(
        default=None, description="A new one is made unless given; at most 512 bytes."
    )
    text: Text
    title: str | None = Field(
        default=None, description="Put before the text, `title. text`; so it is stored and embedded."
    )
    metadata: dict[str, Any] = Field(default_factory=dict, description="JSON for filters and for answers.")
    embedding: EmbeddingBody | None = None


class UpsertObject(RequestBody):
    """The body of an upsert, written as an object; a bare list of documents does as well."""

    documents: list[DocumentBody]


class DocumentResult(ResponseBody):
    """What became of one document: `status` where it was stored, `error` where it was not."""

    index: int = Field(description="Position in the request.")
    id: str | None = None
    status: Literal["upserted"] | None = None
    tokens: int | None = None
    truncated: bool | None = None
    error: ErrorDetail | None = None


class UpsertResponse(ResponseBody):
    """One result for each document, in order; those without `error` are durable and searchable."""

    collection: str
    upserted: int
    failed: int
    results: list[DocumentResult]
    usage: Usage
    model: str


class DocumentResponse(ResponseBody):
    """A stored document."""

    id: str
    text: str
    metadata: dict[str, Any]
    tokens: int
    truncated: bool
    outputs: list[str] = Field(description="The vectors that are stored with it.")


class DeleteRequest(RequestBody):
    """Which documents to delete: by `ids` or by `filter`, one of the two."""

    ids: list[DocumentId] | None = Field(default=None, min_length=1)
    filter: dict[str, Any] | None = Field(
        default=None,
        min_length=1,
        description="As in a search; an empty one is refused, for it would mean all.",
    )


class Deleted(ResponseBody):
    """How many documents were deleted; ids that were not there do not count."""

    deleted: int
