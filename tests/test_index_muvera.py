"""Fixed-dimensional encodings: their products follow MaxSim closely enough to find its best."""

from __future__ import annotations

import numpy as np
import pytest

from app.index.muvera import DIMENSIONS, FixedEncoder
from model.scoring import colbert_score


@pytest.mark.parametrize("width", [1, 8, 12, 64, 256])
def test_shapes_and_determinism(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((9, width)).astype(np.float32)
    one = FixedEncoder.of(width).document(rows)
    assert one.shape == (DIMENSIONS,) and one.dtype == np.float32 and np.isfinite(one).all()
    np.testing.assert_allclose(FixedEncoder.of(width).document(rows[::-1]), one, atol=1e-4)
    assert FixedEncoder.of(width).query(rows).shape == (DIMENSIONS,)


def test_of_one_vector_the_product_is_the_inner_product_on_average(seed: int) -> None:
    rng = np.random.default_rng(seed)
    encoder = FixedEncoder.of(256)
    left, right = rng.standard_normal((2, 300, 1, 256)).astype(np.float32) / 16
    right = (right + left) / 2
    # A document of one vector has it in every cell.
    found = [float(encoder.query(a) @ encoder.document(b)) for a, b in zip(left, right, strict=True)]
    exact = [float((a @ b.T)[0, 0]) for a, b in zip(left, right, strict=True)]
    assert np.mean(found) == pytest.approx(np.mean(exact), rel=0.05)


def test_the_best_by_maxsim_are_among_the_best_by_encoding(seed: int) -> None:
    rng = np.random.default_rng(seed)
    width, topics = 64, rng.standard_normal((40, 64))
    documents = []
    for _ in range(400):
        rows = topics[rng.integers(0, 40, rng.integers(5, 40))] + 0.4 * rng.standard_normal((1, width))
        rows += 0.4 * rng.standard_normal(rows.shape)
        documents.append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))
    encoder = FixedEncoder.of(width)
    encoded = np.stack([encoder.document(rows) for rows in documents])
    found = []
    for _ in range(20):
        source = documents[rng.integers(400)]
        query = source[rng.integers(0, len(source), 6)] + 0.05 * rng.standard_normal((6, width)).astype(
            np.float32
        )
        query = (query / np.linalg.norm(query, axis=1, keepdims=True)).astype(np.float32)
        best = int(np.argmax([colbert_score(query, rows) for rows in documents]))
        found.append(best in np.argsort(-(encoded @ encoder.query(query)))[:40])
    assert np.mean(found) > 0.8  # by chance it would be 0.1
