"""Wire formats of health and /info."""

from __future__ import annotations

from typing import Literal

from app.schemas.base import ResponseBody


class Health(ResponseBody):
    """The service is well."""

    status: Literal["ok"]


class ModelInfo(ResponseBody):
    """The model in use."""

    name: str
    revision: str | None
    fingerprint: str
    engine: str
    precision: str
    outputs: list[str]
    hidden_size: int
    colbert_dim: int
    vocab_size: int
    max_length: int


class Limits(ResponseBody):
    """What a request may ask for."""

    max_length: int
    query_max_length: int
    passage_max_length: int
    max_texts: int
    max_top_k: int
    max_candidates: int
    max_body_bytes: int
    max_batch_tokens: int
    max_queue_tokens: int
    request_timeout_s: float


class Info(ResponseBody):
    """Model, limits and versions."""

    name: str
    version: str
    model: ModelInfo
    limits: Limits
    versions: dict[str, str]
