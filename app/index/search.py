"""One search: candidates, all true scores, fusion, hits. Over any store that fits the port.

Legend: n candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from sys import getsizeof
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from app.index import bm25, fusion, records
from app.index.bm25 import Asked
from app.index.errors import HitsTooLarge, QueryInvalid
from app.index.facts import Keys
from app.index.port import Finder, Found, Scored, View
from app.index.timing import Timed, untimed
from app.index.values import (
    LEGS,
    CollectionInfo,
    Fusion,
    Hit,
    Leg,
    LegRanks,
    LegScores,
    Mode,
    SearchRequest,
    StoredDocument,
)
from model.embedding import Embedding
from model.scoring import FusionWeights, hybrid_score

FIRST_CANDIDATES, MOST_CANDIDATES = 100, 400
"""Per leg, where the request does not say how many: doubled while others could still reach the top."""
FINDING: tuple[Leg, ...] = ("dense", "sparse", "bm25")
"""Legs that find whatever has a score in them, and whose last candidate bounds what they did not find."""
READ_AT_ONCE, READ_WITH_VECTORS = 32, 4
"""Documents, until it is asked whether they are too large."""
SPARE = 16
"""Taken beyond the candidates asked for: legs may rank by rounded vectors, the hits are ranked exactly."""


def check(request: SearchRequest, info: CollectionInfo) -> FusionWeights:
    """The weights to use; QueryInvalid where the request cannot be answered by this collection."""
    query = request.query
    if request.mode not in get_args(Mode):
        raise QueryInvalid("mode", f"{request.mode!r} is not one of {', '.join(get_args(Mode))}")
    if request.fusion not in get_args(Fusion):
        raise QueryInvalid("fusion", f"{request.fusion!r} is not one of {', '.join(get_args(Fusion))}")
    for name, value in (("top_k", request.top_k), ("candidates", request.candidates)):
        if value is not None and value < 1:
            raise QueryInvalid(name, f"{value} is less than 1")
    check_bm25(request.mode, request.weights, info)
    if (fault := records.misfit(query, info)) is not None:
        raise QueryInvalid(f"query.{fault[0]}", fault[1])
    present: set[Leg] = {*query.outputs}
    if request.terms is not None:
        if (reason := bm25.miscounted(request.terms)) is not None:
            raise QueryInvalid("query.terms", reason)
        present.add("bm25")
    if request.mode != "hybrid" and request.mode not in present:
        needs = "a text" if request.mode == "bm25" else f"{request.mode} vectors"
        raise QueryInvalid("query", f"mode {request.mode} needs {needs}, the query has none")
    weights = info.settings.fusion if request.weights is None else request.weights
    return fusion.weights_present(weights, present) if request.mode == "hybrid" else weights


def check_bm25(mode: Mode, weights: FusionWeights | None, info: CollectionInfo) -> None:
    """QueryInvalid where a search asks for BM25 and the collection has none."""
    if info.settings.bm25:
        return
    reason = "this collection was made without bm25; that is chosen when a collection is made"
    if mode == "bm25":
        raise QueryInvalid("mode", reason)
    if weights is not None and weights.bm25 > 0:
        raise QueryInvalid("weights", reason)


def search(view: View, request: SearchRequest, weights: FusionWeights, timed: Timed = untimed) -> list[Hit]:
    """The hits of a checked request, best first, equals in the order of their ids."""
    asked = _asked(view, request)
    found = _candidates(view, request, weights, asked, timed)
    ranks = fusion.places(found.legs)
    scores = fusion.fused(found.legs, ranks, request.mode, request.fusion, weights, _ceiling(asked))
    with timed("reading"):
        chosen = _best(view, found.keys, scores, request.top_k)
        documents, vectors = _read(view, found.keys[chosen], request)
        chosen = chosen[[int(key) in documents for key in found.keys[chosen]]]  # without the damaged ones
        counts = view.counts(found.keys[chosen]) if request.with_embeddings and asked is not None else {}
    hits = [
        _hit(
            documents[int(found.keys[place])],
            float(scores[place]),
            LegScores(**{leg: _or_none(found.legs.of(leg)[place]) for leg in LEGS}),
            LegRanks(**{leg: int(ranks[leg][place]) or None for leg in LEGS}),
            vectors.get(int(found.keys[place])),
        )
        for place in chosen
    ]
    if asked is None:
        return hits
    return [
        replace(hit, terms=bm25.matched(asked, counts[key])) if key in counts else hit
        for hit, key in zip(hits, found.keys[chosen].tolist(), strict=True)
    ]


def _read(
    view: View, keys: Keys, request: SearchRequest
) -> tuple[dict[int, StoredDocument], dict[int, Embedding]]:
    """The hits' documents and, where wanted, their vectors; HitsTooLarge before they fill the memory."""
    documents: dict[int, StoredDocument] = {}
    vectors: dict[int, Embedding] = {}
    step = READ_WITH_VECTORS if request.with_embeddings else READ_AT_ONCE
    size = 0
    for first in range(0, len(keys), step):
        part = view.documents(keys[first : first + step])
        documents.update(part)
        size += sum(getsizeof(one.text) + value_bytes(one.metadata) for one in part.values())
        if request.with_embeddings:
            found = view.embeddings(part)
            vectors.update(found)
            size += sum(map(_vector_bytes, found.values()))
        if request.most_bytes is not None and size > request.most_bytes:
            raise HitsTooLarge(f"the hits take more than {request.most_bytes} bytes")
    return documents, vectors


def _vector_bytes(one: Embedding) -> int:
    sparse = 0 if one.sparse is None else one.sparse.indices.nbytes + one.sparse.values.nbytes
    return sparse + sum(rows.nbytes for rows in (one.dense, one.colbert) if rows is not None)


def value_bytes(value: object) -> int:
    """About the bytes of memory of a JSON value."""
    if isinstance(value, Mapping):
        return getsizeof(value) + sum(getsizeof(key) + value_bytes(one) for key, one in value.items())
    if isinstance(value, list):
        return getsizeof(value) + sum(map(value_bytes, value))
    return getsizeof(value)


def _asked(view: View, request: SearchRequest) -> Asked | None:
    """The query's terms as the collection weighs them; None without terms, or without BM25."""
    if request.terms is None or "bm25" not in view.finders:
        return None
    return bm25.asked(request.terms, view.statistics(request.terms.indices))


def _ceiling(asked: Asked | None) -> float:
    """What BM25 scores are divided by in a hybrid."""
    return asked.ceiling if asked is not None and len(asked.weights) else 1.0


def _candidates(
    view: View, request: SearchRequest, weights: FusionWeights, asked: Asked | None, timed: Timed
) -> Scored:
    """Every document worth ranking, with all its scores."""
    wanted = max(request.candidates or FIRST_CANDIDATES, request.top_k)
    most = wanted if request.candidates is not None else max(wanted, MOST_CANDIDATES)
    legs = _legs(view, request, weights, asked)
    # Without a leg that finds anything every document has to be looked at.
    if request.exact or not legs or view.count <= wanted:
        with timed("scoring"):
            return view.scores(view.keys(), request.query, asked)
    scored: Scored | None = None
    while True:
        with timed("candidates"):
            found = view.candidates(request.query, legs, wanted + SPARE, asked)
            union = np.unique(np.concatenate([keys for keys, _ in found.values()]))
            union = _filled(view, request, union)
        with timed("scoring"):
            if scored is None:
                scored = view.scores(union, request.query, asked)
            else:
                others = np.setdiff1d(union, scored.keys, assume_unique=True)
                scored = scored.joined(view.scores(others, request.query, asked))
        if wanted >= most or _settled(scored, found, wanted, request, weights, _ceiling(asked)):
            return scored
        wanted = min(2 * wanted, most)


def _legs(view: View, request: SearchRequest, weights: FusionWeights, asked: Asked | None) -> list[Finder]:
    """Those that put up candidates; one of dense, sparse and bm25 alone where its score alone decides.

    BM25 puts up none for a hybrid that gives it no weight: its lists are the longest.
    """
    present: set[Leg] = {*request.query.outputs}
    if asked is not None and (request.mode != "hybrid" or weights.bm25 > 0):
        present.add("bm25")
    able: list[Finder] = [leg for leg in LEGS if leg in present and leg in view.finders]
    return [leg for leg in able if leg == request.mode and leg != "colbert"] or able


def _settled(
    scored: Scored,
    found: Mapping[Finder, Found],
    wanted: int,
    request: SearchRequest,
    weights: FusionWeights,
    ceiling: float,
) -> bool:
    """Whether a document that no leg has put up can be expected to stay below the last hit.

    Its dense, lexical and BM25 scores are bounded by the legs' last; its ColBERT score is taken to be at
    most the best among the candidates of the lower half of all legs: likely, not proven.
    """
    if request.mode in ("dense", "sparse"):
        return True
    if request.mode == "bm25":
        # Found by bounds, which lie above the scores where the mean length has changed since.
        if len(found["bm25"][0]) < wanted:
            return True
        weights, ceiling = FusionWeights(0, 0, 0, 1), 1.0
    elif request.fusion == "rrf":
        return True
    elif request.mode == "colbert":
        weights = FusionWeights(0, 0, 1)
    ranks = fusion.places(scored.legs)
    scores = fusion.fused(scored.legs, ranks, request.mode, request.fusion, weights, ceiling)
    scores = scores[~np.isnan(scores)]
    if len(scores) <= request.top_k:
        return False
    last = np.partition(scores, len(scores) - request.top_k)[len(scores) - request.top_k]
    upper = np.concatenate([keys[: len(keys) // 2] for keys, _ in found.values()])
    edge = scored.legs.colbert[~np.isin(scored.keys, upper) & ~np.isnan(scored.legs.colbert)]
    # A leg that found fewer than it might has no more: what is outside of it scores 0 there.
    dense, sparse, words = (
        float(found[leg][1][-1]) if leg in found and len(found[leg][0]) >= wanted else 0.0 for leg in FINDING
    )
    late = float(edge.max()) if edge.size else 0.0
    return bool(last >= hybrid_score(weights, dense, sparse, late, words / ceiling))


def _filled(view: View, request: SearchRequest, union: Keys) -> Keys:
    """With documents that no leg knows, where a page would stay empty although there are some."""
    missing = request.top_k - union.size
    if missing <= 0 or request.mode in FINDING:
        return union
    return np.union1d(union, np.setdiff1d(view.keys(), union, assume_unique=True)[:missing])


def _best(view: View, keys: Keys, scores: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Places of the best scores, equals in the order of their documents' ids.

    In a damaged file there may be vectors whose document is lost: they are passed over.
    """
    hits = np.flatnonzero(~np.isnan(scores))
    if len(hits) > count:
        last = np.partition(scores[hits], len(hits) - count)[len(hits) - count]
        hits = hits[scores[hits] >= last]
    ids = view.ids(keys[hits])
    whole = [place for place in hits.tolist() if int(keys[place]) in ids]
    order = sorted(whole, key=lambda place: (-scores[place], ids[int(keys[place])]))
    return np.array(order[:count], np.int64)


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
