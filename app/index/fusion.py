"""Three scores for each candidate to one: the weighted mean of M3, or reciprocal rank fusion.

Legend: n candidates. A score that does not exist is NaN inside this room and None outside.
RRF: Cormack, Clarke and Buettcher, SIGIR 2009, with their constant of 60.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.index.errors import QueryInvalid
from app.index.values import Fusion, Mode
from model.embedding import OUTPUTS, Output
from model.scoring import FusionWeights, hybrid_score

RRF_CONSTANT = 60

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Legs:
    """The true scores of every candidate. Shapes: [n] each; NaN where query or document lacks the output."""

    dense: Scores
    sparse: Scores
    colbert: Scores

    def of(self, leg: Output) -> Scores:
        """The scores of one leg."""
        scores: Scores = getattr(self, leg)
        return scores


def weights_present(weights: FusionWeights, present: Set[Output]) -> FusionWeights:
    """The weights of those legs that the query has vectors for; QueryInvalid where nothing is left."""
    left = {leg: float(getattr(weights, leg)) if leg in present else 0.0 for leg in OUTPUTS}
    if not sum(left.values()) > 0:
        names = ", ".join(leg for leg in OUTPUTS if getattr(weights, leg) > 0)
        raise QueryInvalid("query", f"the weights ask for {names}, and the query has no such vectors")
    return FusionWeights(**left)


def places(legs: Legs) -> dict[Output, NDArray[np.int64]]:
    """The rank of each candidate in each leg, from 1; 0 where it has none. Equals share a rank."""
    found: dict[Output, NDArray[np.int64]] = {}
    for leg in OUTPUTS:
        scores = legs.of(leg)
        ranked = ~np.isnan(scores) & (scores > 0) if leg == "sparse" else ~np.isnan(scores)
        ordered = np.sort(scores[ranked])
        better = ordered.size - np.searchsorted(ordered, scores, side="right")
        found[leg] = np.where(ranked, better + 1, 0)
    return found


def fused(
    legs: Legs, ranks: dict[Output, NDArray[np.int64]], mode: Mode, fusion: Fusion, weights: FusionWeights
) -> Scores:
    """The score that orders the hits; NaN for a candidate that is none. Shape: [n].

    In a single leg's mode that is the leg's score; a document without a shared token is no lexical
    hit. A hybrid counts a score that a document lacks as 0 and leaves the sum of weights as it is.
    """
    if mode != "hybrid":
        scores = legs.of(mode)
        return np.where(scores > 0, scores, np.nan) if mode == "sparse" else scores
    if fusion == "weighted":
        return hybrid_score(weights, *(np.nan_to_num(legs.of(leg), nan=0.0) for leg in OUTPUTS))
    total = np.zeros(len(legs.dense), np.float64)
    for leg in OUTPUTS:
        shares = float(getattr(weights, leg)) / (RRF_CONSTANT + ranks[leg])
        total += np.where(ranks[leg] > 0, shares, 0.0)
    return total
