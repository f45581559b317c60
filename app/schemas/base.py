"""What all wire formats share: strictness, the shapes that a field may have, and the error body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    StringConstraints,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from app.schemas.integers import INTEGERS_WITHIN

Text = Annotated[str, StringConstraints(min_length=1)]
OutputName = Literal["dense", "sparse", "colbert"]
KindName = Literal["query", "passage"]
Cut = Literal["NONE", "START", "END"]
"""What becomes of a text that is too long, as Cohere and others name it."""
VectorKind = Literal["float", "base64", "int8", "uint8", "binary", "ubinary"]
"""How other APIs write a vector; see `app.wire.foreign_rows`."""
ModeName = Literal["hybrid", "dense", "sparse", "colbert"]
SearchMode = Literal["hybrid", "dense", "sparse", "colbert", "bm25"]


MANY_FIELDS = 200
"""More than any body has, and few enough to name what is wrong with each."""


def _failing_fast(schema: Any) -> Any:
    """A core schema whose lists are checked up to the first item that does not fit."""
    if isinstance(schema, dict):
        changed = {name: _failing_fast(value) for name, value in schema.items()}
        return {**changed, "fail_fast": True} if schema.get("type") == "list" else changed
    if isinstance(schema, list | tuple):
        return type(schema)(_failing_fast(one) for one in schema)
    return schema


class IncomingBody(BaseModel):
    """Any request, also one in another API's form: its first faults are found, not each of millions.

    Pydantic keeps a kilobyte for every fault, of which a client is told one: four megabytes of numbers
    where strings are expected took two gigabytes and a minute.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: CoreSchema = _failing_fast(handler(source))
        return schema

    @model_validator(mode="before")
    @classmethod
    def _not_very_many_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MANY_FIELDS:
            raise PydanticCustomError("too_many_fields", "there are too many fields")
        return value


class RequestBody(IncomingBody):
    """A request: unknown fields are refused, and a type is what JSON says it is ("5" is not 5)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ForeignBody(IncomingBody):
    """A request in the format of another API: fields that Trivec does not know are ignored.

    Clients of those APIs send many, each release new ones. Types are as strict as everywhere.
    """

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)


class ResponseBody(BaseModel):
    """A response; it documents what handlers write."""

    model_config = ConfigDict(extra="forbid", strict=True)


def branch(kinds: dict[type, str], expected: str) -> Discriminator:
    """Choose a union's branch by JSON type, so that an error names one place and not one for each branch.

    Tags are written `<so>`: `app.errors` leaves them out of `param`.
    """

    def choose(value: Any) -> str | None:
        return next((tag for kind, tag in kinds.items() if isinstance(value, kind)), None)

    chooser: Callable[[Any], str | None] = choose
    return Discriminator(
        chooser, custom_error_type="wrong_type", custom_error_message=f"{expected} is expected"
    )


Texts = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[Annotated[list[Text], Field(min_length=1)], Tag("<list>")],
    branch({str: "<text>", list: "<list>"}, "a string or a list of strings"),
]
"""One text or several; whitespace alone is a text (`<s></s>`), the empty string is not."""


Refused = WithJsonSchema({"type": "null"})
"""Marks a field that other APIs know and that is refused where it is given; the handler says why."""
RefusedIfTrue = WithJsonSchema({"anyOf": [{"type": "boolean", "const": False}, {"type": "null"}]})
RefusedIfFilled = WithJsonSchema({"anyOf": [{"type": "array", "maxItems": 0}, {"type": "null"}]})


def listed(texts: str | list[str]) -> list[str]:
    """One text or several as several."""
    return [texts] if isinstance(texts, str) else texts


class TextObject(ForeignBody):
    """A text written as an object."""

    text: Text = Field(description="The text.")


TextItem = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[TextObject, Tag("<object>")],
    branch({str: "<text>", dict: "<object>"}, "a string or an object with `text`"),
]
"""A text as other APIs take it."""


def text_of(item: str | TextObject) -> str:
    """The text itself."""
    return item if isinstance(item, str) else item.text


class SparseWeights(RequestBody):
    """Lexical weights: distinct token ids and a positive weight for each."""

    indices: Annotated[list[int], INTEGERS_WITHIN] = Field(description="Distinct token ids.")
    values: list[float] = Field(description="A weight greater than 0 for each id.")


Base64 = Annotated[str, Tag("<base64>")]
"""Little-endian numbers, row by row, as /embed writes them with `"encoding": "base64"`."""
Vector = Annotated[
    Annotated[list[float], Tag("<numbers>")] | Base64,
    branch({list: "<numbers>", str: "<base64>"}, "a list of numbers or base64"),
]
Rows = Annotated[
    Annotated[Annotated[list[list[float]], Field(min_length=1)], Tag("<numbers>")] | Base64,
    branch({list: "<numbers>", str: "<base64>"}, "a list of rows of numbers or base64"),
]


class EmbeddingBody(RequestBody):
    """An embedding that the client supplies; widths must be those of the model."""

    dense: Vector | None = Field(
        default=None, description="[D] numbers, or base64 of them (little-endian, see `dtype`)."
    )
    sparse: SparseWeights | None = Field(default=None, description="Lexical weights by token id.")
    colbert: Rows | None = Field(
        default=None,
        description="A row of [C] numbers for each token vector, or base64 of all rows, one after the other.",
    )
    colbert_shape: Annotated[list[int], INTEGERS_WITHIN] | None = Field(
        default=None,
        min_length=2,
        max_length=2,
        description="Rows and C, as /embed gives them; checked where `colbert` is base64.",
    )
    dtype: Literal["float32", "float16"] = Field(
        default="float32", description="Number format of what is base64."
    )


Weight = Annotated[float, Field(ge=0, le=1_000_000)]


class WeightsBody(RequestBody):
    """Weights of the hybrid score. Those left out are 0; at least one is greater than 0."""

    dense: Weight = Field(default=0.0, description="Weight of the dense score; 0 where it is left out.")
    sparse: Weight = Field(default=0.0, description="Weight of the lexical score; 0 where it is left out.")
    colbert: Weight = Field(default=0.0, description="Weight of the ColBERT score; 0 where it is left out.")


class SearchWeights(WeightsBody):
    """Weights of the hybrid score of a search, BM25 among them."""

    bm25: Weight = Field(
        default=0.0,
        description="Weight of the BM25 score, for collections made with `bm25`. In a hybrid that score is "
        "divided by what no document can reach for the query, so that it lies between 0 and 1.",
    )


class Usage(ResponseBody):
    """What a request cost."""

    tokens: int = Field(description="Tokens that the model read, `<s>` and `</s>` included.")
    texts: int = Field(description="Texts that the model read.")


class Scores(ResponseBody):
    """The true score of each output; null where one side lacks it."""

    dense: float | None = Field(description="Inner product of the dense vectors.")
    sparse: float | None = Field(description="Sum of the products of shared tokens' weights.")
    colbert: float | None = Field(
        description="Mean over the query's vectors of the best similarity (MaxSim)."
    )


class ErrorDetail(ResponseBody):
    """What went wrong."""

    code: str = Field(description="For programs, e.g. `text_too_long`.")
    message: str = Field(description="For people: what was wrong, the limit, what to do.")
    param: str | None = Field(description="The field that it is about, e.g. `texts.0`.")


class ErrorWithId(ErrorDetail):
    """An error of a whole request."""

    request_id: str = Field(description="The same as `X-Request-ID`.")


class ErrorBody(ResponseBody):
    """The body of every answer that is no success."""

    error: ErrorWithId = Field(description="What went wrong, and in which request.")


_MEANINGS = {
    400: "A field is not valid, or a text has too many tokens",
    401: "No API key, or an unknown one",
    403: "A read-only key on a route that writes",
    404: "No such collection or document",
    409: "The collection's settings or its model are others",
    413: "The body, a text or the answer is over its limit",
    415: "The body is compressed in another way than gzip",
    422: "A field is not valid; `param` names it",
    429: "The queue is full; see `Retry-After`",
    500: "The model or the service failed on this request",
    503: "Not ready, or shutting down; see `Retry-After`",
    504: "The deadline has passed; reading work was dropped, what was written stays",
    507: "The data folder's disk is full",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for the errors that a route may answer with."""
    return described(ErrorBody, *statuses)


def described(model: type[BaseModel], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """The same for error bodies of another model."""
    return {status: {"model": model, "description": _MEANINGS[status]} for status in statuses}


COMMON_ERRORS = (401, 413, 415, 422, 500, 503, 504)
"""Every gated route may answer so."""


def errors_like(model: type[BaseModel], *more: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for errors in the form of an API that is imitated (`app.error_formats`).

    `more` are statuses beside those that every such route may answer with.
    """
    return described(model, 400, 401, 413, 415, 429, 500, 503, 504, *more)
