"""How far our embeddings are from the reference's, and the bounds that the parity tests hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.embedding import OUTPUTS, Embedding, IntArray
from model.tensorflow_engine import TensorFlowEngine
from tests.reference import Reference


def largest_differences(
    engine: TensorFlowEngine, batch: Sequence[IntArray], references: Sequence[Reference]
) -> dict[str, float]:
    """Largest absolute difference per part over a batch: `hidden`, `dense`, `sparse`, `colbert`.

    A lexical id that only one side has counts with its whole weight.
    """
    ours = engine.forward(batch, OUTPUTS)
    states = engine.hidden_states(batch)
    found = dict.fromkeys(("hidden", "dense", "sparse", "colbert"), 0.0)
    for one, hidden, reference in zip(ours, states, references, strict=True):
        assert one.dense is not None and one.colbert is not None
        assert one.colbert.shape == reference.colbert.shape
        for part, difference in (
            ("hidden", _largest(hidden - reference.hidden)),
            ("dense", _largest(one.dense - reference.dense)),
            ("sparse", sparse_difference(one, reference.sparse)),
            ("colbert", _largest(one.colbert - reference.colbert)),
        ):
            found[part] = max(found[part], difference)
    return found


def sparse_difference(one: Embedding, reference: dict[int, float]) -> float:
    """Largest difference of a lexical weight, over the ids of both sides."""
    assert one.sparse is not None
    ours = dict(zip(one.sparse.indices.tolist(), one.sparse.values.tolist(), strict=True))
    return max((abs(ours.get(key, 0) - reference.get(key, 0)) for key in ours | reference), default=0.0)


def assert_parity(
    engine: TensorFlowEngine,
    batch: Sequence[IntArray],
    references: Sequence[Reference],
    *,
    atol: float = 1e-5,
) -> None:
    """Every part of every embedding within `atol` of the reference."""
    found = largest_differences(engine, batch, references)
    assert all(value <= atol for value in found.values()), f"largest differences {found}, allowed {atol}"


def cosine(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine of each pair of rows, in float64. Shapes: [N, D], [N, D] -> [N]."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    return np.asarray((a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)))


def _largest(values: NDArray[np.float32]) -> float:
    return float(np.abs(values).max(initial=0.0))
