"""A test of the parity tests: each classic mistake in an XLM-R port must turn them red."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import model.outputs
import model.packing
import model.tensorflow_engine
from model.embedding import LexicalWeights
from tests.parity.compare import assert_parity
from tests.reference import load_engine, make_checkpoint, random_batch, reference_outputs

Sabotage = Callable[[pytest.MonkeyPatch, Path], dict[str, object]]


def _epsilon(_: pytest.MonkeyPatch, folder: Path) -> dict[str, object]:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-12}))
    return {}


def _tanh_gelu(patch: pytest.MonkeyPatch, _: Path) -> dict[str, object]:
    exact = tf.nn.gelu
    patch.setattr(tf.nn, "gelu", lambda x, approximate: exact(x, approximate=True))
    return {}


def _position_offset_0(patch: pytest.MonkeyPatch, _: Path) -> dict[str, object]:
    right = model.packing.positions
    patch.setattr(model.packing, "positions", lambda *args: right(*args) - 2)
    return {}


def _mean_pooling(_: pytest.MonkeyPatch, __: Path) -> dict[str, object]:
    return {"pooling": "mean"}


def _colbert_with_first_token(patch: pytest.MonkeyPatch, _: Path) -> dict[str, object]:
    right = model.tensorflow_engine.split_embeddings

    def wrong(batch, starts, *, vectors, **rest):  # type: ignore[no-untyped-def]
        """Rows 0 to T - 1 in place of 1 to T: `<s>` kept, `</s>` dropped."""
        return right(batch, starts, vectors=np.roll(vectors, 1, axis=0), **rest)

    patch.setattr(model.tensorflow_engine, "split_embeddings", wrong)
    return {}


def _padding_in_attention(patch: pytest.MonkeyPatch, _: Path) -> dict[str, object]:
    patch.setattr("model.encoder._MASKED", 0.0)
    return {}


def _sum_of_lexical_weights(patch: pytest.MonkeyPatch, _: Path) -> dict[str, object]:
    right = model.outputs.lexical_weights

    def wrong(ids, weights, unused):  # type: ignore[no-untyped-def]
        """The sum over a token's occurrences in place of the maximum."""
        kept = right(ids, weights, unused)
        return LexicalWeights(kept.indices, np.float32([weights[ids == one].sum() for one in kept.indices]))

    patch.setattr(model.outputs, "lexical_weights", wrong)
    return {}


SABOTAGES: list[Sabotage | None] = [
    None,
    _epsilon,
    _tanh_gelu,
    _position_offset_0,
    _mean_pooling,
    _colbert_with_first_token,
    _padding_in_attention,
    _sum_of_lexical_weights,
]


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda one: one.__name__.strip("_") if one else "none")
def test_each_mistake_turns_parity_red(
    sabotage: Sabotage | None, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = make_checkpoint(
        tmp_path,
        seed=seed,
        vocab_size=300,
        max_position_embeddings=66,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        sparse_bias=3.0,  # all weights positive: with some seeds a smaller bias leaves none
    )
    # Short texts of unlike lengths share a tile, so that a wrong mask shows.
    batch = random_batch(np.random.default_rng(seed), [5, 20, 12, 31, 3], vocab_size=300)
    # Tokens that occur twice: only there is the sum another number than the maximum.
    batch.append(np.array([0, *[*range(10, 30)] * 2, 2], np.int32))
    references = reference_outputs(encoder, tmp_path, batch)
    with monkeypatch.context() as patch:
        options = sabotage(patch, tmp_path) if sabotage else {}
        if sabotage is None:
            assert_parity(load_engine(tmp_path, **options), batch, references)
        else:
            with pytest.raises(AssertionError):
                assert_parity(load_engine(tmp_path, **options), batch, references)
