"""Wire formats of health and /info."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.schemas.base import ResponseBody


class Health(ResponseBody):
    """The service is well."""

    status: Literal["ok"] = Field(description="Always `ok`; what is not well is an error.")


class ModelInfo(ResponseBody):
    """The model in use."""

    name: str = Field(description="As the operator named the checkpoint.")
    revision: str | None = Field(description="The hub's commit, tag or branch, where one was named.")
    fingerprint: str = Field(description="Digest of weights and tokenizer: vectors of two do not mix.")
    engine: str = Field(description="Who computes the forward pass.")
    precision: str = Field(description="Arithmetic of the forward pass.")
    outputs: list[str] = Field(description="Those of dense, sparse and colbert that it has.")
    hidden_size: int = Field(description="Numbers of a dense vector.")
    colbert_dim: int = Field(description="Numbers of a token vector.")
    vocab_size: int = Field(description="Token ids lie below it.")
    max_length: int = Field(description="Tokens of the longest text, `<s>` and `</s>` included.")


class Limits(ResponseBody):
    """What a request may ask for."""

    max_length: int = Field(description="Tokens that `max_length` may be.")
    query_max_length: int = Field(description="Tokens kept of a query unless the request says.")
    passage_max_length: int = Field(description="Tokens kept of a passage unless the request says.")
    max_texts: int = Field(description="Texts, queries or documents in one request.")
    max_json_numbers: int = Field(description="Numbers in one JSON answer of /embed.")
    max_answer_bytes: int = Field(
        description="Bytes of one request's vectors as float32, or of its hits' texts, metadata and vectors."
    )
    max_top_k: int = Field(description="Hits of one query.")
    max_candidates: int = Field(description="Candidates of each leg.")
    max_body_bytes: int = Field(description="Bytes of a body, or of one line of NDJSON.")
    max_batch_tokens: int = Field(description="Tokens in one forward pass.")
    max_queue_tokens: int = Field(description="Tokens that may wait for the model.")
    max_searches: int = Field(description="Searches that may be under way at a time.")
    request_timeout_s: float = Field(description="Seconds until 504 unless `X-Request-Timeout` says.")


class Info(ResponseBody):
    """Model, limits and versions."""

    name: str = Field(description="Always `trivec`.")
    version: str = Field(description="Of the service.")
    model: ModelInfo = Field(description="What computes the vectors.")
    limits: Limits = Field(description="Bounds of a request; more is refused.")
    versions: dict[str, str] = Field(description="Of Python and the main packages.")
