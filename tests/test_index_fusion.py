"""Fusion on numbers that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from app.index.errors import QueryInvalid
from app.index.fusion import Legs, fused, places, weights_present
from model.scoring import FusionWeights

NAN = float("nan")
LEGS = Legs(
    dense=np.array([0.9, 0.5, 0.5, NAN, 0.1]),
    sparse=np.array([0.0, 2.0, NAN, 1.0, 0.0]),
    colbert=np.array([0.3, NAN, 0.2, 0.6, -0.1]),
    bm25=np.full(5, NAN),
)
EVEN = FusionWeights(1, 1, 1)


def test_equals_share_a_place() -> None:
    ranks = places(LEGS)
    assert ranks["dense"].tolist() == [1, 2, 2, 0, 4]
    assert ranks["sparse"].tolist() == [0, 1, 0, 2, 0]  # no shared token, no place
    assert ranks["colbert"].tolist() == [2, 0, 3, 1, 4]


def test_a_missing_score_counts_nought_under_the_whole_weight() -> None:
    scores = fused(LEGS, places(LEGS), "hybrid", "weighted", EVEN)
    np.testing.assert_allclose(scores, [0.4, 2.5 / 3, 0.7 / 3, 1.6 / 3, 0.0], atol=1e-12)


def test_rrf() -> None:
    scores = fused(LEGS, places(LEGS), "hybrid", "rrf", FusionWeights(1, 0.5, 2))
    expected = [1 / 61 + 2 / 62, 1 / 62 + 0.5 / 61, 1 / 62 + 2 / 63, 0.5 / 62 + 2 / 61, 1 / 64 + 2 / 64]
    np.testing.assert_allclose(scores, expected, atol=1e-12)


def test_a_single_leg_is_its_own_score() -> None:
    ranks = places(LEGS)
    np.testing.assert_array_equal(fused(LEGS, ranks, "dense", "rrf", EVEN), LEGS.dense)
    np.testing.assert_array_equal(fused(LEGS, ranks, "colbert", "weighted", EVEN), LEGS.colbert)
    np.testing.assert_array_equal(fused(LEGS, ranks, "sparse", "weighted", EVEN), [NAN, 2, NAN, 1, NAN])


def test_the_query_decides_which_weights_take_part() -> None:
    assert weights_present(FusionWeights(), frozenset({"dense", "sparse"})) == FusionWeights(0.4, 0.2, 0)
    with pytest.raises(QueryInvalid, match="sparse"):
        weights_present(FusionWeights(0, 1, 0), frozenset({"dense"}))
