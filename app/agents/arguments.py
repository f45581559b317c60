"""What the tools take and give, written for an agent that has never heard of Trivec.

The descriptions are the tools' documentation: an agent reads nothing else. Numbers and lists that come as
text are taken, for many agents write them so; names that are not known are refused.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Tag
from pydantic.json_schema import GenerateJsonSchema

from app.schemas.base import branch

TEXT_CHARS = 2000
"""Of each hit unless asked otherwise: about what is embedded of a document by default."""
MAX_TEXT_CHARS = 100_000
DOCUMENT_CHARS = 20_000
MAX_DOCUMENTS = 256
MAX_TOP_K = 100


def _read(value: object) -> object:
    """Lists and objects that an agent wrote as JSON text."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


class Arguments(BaseModel):
    """Arguments of a tool."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Answer(BaseModel):
    """What a tool gives; fields that are None are left out."""

    model_config = ConfigDict(extra="forbid")


class Schema(GenerateJsonSchema):
    """JSON schemas without titles, which only repeat the names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """No title for any field."""
        return False


def schema_of(model: type[BaseModel], mode: Literal["validation", "serialization"]) -> dict[str, Any]:
    """The JSON schema of a model in one piece: not every host follows references."""
    schema = model.model_json_schema(mode=mode, schema_generator=Schema)
    inlined = _inlined(schema, schema.pop("$defs", {}))
    assert isinstance(inlined, dict)
    for one in ("title", "description"):
        inlined.pop(one, None)
    return inlined


def _inlined(value: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_inlined(one, definitions) for one in value]
    if not isinstance(value, dict):
        return value
    if isinstance(reference := value.get("$ref"), str):
        found = definitions[reference.rpartition("/")[2]]
        value = {**{key: one for key, one in found.items() if key != "title"}, **value}
        del value["$ref"]
    return {key: _inlined(one, definitions) for key, one in value.items()}


CollectionName = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$",
        description="The collection, a separate set of documents; list_collections tells which there are. "
        "Names are of a-z, 0-9, _ and -.",
    ),
]
FILTER_HELP = (
    "Only documents whose metadata fits, written as in MongoDB. "
    '{"lang": "en"} means equal; {"lang": "en", "year": {"$gte": 1990, "$lt": 2000}} means both; '
    '{"tags": {"$in": ["a", "b"]}} one of the values; {"author.name": "Ann"} a field within a field; '
    '{"$or": [{"lang": "de"}, {"$not": {"draft": true}}]} combines. '
    'Operators: $eq $ne $gt $gte $lt $lte $in $nin $exists $not $and $or. Types count: 1 is not "1".'
)
Filter = Annotated[dict[str, Any], BeforeValidator(_read)]
DocumentId = Annotated[str, Field(min_length=1, max_length=512)]


class SearchArguments(Arguments):
    """A search."""

    query: str = Field(
        min_length=1,
        description="What to look for, in any language: a question, a phrase or keywords. The documents may "
        "be in other languages than the query.",
    )
    collection: CollectionName = "default"
    top_k: int = Field(default=5, ge=1, le=MAX_TOP_K, description="How many hits, best first.")
    mode: Literal["hybrid", "dense", "sparse", "colbert"] = Field(
        default="hybrid",
        description="hybrid unites the three others and is best unless you know better. dense: by meaning. "
        "sparse: by the words that occur in both, for names, codes and rare words. colbert: token by token, "
        "for exact phrasing and long questions.",
    )
    filter: Filter | None = Field(default=None, description=FILTER_HELP)
    explain: bool = Field(
        default=False, description="true adds to each hit which words made it match; only where you need it."
    )
    max_chars: int = Field(
        default=TEXT_CHARS,
        ge=0,
        le=MAX_TEXT_CHARS,
        description="Characters of each hit's text that are returned; get_document reads the rest.",
    )


class HitAnswer(Answer):
    """A document that was found."""

    id: str = Field(description="For get_document and delete_documents.")
    score: float = Field(description="Orders the hits; compare it within one search only.")
    scores: dict[str, float] = Field(description="The dense, sparse and colbert score behind it.")
    text: str = Field(description="The document's text, its beginning where text_is_cut is true.")
    text_is_cut: bool = Field(description="Whether the document has more text.")
    metadata: dict[str, Any] | None = Field(
        default=None, description="What filters look at; left out where it is too long to show here."
    )
    explanation: str | None = Field(default=None, description="Which words made it match, where asked for.")


class SearchAnswer(Answer):
    """Hits, best first."""

    collection: str = Field(description="The collection that was searched.")
    hits: list[HitAnswer] = Field(description="Best first; empty where nothing fits the filter.")


class NewDocument(Arguments):
    """A document to store."""

    text: str = Field(
        description="What is searched. Split long texts into passages of a few hundred words, each a "
        "document: only the beginning of a longer one is searched."
    )
    id: DocumentId | None = Field(
        default=None,
        description="Your own name for it. A document of the same id is replaced. Unless given, one is made.",
    )
    title: str | None = Field(default=None, description="Put before the text, and searched with it.")
    metadata: Annotated[dict[str, Any], BeforeValidator(_read)] = Field(
        default_factory=dict,
        description='Facts to filter by and to show, e.g. {"lang": "en", "year": 1999, "source": "a.pdf"}.',
    )


OneDocument = Annotated[
    Annotated[NewDocument, Tag("<object>")] | Annotated[str, Tag("<text>")],
    branch({dict: "<object>", str: "<text>"}, "an object with a `text`, or a text,"),
]


class IndexArguments(Arguments):
    """Documents to store."""

    documents: Annotated[list[OneDocument], BeforeValidator(_read)] = Field(
        min_length=1,
        max_length=MAX_DOCUMENTS,
        description="The documents; a plain text stands for a document of nothing else.",
    )
    collection: CollectionName = "default"
    create_collection: bool = Field(
        default=False,
        description="true makes the collection where there is none of that name; else that is an error, as "
        "the name may be mistyped. `default` needs it not.",
    )


class Refusal(Answer):
    """A document that was not stored."""

    position: int = Field(description="Its place in `documents`, from 0.")
    id: str | None = Field(default=None, description="Its id, where it has one.")
    problem: str = Field(description="What is wrong with it.")


class IndexAnswer(Answer):
    """What was stored; it can be searched at once."""

    collection: str = Field(description="Where it is stored.")
    stored: list[str] = Field(description="Ids of the documents that are stored.")
    refused: list[Refusal] = Field(description="Documents that are not stored; send them again, corrected.")
    cut: list[str] = Field(
        description="Ids of stored documents of which only the beginning is searched, for they are too long."
    )


class DeleteArguments(Arguments):
    """Documents to delete."""

    ids: Annotated[list[DocumentId], BeforeValidator(_read)] | None = Field(
        default=None, min_length=1, description="Ids to delete; those that are not there are passed over."
    )
    filter: Annotated[Filter, Field(min_length=1)] | None = Field(
        default=None, description=f"Instead of ids. {FILTER_HELP} It may not be empty."
    )
    collection: CollectionName = "default"


class DeleteAnswer(Answer):
    """What was deleted."""

    collection: str = Field(description="Where it was.")
    deleted: int = Field(description="How many documents are gone now.")


class ListArguments(Arguments):
    """Nothing."""


class CollectionAnswer(Answer):
    """A collection."""

    name: str = Field(description="For the `collection` of the other tools.")
    documents: int = Field(description="How many it holds.")
    created: str = Field(description="When it was made, in ISO 8601.")


class ListAnswer(Answer):
    """All collections."""

    collections: list[CollectionAnswer] = Field(description="By name; empty before anything was stored.")


class DocumentArguments(Arguments):
    """A document to read."""

    id: DocumentId = Field(description="The document's id, as search gives it.")
    collection: CollectionName = "default"
    offset: int = Field(default=0, ge=0, description="Characters of the text to pass over.")
    max_chars: int = Field(
        default=DOCUMENT_CHARS, ge=1, le=MAX_TEXT_CHARS, description="Characters of the text to return."
    )


class DocumentAnswer(Answer):
    """A stored document."""

    id: str = Field(description="Its id.")
    text: str = Field(description="Its text from `offset` on.")
    total_chars: int = Field(description="Characters of the whole text.")
    next_offset: int | None = Field(
        default=None, description="The `offset` to read on with; left out where the text ends here."
    )
    metadata: dict[str, Any] = Field(description="What filters look at.")
