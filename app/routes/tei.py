"""/tei: the routes of text-embeddings-inference, answered by M3's three outputs.

`/tei/embed` is the dense output of /embed, `/tei/embed_sparse` the lexical one, `/tei/embed_all` the ColBERT
vectors, `/tei/rerank` the hybrid score of /rerank. A text may be as long as the model takes, as it may there:
the settings `query_max_length` and `passage_max_length` do not hold here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.access import ReadRoute
from app.answers import Written, dict_pieces, numbers_of
from app.errors import LimitExceeded
from app.index.fusion import weights_present
from app.ports import Tokenized
from app.reranking import Candidates
from app.routes import openai
from app.routes.common import check_numbers, json_answer
from app.routes.tei_inputs import Prepared, check_batch, check_filled, inputs_of, prepare, refuse_prompt
from app.schemas.openai import EmbeddingsRequest, EmbeddingsResponse
from app.schemas.tei import (
    ERRORS,
    EmbedInputs,
    Prompted,
    Rank,
    SimpleToken,
    SparseValue,
    TeiDecodeRequest,
    TeiEmbedRequest,
    TeiRequest,
    TeiRerankRequest,
    TeiSimilarityRequest,
    TeiTokenizeRequest,
)
from app.service import Service, service_of
from app.telemetry import record_of
from app.token_ids import check_ids, text_of
from app.wire import row_numbers
from model.embedding import Embedding, FloatArray, LexicalWeights, Output
from model.scoring import FusionWeights, dense_score

_PART = 1024
"""Weights or tokens written in one call: a fraction of a millisecond."""
_NUMBERS_A_TOKEN = 4
"""A token of `/tei/tokenize` is as long as that many numbers."""

router = APIRouter(prefix="/tei", route_class=ReadRoute, tags=["text-embeddings-inference"])


@router.post("/embed", response_model=list[list[float]], summary="Dense vectors", responses=ERRORS)
async def embed(body: TeiEmbedRequest, request: Request) -> Response:
    """The dense vector of each text, in a list even for one text."""
    work = await _prepared(body, request)
    width = work.service.model.card.hidden_size
    wanted = body.dimensions or width
    if wanted > width:
        raise LimitExceeded(f"this model's vectors have {width} numbers", param="dimensions")
    numbers = wanted * len(work.tokenized)
    _check_numbers(work.service, numbers)
    normalize = body.normalize is not False
    embeddings = await _embedded(work, "dense", normalize=normalize)
    rows = [_shortened(row, wanted, normalize) for row in _dense(embeddings)]
    return await json_answer(work.service, lambda: rows, numbers, headers=work.headers())


@router.post(
    "/embed_sparse", response_model=list[list[SparseValue]], summary="Lexical weights", responses=ERRORS
)
async def embed_sparse(body: EmbedInputs, request: Request) -> Response:
    """M3's own lexical weights of each text, by ascending token id."""
    work = await _prepared(body, request)
    numbers = _bounded(work, "sparse")
    embeddings = await _embedded(work, "sparse")
    weights = [one.sparse for one in embeddings if one.sparse is not None]

    def answer() -> Iterator[Written]:
        return (Written(_sparse_pieces(one)) for one in weights)

    return await json_answer(work.service, answer, numbers, headers=work.headers())


@router.post(
    "/embed_all", response_model=list[list[list[float]]], summary="ColBERT vectors", responses=ERRORS
)
async def embed_all(body: EmbedInputs, request: Request) -> Response:
    """The ColBERT vectors of each text: a unit row for each token but `<s>`, for MaxSim."""
    work = await _prepared(body, request)
    numbers = _bounded(work, "colbert")
    embeddings = await _embedded(work, "colbert")
    rows = [one.colbert for one in embeddings if one.colbert is not None]
    return await json_answer(work.service, lambda: rows, numbers, headers=work.headers())


@router.post("/rerank", response_model=list[Rank], summary="Order texts by relevance", responses=ERRORS)
@router.post("/reranker/rerank", include_in_schema=False)
@router.post("/reranker", include_in_schema=False)
@router.post("/reranker/", include_in_schema=False)
async def rerank(body: TeiRerankRequest, request: Request) -> Response:
    """All texts, best first, by the hybrid score that /rerank and a search give them.

    It is about 0 to 1 by itself, so `raw_scores` changes nothing. An empty text is scored like white space.
    """
    service = service_of(request)
    check_batch(service, body.texts, "texts")
    outputs = service.outputs(None, "outputs")
    present = weights_present(FusionWeights(), outputs)
    texts = {f"texts.{place}": text for place, text in enumerate(body.texts)}
    work = await prepare(request, {"query": body.query, **texts}, body)
    embedded = await service.embed_tokens(work.record, work.tokenized, outputs)
    candidates = Candidates(embedded.embeddings[0], embedded.embeddings[1:], present)

    def answer() -> list[dict[str, Any]]:
        best = candidates.best_first()
        if body.return_text:
            return [{"index": one.index, "text": body.texts[one.index], "score": one.score} for one in best]
        return [{"index": one.index, "score": one.score} for one in best]

    # Scoring takes as long as writing ten values for each token.
    return await json_answer(service, answer, 10 * candidates.tokens, headers=work.headers())


@router.post("/similarity", response_model=list[float], summary="Compare sentences", responses=ERRORS)
async def similarity(body: TeiSimilarityRequest, request: Request) -> Response:
    """The cosine between the dense vector of the source sentence and that of each other sentence."""
    service, sentences = service_of(request), body.inputs.sentences
    named = {f"inputs.sentences.{place}": sentence for place, sentence in enumerate(sentences)}
    check_batch(service, named, "inputs.sentences")
    inputs = {"inputs.source_sentence": body.inputs.source_sentence, **named}
    check_batch(service, inputs, "inputs")
    check_filled(inputs)
    work = await prepare(request, inputs, body.parameters or Prompted())
    source, *others = _dense(await _embedded(work, "dense"))

    def answer() -> FloatArray:
        return np.array([dense_score(source, one) for one in others], np.float32)

    return await json_answer(service, answer, len(others), headers=work.headers())


@router.post("", summary="Embed, rerank or compare", responses=ERRORS)
@router.post("/", include_in_schema=False)
async def bare_url(body: TeiRequest, request: Request) -> Response:
    """Like `/tei/rerank` where there are `texts`, like `/tei/similarity` where `inputs` is an object, else
    like `/tei/embed`: for clients that know a URL and no path, such as huggingface_hub's InferenceClient.
    """
    if isinstance(body, TeiRerankRequest):
        return await rerank(body, request)
    if isinstance(body, TeiSimilarityRequest):
        return await similarity(body, request)
    return await embed(body, request)


@router.post("/tokenize", response_model=list[list[SimpleToken]], summary="Tokenise texts", responses=ERRORS)
async def tokenize(body: TeiTokenizeRequest, request: Request) -> Response:
    """The tokens of each text with their places in it, in characters; nothing is cut."""
    service, record = service_of(request), record_of(request)
    refuse_prompt(body.prompt_name)
    inputs = inputs_of(body.inputs)
    check_batch(service, inputs, "inputs")
    check_filled(inputs)
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    tokenized = await service.tokenize(texts, None)
    record.count(len(texts), sum(len(one.ids) for one in tokenized))
    numbers = _NUMBERS_A_TOKEN * record.tokens
    _check_numbers(service, numbers)
    ends = body.add_special_tokens is not False

    def answer() -> Iterator[Written]:
        for text, one in zip(texts, tokenized, strict=True):
            yield Written(dict_pieces(_simple_tokens(text, one, service.model.token_strings, ends)))

    return await json_answer(service, answer, numbers)


def _simple_tokens(
    text: str, tokens: Tokenized, names: Callable[[Sequence[int]], list[str]], ends: bool
) -> Iterator[dict[str, Any]]:
    """A text's tokens; with `ends` also `<s>` and `</s>`, which have no place in it."""
    ids = tokens.ids.tolist()
    first, last = (
        {"id": token, "text": name, "special": True, "start": None, "stop": None}
        for token, name in zip((ids[0], ids[-1]), names([ids[0], ids[-1]]), strict=True)
    )
    if ends:
        yield first
    for token, (start, stop) in zip(ids[1:-1], tokens.offsets[1:-1], strict=True):
        yield {"id": token, "text": text[start:stop], "special": False, "start": start, "stop": stop}
    if ends:
        yield last


@router.post("/decode", response_model=list[str], summary="Token ids to text", responses=ERRORS)
async def decode(body: TeiDecodeRequest, request: Request) -> Response:
    """The text that token ids stand for, in a list even for one."""
    service = service_of(request)
    lists = {f"ids.{place}": one for place, one in enumerate(body.ids) if isinstance(one, list)}
    lists = lists or {"ids": [one for one in body.ids if isinstance(one, int)]}
    check_batch(service, lists, "ids")
    check_filled(lists)
    skip_special = body.skip_special_tokens is not False

    def answer() -> Iterator[str]:
        for name, ids in lists.items():
            check_ids(ids, service.model.card, name)
            yield text_of(service.model.token_strings(ids), skip_special=skip_special)

    return await json_answer(service, answer, sum(map(len, lists.values())))


@router.post("/v1/embeddings", response_model=EmbeddingsResponse, summary="OpenAI's format", responses=ERRORS)
@router.post("/embeddings", include_in_schema=False)
async def openai_embeddings(body: EmbeddingsRequest, request: Request) -> Response:
    """Like /v1/embeddings, but for length: what holds for the other routes under /tei holds here too."""
    service = service_of(request)
    given = body.model_dump(include={"truncate", "max_length"}, exclude_none=True)
    ours = {"truncate": service.settings.tei_auto_truncate, "max_length": service.model.card.max_length}
    return await openai.embeddings(body.model_copy(update={**ours, **given}), request)


async def _prepared(body: EmbedInputs, request: Request) -> Prepared:
    inputs = inputs_of(body.inputs)
    check_batch(service_of(request), inputs, "inputs")
    check_filled(inputs)
    return await prepare(request, inputs, body)


async def _embedded(work: Prepared, output: Output, *, normalize: bool = True) -> Sequence[Embedding]:
    wanted = work.service.outputs([output], "inputs")
    found = await work.service.embed_tokens(work.record, work.tokenized, wanted, normalize=normalize)
    return found.embeddings


def _dense(embeddings: Sequence[Embedding]) -> list[FloatArray]:
    return [one.dense for one in embeddings if one.dense is not None]


def _shortened(row: FloatArray, width: int, normalize: bool) -> FloatArray:
    """The first `width` numbers, of unit length again. Shape: [D] -> [width]."""
    if width == len(row):
        return row
    kept = row[:width]
    length = float(np.linalg.norm(kept.astype(np.float64)))
    return (kept / length).astype(np.float32) if normalize and length > 0 else kept


def _bounded(work: Prepared, output: Output) -> int:
    """Numbers of the answer; raises LimitExceeded where they are too many to be JSON."""
    work.service.outputs([output], "inputs")
    colbert = row_numbers(work.service.model.card.colbert_dim, "float", "float32")
    lengths = (len(one.ids) for one in work.tokenized)
    numbers = numbers_of(lengths, [output], dense=0, colbert=colbert)
    _check_numbers(work.service, numbers)
    return numbers


def _check_numbers(service: Service, numbers: int) -> None:
    check_numbers(numbers, service.settings.max_json_numbers, "send fewer texts", "inputs")


def _sparse_pieces(weights: LexicalWeights) -> Iterator[str]:
    """`[{"index": ..., "value": ...}, ...]`; one format for many is ten times as fast as dicts."""
    yield "["
    for start in range(0, len(weights), _PART):
        ids = weights.indices[start : start + _PART].tolist()
        values = weights.values[start : start + _PART].tolist()
        pairs = [number for pair in zip(ids, values, strict=True) for number in pair]
        yield ("," if start else "") + ",".join(['{"index":%d,"value":%.9g}'] * len(ids)) % tuple(pairs)
    yield "]"
