"""What several routes do alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import Path
from numpy.typing import NDArray

from app.answers import PiecesResponse, gathered, json_pieces
from app.errors import InvalidRequest, LimitExceeded
from app.index.catalogue import NAME
from app.ports import ModelCard, Tokenized
from app.schemas.base import Cut, EmbeddingBody, SearchMode, SparseWeights, WeightsBody
from app.service import Kind, Service, refuse_long
from app.telemetry import Record
from app.wire import rows_of_base64
from model.embedding import Embedding, LexicalWeights, Output
from model.scoring import FusionWeights

CollectionName = Annotated[
    str, Path(description="The collection.", json_schema_extra={"pattern": f"^{NAME.pattern}$"})
]
"""Checked by the index: what is no name is 422 where one is made, and 404 where one is looked for."""
DocumentName = Annotated[str, Path(description="The document's id, percent-encoded; it may hold slashes.")]

OUTPUTS_OF_MODE: Mapping[SearchMode, tuple[Output, ...]] = {
    "hybrid": (),  # whatever the model has: a leg without vectors has no weight
    "dense": ("dense",),
    "sparse": ("sparse",),
    "colbert": ("colbert",),
    "bm25": (),
}

TRUNCATED_HEADER = "X-Truncated-Texts"

FEW_VALUES = 10_000
"""Written in a few milliseconds."""
CHARACTERS_A_VALUE = 50
"""Text is written that much faster than numbers."""


def check_count(items: Sequence[object], limit: int, param: str) -> None:
    """Raise LimitExceeded where a list is longer than one request may be."""
    if len(items) > limit:
        raise LimitExceeded(f"{len(items)} are too many for one request, the limit is {limit}", param=param)


def check_number(value: int, limit: int, param: str) -> None:
    """Raise LimitExceeded where a number is over its limit."""
    if value > limit:
        # The value itself is not repeated: it may have a thousand digits.
        raise LimitExceeded(f"the limit is {limit}", param=param)


def check_numbers(numbers: int, limit: int, advice: str, param: str) -> None:
    """Raise LimitExceeded, before the model works, where the answer would be too large to be JSON."""
    if numbers > limit:
        raise LimitExceeded(
            f"the answer would be {numbers} JSON numbers, the limit is {limit}; {advice}", param=param
        )


def check_width(asked: int | None, width: int, param: str) -> None:
    """Raise InvalidRequest where vectors of another width than the model's are asked for."""
    if asked is not None and asked != width:
        raise InvalidRequest(
            f"this model gives {width} dimensions, and its vectors cannot be shortened", param=param
        )


def check_cut(tokenized: Sequence[Tokenized], limit: int, cut: Cut, param: str) -> None:
    """Raise where a text is longer than the limit and may not be cut, or not at its end.

    Raises TextTooLong for "NONE", InvalidRequest for "START".
    """
    if cut == "NONE":
        refuse_long(tokenized, limit, param)
    if cut == "START":
        for place, one in enumerate(tokenized):
            if one.total > limit:
                raise InvalidRequest(
                    f"the text has {one.total} tokens, the limit is {limit}, and only its end can be cut off",
                    param=f"{param}.{place}",
                )


def truncation(tokenized: Sequence[Tokenized]) -> dict[str, str]:
    """A header that says how many texts were cut, for formats without a field for it; absent for none."""
    return truncated_header(sum(one.total > len(one.ids) for one in tokenized))


def truncated_header(texts: int) -> dict[str, str]:
    """The same from the number of texts."""
    return {TRUNCATED_HEADER: str(texts)} if texts else {}


def kind_of(*hints: str | None) -> Kind:
    """`query` where a hint of another API says so: `query`, `search_query`, `retrieval.query` and so on."""
    return "query" if any(hint is not None and hint.endswith("query") for hint in hints) else "passage"


def fusion_weights(body: WeightsBody | None, param: str = "weights") -> FusionWeights | None:
    """The wire's weights as the model's; raises InvalidRequest where all are 0."""
    if body is None:
        return None
    weights: dict[str, float] = body.model_dump()
    if not sum(weights.values()) > 0:
        raise InvalidRequest("at least one weight must be greater than 0", param=param)
    try:
        return FusionWeights(**weights)
    except ValueError as error:
        raise InvalidRequest(str(error), param=param) from None


async def json_answer(
    service: Service,
    make: Callable[[], Any],
    values: int,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> PiecesResponse:
    """An answer of about so many values. Few are written at once, so that nobody waits behind a large one;
    many in a worker thread, where `make` may block."""

    def pieces() -> Iterator[bytes]:
        return gathered(json_pieces(make()))

    written = list(pieces()) if values <= FEW_VALUES else await service.pieces(pieces)
    return PiecesResponse(written, status, headers)


def usage(record: Record) -> dict[str, Any]:
    """The `usage` field: what the request's handler has counted."""
    return {"tokens": record.tokens, "texts": record.texts}


def supplied_embedding(body: EmbeddingBody, card: ModelCard, param: str) -> Embedding:
    """A client's own vectors as an Embedding of no tokens; what it left out stays None.

    Raises InvalidRequest naming the output whose width, ids or numbers do not fit the model.
    """
    try:
        return Embedding(
            tokens=0,
            dense=_dense(body, card.hidden_size, f"{param}.dense"),
            sparse=_weights(body.sparse, card.vocab_size, f"{param}.sparse")
            if body.sparse is not None
            else None,
            colbert=_colbert(body, card.colbert_dim, f"{param}.colbert"),
        )
    except OverflowError:
        raise InvalidRequest("a number is too large", param=param) from None


def _dense(body: EmbeddingBody, width: int, param: str) -> NDArray[np.float32] | None:
    if body.dense is None:
        return None
    if isinstance(body.dense, list):
        rows = _rows([body.dense], width, param)
    else:
        rows = rows_of_base64(body.dense, body.dtype, width, param)
    if len(rows) != 1:
        raise InvalidRequest(f"{len(rows)} vectors, where one is expected", param=param)
    vector: NDArray[np.float32] = rows[0]
    return vector


def _colbert(body: EmbeddingBody, width: int, param: str) -> NDArray[np.float32] | None:
    if body.colbert is None:
        return None
    if isinstance(body.colbert, list):
        return _rows(body.colbert, width, param)
    rows = rows_of_base64(body.colbert, body.dtype, width, param)
    if body.colbert_shape is not None and body.colbert_shape != list(rows.shape):
        raise InvalidRequest(f"the bytes are those of {len(rows)} rows of {width}", param=f"{param}_shape")
    return rows


def _rows(rows: Sequence[Sequence[float]], width: int, param: str) -> NDArray[np.float32]:
    for row in rows:
        if len(row) != width:
            raise InvalidRequest(f"{len(row)} numbers, where this model has {width}", param=param)
    with np.errstate(over="ignore"):
        array = np.array(rows, np.float64).astype(np.float32)
    if not bool(np.isfinite(array).all()):
        raise InvalidRequest("a number is too large for float32", param=param)
    return array


def _weights(body: SparseWeights, vocab_size: int, param: str) -> LexicalWeights:
    if len(body.indices) != len(body.values):
        raise InvalidRequest(f"{len(body.indices)} indices but {len(body.values)} values", param=param)
    if any(not 0 <= one < vocab_size for one in body.indices):
        raise InvalidRequest(f"token ids lie between 0 and {vocab_size - 1}", param=f"{param}.indices")
    if len(set(body.indices)) < len(body.indices):
        raise InvalidRequest("lexical indices must be distinct", param=param)
    order = np.argsort(np.array(body.indices, np.int32), kind="stable")
    with np.errstate(over="ignore"):
        values = np.array(body.values, np.float64).astype(np.float32)
    try:
        return LexicalWeights(np.array(body.indices, np.int32)[order], values[order])
    except ValueError as error:
        raise InvalidRequest(str(error), param=param) from None
