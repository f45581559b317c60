"""One search through a collection: allowed keys, candidates, all three true scores, fusion, hits.

Candidates come from the derived indexes, which may be a moment older or newer than the snapshot that is
read here. Nothing else does: scores, texts and vectors of a hit are read in one transaction, so a
document is wholly old or wholly new, and a candidate deleted meanwhile is passed over.

Legend: n candidates, M query vectors, D hidden size, C ColBERT dimension.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from app.index import fusion, records
from app.index.derived import Derived
from app.index.errors import QueryInvalid
from app.index.facts import Keys, select
from app.index.multivector import maxsim
from app.index.values import (
    CollectionInfo,
    Fusion,
    Hit,
    LegRanks,
    LegScores,
    Mode,
    SearchRequest,
    StoredDocument,
)
from model.embedding import OUTPUTS, Embedding, LexicalWeights, Output
from model.scoring import FusionWeights

FETCH = 128
"""Candidates whose vectors are in memory at once."""


def check(request: SearchRequest, info: CollectionInfo) -> FusionWeights:
    """The weights to use; QueryInvalid where the request cannot be answered by this collection."""
    query = request.query
    if request.mode not in get_args(Mode):
        raise QueryInvalid("mode", f"{request.mode!r} is not one of {', '.join(get_args(Mode))}")
    if request.fusion not in get_args(Fusion):
        raise QueryInvalid("fusion", f"{request.fusion!r} is not one of {', '.join(get_args(Fusion))}")
    for name, value in (("top_k", request.top_k), ("candidates", request.candidates)):
        if value < 1:
            raise QueryInvalid(name, f"{value} is less than 1")
    if (fault := records.misfit(query, info)) is not None:
        raise QueryInvalid(f"query.{fault[0]}", fault[1])
    if request.mode != "hybrid" and request.mode not in query.outputs:
        raise QueryInvalid("query", f"mode {request.mode} needs {request.mode} vectors, the query has none")
    weights = info.settings.fusion if request.weights is None else request.weights
    return fusion.weights_present(weights, query.outputs) if request.mode == "hybrid" else weights


def search(
    connection: sqlite3.Connection,
    collection: int,
    info: CollectionInfo,
    derived: Derived,
    request: SearchRequest,
    weights: FusionWeights,
) -> list[Hit]:
    """The hits of a checked request, best first, equals in the order of their ids."""
    keys = _candidates(connection, collection, derived, request)
    ids, keys, legs = _scores(connection, keys, request.query, info)
    ranks = fusion.places(legs)
    scores = fusion.fused(legs, ranks, request.mode, request.fusion, weights)
    order = np.lexsort((np.array(ids, dtype=object).argsort(kind="stable").argsort(), -scores))
    chosen = [int(place) for place in order[: request.top_k] if not np.isnan(scores[place])]
    found = records.documents_by_key(connection, [int(keys[place]) for place in chosen])
    vectors = _embeddings(connection, keys[chosen], info) if request.with_embeddings else {}
    return [
        _hit(
            found[int(keys[place])],
            float(scores[place]),
            LegScores(**{leg: _or_none(legs.of(leg)[place]) for leg in OUTPUTS}),
            LegRanks(**{leg: int(ranks[leg][place]) or None for leg in OUTPUTS}),
            vectors.get(int(keys[place])),
        )
        for place in chosen
    ]


def _candidates(
    connection: sqlite3.Connection, collection: int, derived: Derived, request: SearchRequest
) -> Keys:
    """Keys worth scoring, ascending: what either leg puts up, or everything where that is no more."""
    wanted = max(request.candidates, request.top_k)
    query = request.query
    allowed = None if request.filter is None else select(request.filter, connection, collection)
    total = derived.count if allowed is None else allowed.size
    # Token vectors alone find nothing: without another leg every document has to be looked at.
    blind = query.dense is None and query.sparse is None
    if request.exact or blind or total <= wanted:
        return records.all_keys(connection, collection) if allowed is None else allowed
    union = np.empty(0, np.int64)
    if query.dense is not None:
        union = np.union1d(union, derived.dense.search(query.dense, wanted, allowed)[0])
    if query.sparse is not None:
        union = np.union1d(union, derived.lexical.search(query.sparse, wanted, allowed)[0])
    if union.size < request.top_k:
        # Documents without vectors for these legs: a page is filled while there is something to fill it with.
        others = records.all_keys(connection, collection) if allowed is None else allowed
        others = np.setdiff1d(others, union, assume_unique=True)
        union = np.union1d(union, others[: request.top_k - union.size])
    return union


def _scores(
    connection: sqlite3.Connection, keys: Keys, query: Embedding, info: CollectionInfo
) -> tuple[list[str], Keys, fusion.Legs]:
    """Ids, keys and scores of those candidates that exist. Shapes: [n] each."""
    ids: list[str] = []
    present: list[Keys] = []
    parts: dict[Output, list[NDArray[np.float64]]] = {leg: [np.empty(0)] for leg in OUTPUTS}
    for page in _pages(keys):
        rows = records.vectors_by_key(connection, page, info, colbert=query.colbert is not None)
        found = [key for key in page.tolist() if key in rows]
        documents = [rows[key][1] for key in found]
        ids += [rows[key][0] for key in found]
        present.append(np.array(found, np.int64))
        parts["dense"].append(_dense(query, documents))
        parts["sparse"].append(_sparse(query, documents))
        parts["colbert"].append(_colbert(query, documents))
    legs = fusion.Legs(**{leg: np.concatenate(parts[leg]) for leg in OUTPUTS})
    return ids, np.concatenate([np.empty(0, np.int64), *present]), legs


def _dense(query: Embedding, documents: list[Embedding]) -> NDArray[np.float64]:
    scores = np.full(len(documents), np.nan)
    if query.dense is None:
        return scores
    vectors = [(place, one.dense) for place, one in enumerate(documents) if one.dense is not None]
    if vectors:
        # In float64, so that equal vectors score equal wherever they stand in the matrix.
        matrix = np.stack([vector for _, vector in vectors], dtype=np.float64)  # [n, D]
        scores[[place for place, _ in vectors]] = (matrix @ query.dense.astype(np.float64)).astype(np.float32)
    return scores


def _sparse(query: Embedding, documents: list[Embedding]) -> NDArray[np.float64]:
    scores = np.full(len(documents), np.nan)
    if query.sparse is None:
        return scores
    weights = [(place, one.sparse) for place, one in enumerate(documents) if one.sparse is not None]
    if weights:
        scores[[place for place, _ in weights]] = _lexical(query.sparse, [one for _, one in weights])
    return scores


def _lexical(query: LexicalWeights, documents: list[LexicalWeights]) -> NDArray[np.float32]:
    """`scoring.lexical_score` of many documents. Shape: [n]."""
    if not len(query):
        return np.zeros(len(documents), np.float32)
    rows = np.repeat(np.arange(len(documents)), [len(one) for one in documents])
    terms = np.concatenate([one.indices for one in documents])
    values = np.concatenate([one.values for one in documents])
    at = np.searchsorted(query.indices, terms)
    at[at == len(query)] = 0
    shared = np.flatnonzero(query.indices[at] == terms)
    products = values[shared] * query.values[at[shared]].astype(np.float64)
    return np.bincount(rows[shared], products, minlength=len(documents)).astype(np.float32)


def _colbert(query: Embedding, documents: list[Embedding]) -> NDArray[np.float64]:
    scores = np.full(len(documents), np.nan)
    if query.colbert is None:
        return scores
    vectors = [(place, one.colbert) for place, one in enumerate(documents) if one.colbert is not None]
    if vectors:
        scores[[place for place, _ in vectors]] = maxsim(query.colbert, [rows for _, rows in vectors])
    return scores


def _embeddings(connection: sqlite3.Connection, keys: Keys, info: CollectionInfo) -> dict[int, Embedding]:
    found: dict[int, Embedding] = {}
    for page in _pages(keys):
        for key, (_, one) in records.vectors_by_key(connection, page, info).items():
            found[key] = plain(one)
    return found


def plain(stored: Embedding) -> Embedding:
    """An embedding as other rooms know it: token vectors in float32."""
    return stored if stored.colbert is None else replace(stored, colbert=stored.colbert.astype(np.float32))


def _pages(keys: Keys) -> Iterator[Keys]:
    for first in range(0, len(keys), FETCH):
        yield keys[first : first + FETCH]


def _or_none(score: np.float64) -> float | None:
    return None if np.isnan(score) else float(score)


def _hit(
    document: StoredDocument, score: float, scores: LegScores, ranks: LegRanks, embedding: Embedding | None
) -> Hit:
    return Hit(
        id=document.id,
        score=score,
        scores=scores,
        ranks=ranks,
        text=document.text,
        metadata=document.metadata,
        tokens=document.tokens,
        truncated=document.truncated,
        seq=document.seq,
        embedding=embedding,
    )
