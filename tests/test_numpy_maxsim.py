"""MaxSim of many documents equals `scoring.colbert_score` of each."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import numpy_maxsim
from benchmarks.numpy_maxsim import maxsim
from model.scoring import colbert_score
from tests.index_helpers import unit


@pytest.mark.parametrize(("chunk", "similarities"), [(2**26, 2**24), (300, 2**24), (2**26, 64), (1, 1)])
@pytest.mark.parametrize("dtype", ["<f4", "<f2"])
def test_equals_the_equation(
    monkeypatch: pytest.MonkeyPatch, seed: int, chunk: int, similarities: int, dtype: str
) -> None:
    monkeypatch.setattr(numpy_maxsim, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(numpy_maxsim, "SIMILARITY_BYTES", similarities)
    rng = np.random.default_rng(seed)
    query = unit(rng, int(rng.integers(1, 9)), 8)
    documents = [unit(rng, int(rng.integers(1, 9)), 8).astype(dtype) for _ in range(30)]
    expected = [colbert_score(query, one.astype(np.float32)) for one in documents]
    np.testing.assert_allclose(maxsim(query, documents), expected, atol=1e-5)


def test_a_negative_best_stays_negative() -> None:
    query = np.array([[1, 0]], np.float32)
    assert maxsim(query, [-query, query]).tolist() == [-1.0, 1.0]


def test_no_documents() -> None:
    assert maxsim(np.ones((1, 2), np.float32), []).size == 0
