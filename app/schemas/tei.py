"""Wire formats of /tei, which are those of text-embeddings-inference.

As there, fields that are not known are ignored, null means the default, and a type is what JSON says it is.
That a list or a text is empty is left to the handlers: clients look for an error of a kind of its own.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from app.schemas.base import ForeignBody, Refused, ResponseBody, branch
from app.schemas.integers import INTEGERS_WITHIN, Count

Filled = Annotated[str, Field(json_schema_extra={"minLength": 1})]
"""A text that the handlers refuse where it is empty."""
AtLeastOne = Field(json_schema_extra={"minItems": 1})
"""The same of a list."""
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], AtLeastOne]


def _kind_of_inputs(value: Any) -> str | None:
    """A list that begins with a number is one text as token ids, any other is a list of texts."""
    if isinstance(value, str):
        return "<text>"
    if isinstance(value, list):
        return "<ids>" if value and isinstance(value[0], int | float) else "<list>"
    return None


OneInput = Annotated[
    Annotated[Filled, Tag("<text>")] | Annotated[TokenIds, Tag("<ids>")],
    branch({str: "<text>", list: "<ids>"}, "a string or a list of token ids"),
]
Inputs = Annotated[
    Annotated[Filled, Tag("<text>")]
    | Annotated[TokenIds, Tag("<ids>")]
    | Annotated[list[OneInput], AtLeastOne, Tag("<list>")],
    Discriminator(
        _kind_of_inputs,
        custom_error_type="wrong_type",
        custom_error_message="a string, a list of token ids, or a list of those is expected",
    ),
    INTEGERS_WITHIN,
]
"""One text or several; a text may be given as the ids of its tokens."""

Strings = Annotated[
    Annotated[Filled, Tag("<text>")] | Annotated[list[Filled], AtLeastOne, Tag("<list>")],
    branch({str: "<text>", list: "<list>"}, "a string or a list of strings"),
]


def _capitalised(value: Any) -> Any:
    """huggingface_hub's signature says `left` and `right`, the server's enumeration `Left` and `Right`."""
    return value.capitalize() if isinstance(value, str) else value


Direction = Annotated[Literal["Left", "Right"], BeforeValidator(_capitalised)]


class Truncation(ForeignBody):
    """What becomes of a text that is too long."""

    truncate: bool | None = Field(
        default=None,
        description="false answers 413 where a text is too long; `TRIVEC_TEI_AUTO_TRUNCATE` unless given.",
    )
    truncation_direction: Direction | None = Field(
        default=None, description="The side that is cut off; Right unless given."
    )


class Prompted(Truncation):
    """A request that may name a prompt."""

    prompt_name: Annotated[str | None, Refused] = Field(
        default=None, description="Refused where it is given: BGE-M3 has no prompts."
    )


class EmbedInputs(Prompted):
    """Texts to embed, for `/tei/embed_sparse` and `/tei/embed_all`."""

    inputs: Inputs = Field(
        description="One text or several, each a string or a list of token ids as `/tei/tokenize` gives them."
    )


class TeiEmbedRequest(EmbedInputs):
    """Texts to embed as dense vectors."""

    normalize: bool | None = Field(default=None, description="Unit length; true unless given.")
    dimensions: Count | None = Field(
        default=None, description="Numbers kept of each vector, at most as many as the model has."
    )


class TeiRerankRequest(Truncation):
    """A query and the texts to put in order of relevance to it."""

    query: str = Field(description="What to be relevant to.")
    texts: Annotated[list[str], AtLeastOne] = Field(description="The texts.")
    raw_scores: bool | None = Field(
        default=None, description="Changes nothing: the hybrid score is about 0 to 1 without a sigmoid."
    )
    return_text: bool | None = Field(default=None, description="Also each text itself; false unless given.")


class SimilarityInputs(ForeignBody):
    """A sentence and those that are compared with it."""

    source_sentence: Filled = Field(description="The sentence.")
    sentences: Annotated[list[Filled], AtLeastOne] = Field(description="Those that it is compared with.")


class TeiSimilarityRequest(ForeignBody):
    """Sentences to compare by the cosine of their dense vectors."""

    inputs: SimilarityInputs = Field(description="The sentences.")
    parameters: Prompted | None = Field(default=None, description="How they are tokenised.")


def _kind_of_request(value: Any) -> str | None:
    """What a request to the bare URL asks for shows in its fields, not in its path."""
    if not isinstance(value, dict):
        return None
    if "texts" in value and "inputs" not in value:
        return "<rerank>"
    return "<similarity>" if isinstance(value.get("inputs"), dict) else "<embed>"


TeiRequest = Annotated[
    Annotated[TeiEmbedRequest, Tag("<embed>")]
    | Annotated[TeiRerankRequest, Tag("<rerank>")]
    | Annotated[TeiSimilarityRequest, Tag("<similarity>")],
    Discriminator(
        _kind_of_request, custom_error_type="wrong_type", custom_error_message="an object is expected"
    ),
]


class TeiTokenizeRequest(ForeignBody):
    """Texts to tokenise, uncut."""

    inputs: Strings = Field(description="One text or several.")
    add_special_tokens: bool | None = Field(
        default=None, description="Also `<s>` and `</s>`; true unless given."
    )
    prompt_name: Annotated[str | None, Refused] = Field(
        default=None, description="Refused where it is given: BGE-M3 has no prompts."
    )


def _kind_of_ids(value: Any) -> str | None:
    if not isinstance(value, list):
        return None
    return "<list>" if value and isinstance(value[0], list) else "<ids>"


class TeiDecodeRequest(ForeignBody):
    """Token ids to turn into text."""

    ids: Annotated[
        Annotated[TokenIds, Tag("<ids>")] | Annotated[list[TokenIds], AtLeastOne, Tag("<list>")],
        Discriminator(
            _kind_of_ids,
            custom_error_type="wrong_type",
            custom_error_message="a list of token ids or a list of such lists is expected",
        ),
        INTEGERS_WITHIN,
    ] = Field(description="The ids of one text or of several.")
    skip_special_tokens: bool | None = Field(
        default=None, description="Leave out `<s>`, `</s>` and the like; true unless given."
    )


class SparseValue(ResponseBody):
    """One lexical weight."""

    index: int = Field(description="Token id.")
    value: float = Field(description="Its weight, greater than 0.")


class Rank(ResponseBody):
    """One text's place."""

    index: int = Field(description="Position in the request's `texts`.")
    score: float = Field(description="What orders the texts.")
    text: str | None = Field(default=None, description="With `return_text`.")


class SimpleToken(ResponseBody):
    """One token of a text."""

    id: int = Field(description="Token id.")
    text: str = Field(description="The part of the text, or the vocabulary's entry of `<s>` and `</s>`.")
    special: bool = Field(description="Whether the tokenizer has put it there.")
    start: int | None = Field(description="First character; null for `<s>` and `</s>`.")
    stop: int | None = Field(description="The character after the last.")


class EmbeddingModel(ResponseBody):
    """How one vector is made of a text's tokens."""

    pooling: Literal["cls"] = Field(description="The vector of `<s>`.")


class EmbeddingType(ResponseBody):
    """The kind of the model, as it is told to those who embed."""

    embedding: EmbeddingModel = Field(description="One that embeds; it answers `/tei/rerank` all the same.")


class Labels(ResponseBody):
    """The classes of a model that classifies: one."""

    id2label: dict[str, str] = Field(description="Number to name.")
    label2id: dict[str, int] = Field(description="Name to number.")


class RerankerType(ResponseBody):
    """The kind of the model, as it is told to those who rerank."""

    reranker: Labels = Field(description="One that reranks.")


class TeiInfo(ResponseBody):
    """Model and limits."""

    model_id: str = Field(description="The model's name.")
    model_sha: str | None = Field(description="The hub's commit, tag or branch, where one was named.")
    model_dtype: str = Field(description="Arithmetic of the forward pass.")
    model_type: EmbeddingType | RerankerType = Field(
        description="An embedding model; under `/tei/reranker` a reranker."
    )
    max_concurrent_requests: int = Field(
        description="Requests of the shortest text that may wait: Trivec bounds the tokens that wait."
    )
    max_input_length: int = Field(description="Tokens of the longest text, `<s>` and `</s>` included.")
    max_batch_tokens: int = Field(description="Tokens in one forward pass.")
    max_batch_requests: int | None = Field(description="Always null: a forward pass is bounded by tokens.")
    max_client_batch_size: int = Field(description="Texts in one request.")
    auto_truncate: bool = Field(description="What `truncate` is where a request does not say.")
    tokenization_workers: int = Field(description="Requests tokenised at the same time.")
    version: str = Field(description="Of Trivec.")
    sha: str | None = Field(description="Always null.")
    docker_label: str | None = Field(description="Always null.")


class TeiError(ResponseBody):
    """The body of every answer under /tei that is no success."""

    error: str = Field(description="What was wrong, the limit, what to do.")
    error_type: Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"] = Field(
        description="For programs."
    )


_MEANINGS = {
    400: "A text or a list is empty",
    401: "No API key, or an unknown one",
    413: "The body, the number of texts or a text is over its limit",
    415: "The body is compressed in another way than gzip",
    422: "A field is not valid",
    424: "The model failed on this request, or has no such output",
    429: "The queue is full; see `Retry-After`",
    500: "The service failed on this request",
    503: "Not ready, or shutting down; see `Retry-After`",
    504: "The deadline has passed; the work was dropped",
}

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": TeiError, "description": meaning} for status, meaning in _MEANINGS.items()
}
"""OpenAPI entries for the errors of every gated route."""
