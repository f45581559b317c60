"""Config, packing, heads, scores and batches: the parts of model/ that need no checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import ConfigError, EncoderConfig
from model.embedder import token_batches
from model.embedding import LexicalWeights
from model.packing import pack, positions
from model.scoring import FusionWeights, colbert_score, hybrid_score, lexical_score

MINI = Path(__file__).parent.parent / "weights" / "mini"
FIELDS = json.loads((MINI / "config.json").read_text())


# config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_act", "gelu_new"),
        ("model_type", "bert"),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("hidden_size", 255),
        ("hidden_size", "256"),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", 10**9),
        ("num_attention_heads", True),
        ("layer_norm_eps", 0),
        ("pad_token_id", 32001),
        ("max_position_embeddings", 3),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        EncoderConfig.from_fields({**FIELDS, field: value})


def test_absent_fields_take_the_references_defaults() -> None:
    from transformers import XLMRobertaConfig

    ours, theirs = EncoderConfig.from_fields({"num_hidden_layers": 3}), XLMRobertaConfig(num_hidden_layers=3)
    for name in EncoderConfig.__slots__:
        assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize("content", ["", "[]", "{", "\x80"])
def test_an_unreadable_config_names_the_file(content: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"config\.json"):
        EncoderConfig.from_file(path)


def test_length_limits_count_positions_from_after_the_pad() -> None:
    assert EncoderConfig.from_fields({**FIELDS, "max_position_embeddings": 8194}).max_length == 8192


# packing


def test_positions_start_after_the_pad_and_skip_literal_pads() -> None:
    ids = np.array([0, 5, 1, 6, 2, 0, 1, 1, 9, 2], np.int32)
    starts = np.array([0, 5, 10], np.int32)
    assert positions(ids, starts, 1).tolist() == [2, 3, 1, 4, 5, 2, 1, 1, 3, 4]


@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=30),
    st.integers(1, 4),
    st.sampled_from([1, 50, 3000, 10**6]),
)
def test_every_token_attends_to_its_own_text_exactly_once(
    lengths: list[int], heads: int, max_scores: int
) -> None:
    batch = [np.full(length, 7, np.int32) for length in lengths]
    packed = pack(batch, pad_token_id=1, num_heads=heads, max_scores=max_scores)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    seen = np.zeros(len(owner), int)
    at = steps = computed = 0
    for groups, length, step in packed.tile_sizes:
        rows = packed.rows[at : at + groups * length].reshape(groups, length)
        visible = packed.visible[at : at + groups * length].reshape(groups, length)
        for group in range(groups):
            text = owner[rows[group][visible[group]][0]]
            assert rows[group][visible[group]].tolist() == np.flatnonzero(owner == text).tolist()
        if groups * step * length * heads > max_scores:
            assert groups == 1 and step == 1, "over the bound only where nothing smaller exists"
        assert groups == 1 or step == length
        here = packed.gather[(packed.gather >= at) & (packed.gather < at + groups * length)]
        for place in here:
            row = rows.ravel()[place - at]
            seen[row] += 1
            assert owner[row] == owner[rows[(place - at) // length][0]]
        at, steps = at + groups * length, steps - (-length // step)
        computed += len(rows.ravel()) * length  # each row with each key of its group
    assert steps == packed.steps
    assert packed.scores == computed >= sum(length**2 for length in lengths)
    assert (seen == 1).all()


@pytest.mark.parametrize("batch", [[], [np.zeros(0, np.int32)]])
def test_nothing_to_pack_is_an_error(batch: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        pack(batch, pad_token_id=1, num_heads=2, max_scores=100)


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 400))
def test_token_batches_hold_every_text_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(token_batches(lengths, budget))
    assert sorted(n for batch in batches for n in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or sum(lengths[n] for n in batch) <= budget for batch in batches)


# values and scores


@pytest.mark.parametrize(
    ("indices", "values"),
    [([1, 1], [1, 1]), ([2, 1], [1, 1]), ([-1], [1]), ([1], [0]), ([1], [np.nan]), ([1, 2], [1])],
)
def test_lexical_weights_that_are_none_are_refused(indices: list[int], values: list[float]) -> None:
    with pytest.raises(ValueError, match="lexical"):
        LexicalWeights(np.int32(indices), np.float32(values))


# FlagEmbedding README, compute_score (fp16): colbert, sparse, dense, and the two blends, .4/.2/.4.
PUBLISHED = [
    (0.7796499729156494, 0.195556640625, 0.6259765625, 0.482503205537796, 0.6013619303703308),
    (0.4621465802192688, 0.00879669189453125, 0.347412109375, 0.23454029858112335, 0.3255828022956848),
    (0.4523794651031494, 0.0, 0.349853515625, 0.2332356721162796, 0.32089319825172424),
    (0.7898575067520142, 0.1802978515625, 0.67822265625, 0.5122477412223816, 0.6232916116714478),
]


@pytest.mark.parametrize(("colbert", "sparse", "dense", "two", "three"), PUBLISHED)
def test_fusion_gives_the_published_blends(
    colbert: float, sparse: float, dense: float, two: float, three: float
) -> None:
    assert abs(hybrid_score(FusionWeights(0.4, 0.2, 0.4), dense, sparse, colbert) - three) < 2e-7
    assert abs(hybrid_score(FusionWeights(0.4, 0.2, 0.0), dense, sparse, colbert) - two) < 2e-7


def test_huge_and_tiny_weights_do_not_overflow() -> None:
    for scale in (1e-300, 1e300):
        assert abs(hybrid_score(FusionWeights(scale, scale, 0), 1e10, 3e10, 1.0) - 2e10) < 1


def test_a_fourth_score_takes_its_share() -> None:
    assert hybrid_score(FusionWeights(1, 0, 2, 1), 0.5, 9.0, 0.25, 1.0) == pytest.approx(2 / 4)
    assert hybrid_score(FusionWeights(0, 0, 0, 3), 0.5, 9.0, 0.25, 0.75) == pytest.approx(0.75)
    assert hybrid_score(FusionWeights(), 0.5, 1.0, 0.25, 7.0) == hybrid_score(FusionWeights(), 0.5, 1.0, 0.25)


def test_published_lexical_self_score() -> None:
    """FlagEmbedding issue 552: the score of a text with itself, from its published weights (fp16)."""
    values = [0.0836, 0.08154, 0.1295, 0.252, 0.17, 0.2695, 0.04074]
    one = LexicalWeights(np.arange(7, dtype=np.int32), np.float32(values))
    assert abs(lexical_score(one, one) - 0.1971435546875) < 1e-4


def test_lexical_score_sums_over_shared_ids_alone() -> None:
    a = LexicalWeights(np.int32([1, 5, 9]), np.float32([1, 2, 3]))
    b = LexicalWeights(np.int32([0, 5, 9]), np.float32([7, 0.5, 0.25]))
    assert lexical_score(a, b) == 2 * 0.5 + 3 * 0.25
    assert lexical_score(a, LexicalWeights(np.int32([]), np.float32([]))) == 0


def test_colbert_score_is_a_mean_of_maxima_and_keeps_negative_similarities() -> None:
    query, document = np.float32([[1, 0], [0, 1]]), np.float32([[-1, 0], [0, 0.5]])
    assert colbert_score(query, document) == (0 + 0.5) / 2
    assert colbert_score(np.float32([[1, 0]]), np.float32([[-1, 0]])) == -1


@pytest.mark.parametrize(
    "weights", [(0, 0, 0), (-1, 1, 1), (np.nan, 1, 1), (np.inf, 0, 0), (1e308, 1e308, 1e308), (1, 1, 1, -1)]
)
def test_weights_that_cannot_be_averaged_with_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="weight"):
        FusionWeights(*weights)
