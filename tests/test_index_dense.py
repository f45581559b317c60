"""The dense index equals brute force through additions, replacements, deletions and merges."""

from __future__ import annotations

import numpy as np
import pytest

from app.index import dense
from app.index.dense import DenseIndex
from app.index.facts import Keys
from model.embedding import FloatArray
from tests.index_helpers import unit

NONE = np.empty(0, np.int64)


def _empty(width: int = 6) -> DenseIndex:
    return DenseIndex.build(NONE, np.empty((0, width), np.float32))


def _expected(
    vectors: dict[int, FloatArray], query: FloatArray, count: int, allowed: Keys | None
) -> list[int]:
    usable = [key for key in vectors if allowed is None or key in allowed]
    scores = {key: float(np.float32(vectors[key] @ query)) for key in usable}
    return sorted(usable, key=lambda key: (-scores[key], key))[:count]


@pytest.mark.parametrize("merge_rows", [4, 4096])
def test_equals_brute_force(monkeypatch: pytest.MonkeyPatch, seed: int, merge_rows: int) -> None:
    monkeypatch.setattr(dense, "MERGE_ROWS", merge_rows)
    rng = np.random.default_rng(seed)
    index, vectors, merges = _empty(), dict[int, FloatArray](), 0
    for step in range(60):
        present = np.array(sorted(vectors), np.int64)
        gone = rng.choice(present, min(len(present), int(rng.integers(0, 4))), replace=False)
        replaced = gone[: len(gone) // 2]
        added = np.concatenate([replaced, np.arange(5) + 10 * step]).astype(np.int64)
        new = unit(rng, len(added), 6)
        before = index.main
        index = index.changed(gone, added, new)
        merges += index.main is not before
        for key in gone.tolist():
            del vectors[key]
        vectors.update(zip(added.tolist(), new, strict=True))
        query = unit(rng, 6)
        some = np.array(sorted(rng.choice(sorted(vectors), len(vectors) // 2, replace=False)), np.int64)
        for count in (1, 7, 1000):
            for allowed in (None, some, NONE):
                keys, scores = index.search(query, count, allowed)
                assert keys.tolist() == _expected(vectors, query, count, allowed)
                np.testing.assert_allclose(scores, [vectors[key] @ query for key in keys.tolist()], atol=1e-6)
    assert (merges > 3) is (merge_rows == 4)


def test_ties_come_by_key_even_at_the_edge(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vector = unit(rng, 6)
    keys = np.arange(40, dtype=np.int64)
    index = DenseIndex.build(keys, np.tile(vector, (40, 1)))
    for count in (1, 3, 39):
        assert index.search(vector, count)[0].tolist() == list(range(count))
    # Many equals at the edge, with better ones before and after them.
    heights = rng.integers(0, 4, 500)
    index = DenseIndex.build(np.arange(500), heights[:, np.newaxis].astype(np.float32) * vector)
    for count in (5, 50, 150, 400):
        expected = np.lexsort((np.arange(500), -heights))[:count]
        assert index.search(vector, count)[0].tolist() == expected.tolist()
    # The tail's keys are smaller than the main part's.
    index = DenseIndex.build(keys + 100, np.tile(vector, (40, 1)))
    index = index.changed(NONE, keys[:5], np.tile(vector, (5, 1)))
    assert sorted(index.search(vector, 45)[0].tolist()) == [*range(5), *range(100, 140)]


def test_a_search_keeps_the_state_it_began_with(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = unit(rng, 3, 6)
    first = DenseIndex.build(np.arange(2), vectors[:2]).changed(NONE, np.array([2]), vectors[2:])
    old = first.search(vectors[2], 3)[1].tolist()
    second = first.changed(np.array([0, 2]), np.array([2, 3]), unit(rng, 2, 6))
    newer = second.search(vectors[2], 9)[1].tolist()
    third = first.changed(np.array([1]), np.array([9]), unit(rng, 1, 6))
    assert first.search(vectors[2], 3)[1].tolist() == old
    assert second.search(vectors[2], 9)[1].tolist() == newer
    assert sorted(second.search(vectors[2], 9)[0].tolist()) == [1, 2, 3]
    assert sorted(third.search(vectors[2], 9)[0].tolist()) == [0, 2, 9]


def test_nothing_to_find() -> None:
    keys, scores = _empty().search(np.ones(6, np.float32), 10)
    assert keys.size == scores.size == 0
