"""The encoder and the heads against torch, on random checkpoints of several shapes, fresh seeds each run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model.embedding import OUTPUTS
from tests.parity.compare import assert_parity
from tests.reference import load_engine, make_checkpoint, random_batch, reference_outputs

SHAPES = {
    "small": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "odd": {"hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 50},
    "deep": {"hidden_size": 64, "num_hidden_layers": 12, "num_attention_heads": 1, "intermediate_size": 128},
    "wide": {"hidden_size": 384, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 1536},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padded", [True, False], ids=["reference-padded", "reference-one-by-one"])
def test_matches_torch(shape: str, padded: bool, seed: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(seed)
    encoder = make_checkpoint(
        tmp_path, seed=seed, vocab_size=500, max_position_embeddings=66, colbert_dim=24, **SHAPES[shape]
    )
    # Exactly the maximum, one token, the empty text, unequal lengths, and literal special tokens.
    batch = random_batch(generator, [64, 1, 2, 3, *generator.integers(2, 65, 9)], vocab_size=500)
    batch.append(np.array([0, 17, 1, 18, 2, 1, 19, 499, 3, 17, 2], np.int32))
    assert_parity(load_engine(tmp_path), batch, reference_outputs(encoder, tmp_path, batch, padded=padded))


@pytest.mark.parametrize("max_scores", [1, 700, 1 << 22])
def test_attention_tiles_do_not_change_the_result(max_scores: int, seed: int, tmp_path: Path) -> None:
    encoder = make_checkpoint(
        tmp_path, seed=seed, vocab_size=200, max_position_embeddings=130, **SHAPES["small"]
    )
    batch = random_batch(np.random.default_rng(seed), [128, 5, 127, 60, 61, 7], vocab_size=200)
    engine = load_engine(tmp_path, max_scores=max_scores)
    assert_parity(engine, batch, reference_outputs(encoder, tmp_path, batch))


def test_a_text_gives_the_same_vectors_alone_and_in_any_batch(seed: int, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, seed=seed, vocab_size=300, max_position_embeddings=130, **SHAPES["wide"])
    generator = np.random.default_rng(seed)
    engine = load_engine(tmp_path)
    texts = random_batch(generator, generator.integers(1, 129, 24).tolist(), vocab_size=300)
    alone = [engine.forward([ids], OUTPUTS)[0] for ids in texts]
    for size in (2, 7, 24):
        order = generator.permutation(len(texts))
        for begin in range(0, len(texts), size):
            chosen = order[begin : begin + size]
            for number, together in zip(
                chosen, engine.forward([texts[n] for n in chosen], OUTPUTS), strict=True
            ):
                one = alone[number]
                np.testing.assert_allclose(together.dense, one.dense, atol=1e-5, rtol=0)
                np.testing.assert_allclose(together.colbert, one.colbert, atol=1e-5, rtol=0)
                assert together.sparse is not None and one.sparse is not None
                a = dict(zip(together.sparse.indices.tolist(), together.sparse.values.tolist(), strict=True))
                b = dict(zip(one.sparse.indices.tolist(), one.sparse.values.tolist(), strict=True))
                assert max(abs(a.get(k, 0) - b.get(k, 0)) for k in a | b | {-1: 0}) <= 1e-5


def test_one_trace_serves_every_shape(seed: int, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, seed=seed, vocab_size=200, max_position_embeddings=66, **SHAPES["small"])
    engine = load_engine(tmp_path)
    generator = np.random.default_rng(seed)
    for _ in range(6):
        lengths = generator.integers(1, 65, generator.integers(1, 9)).tolist()
        engine.forward(random_batch(generator, lengths, vocab_size=200), OUTPUTS)
    assert engine.traces == 1


def test_bad_token_ids_are_refused(seed: int, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, seed=seed, vocab_size=200, max_position_embeddings=66, **SHAPES["small"])
    engine = load_engine(tmp_path)
    for bad, message in (
        ([0, 200, 2], "outside 0 to 199"),
        ([0, -1, 2], "outside 0 to 199"),
        ([0] * 65, "65 tokens; 1 to 64 fit"),
        ([], "0 tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.forward([np.array(bad, np.int32)], OUTPUTS)


def test_mean_pooling_and_unnormalised_outputs(seed: int, tmp_path: Path) -> None:
    encoder = make_checkpoint(
        tmp_path, seed=seed, vocab_size=200, max_position_embeddings=66, **SHAPES["small"]
    )
    batch = random_batch(np.random.default_rng(seed), [9, 30, 2], vocab_size=200)
    references = reference_outputs(encoder, tmp_path, batch)
    mean = load_engine(tmp_path, pooling="mean")
    raw = load_engine(tmp_path).forward(batch, OUTPUTS, normalize=False)
    for reference, pooled, plain in zip(references, mean.forward(batch, ["dense"]), raw, strict=True):
        average = reference.hidden.mean(axis=0)
        np.testing.assert_allclose(pooled.dense, average / np.linalg.norm(average), atol=1e-5)
        np.testing.assert_allclose(plain.dense, reference.hidden[0], atol=1e-5)
        assert plain.colbert is not None
        lengths = np.linalg.norm(plain.colbert, axis=1, keepdims=True)
        np.testing.assert_allclose(plain.colbert / lengths, reference.colbert, atol=1e-5)
        assert pooled.sparse is None and pooled.colbert is None
