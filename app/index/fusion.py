"""All scores of each candidate to one: the weighted mean of M3, or reciprocal rank fusion.

M3's weighted mean blends scores of about 0 to 1. A BM25 score is divided by its ceiling for the query, which
it never reaches; so it keeps its order, and how much of the query a document covers.
Legend: n candidates. A score that does not exist is NaN inside this room and None outside.
RRF: Cormack, Clarke and Buettcher, SIGIR 2009, with their constant of 60.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.index.errors import QueryInvalid
from app.index.values import LEGS, Fusion, Leg, Mode
from model.scoring import FusionWeights, hybrid_score

RRF_CONSTANT = 60
WORDS: frozenset[Leg | Mode] = frozenset({"sparse", "bm25"})
"""Legs in which a document that shares no token is none of the hits."""

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Legs:
    """The true scores of every candidate. Shapes: [n] each; NaN where a leg lacks what it needs."""

    dense: Scores
    sparse: Scores
    colbert: Scores
    bm25: Scores

    def of(self, leg: Leg) -> Scores:
        """The scores of one leg."""
        scores: Scores = getattr(self, leg)
        return scores


def weights_present(weights: FusionWeights, present: Set[Leg]) -> FusionWeights:
    """The weights of the legs for which the query has what they need; QueryInvalid where nothing is left."""
    left = {leg: float(getattr(weights, leg)) if leg in present else 0.0 for leg in LEGS}
    if not sum(left.values()) > 0:
        names = ", ".join(leg for leg in LEGS if getattr(weights, leg) > 0)
        reason = f"the weights ask for {names}, and the query has no such vectors"
        raise QueryInvalid("query", f"{reason} nor a text" if weights.bm25 > 0 else reason)
    return FusionWeights(**left)


def places(legs: Legs) -> dict[Leg, NDArray[np.int64]]:
    """The rank of each candidate in each leg, from 1; 0 where it has none. Equals share a rank."""
    found: dict[Leg, NDArray[np.int64]] = {}
    for leg in LEGS:
        scores = legs.of(leg)
        ranked = ~np.isnan(scores) & (scores > 0) if leg in WORDS else ~np.isnan(scores)
        ordered = np.sort(scores[ranked])
        better = ordered.size - np.searchsorted(ordered, scores, side="right")
        found[leg] = np.where(ranked, better + 1, 0)
    return found


def fused(
    legs: Legs,
    ranks: dict[Leg, NDArray[np.int64]],
    mode: Mode,
    fusion: Fusion,
    weights: FusionWeights,
    ceiling: float = 1.0,
) -> Scores:
    """The score that orders the hits; NaN for a candidate that is none. Shape: [n].

    In a single leg's mode that is the leg's score; a document without a shared token is no lexical
    hit. A hybrid counts a score that a document lacks as 0 and leaves the sum of weights as it is; it divides
    those of BM25 by their `ceiling`.
    """
    if mode != "hybrid":
        scores = legs.of(mode)
        return np.where(scores > 0, scores, np.nan) if mode in WORDS else scores
    if fusion == "weighted":
        dense, sparse, colbert, bm25 = (np.nan_to_num(legs.of(leg), nan=0.0) for leg in LEGS)
        return hybrid_score(weights, dense, sparse, colbert, bm25 / ceiling)
    total = np.zeros(len(legs.dense), np.float64)
    for leg in LEGS:
        shares = float(getattr(weights, leg)) / (RRF_CONSTANT + ranks[leg])
        total += np.where(ranks[leg] > 0, shares, 0.0)
    return total
