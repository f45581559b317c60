"""The lexical index equals brute force through additions, replacements, deletions and merges."""

from __future__ import annotations

import numpy as np
import pytest

from app.index import lexical
from app.index.lexical import LexicalIndex, Postings
from model.embedding import LexicalWeights
from model.scoring import lexical_score
from tests.index_helpers import weights

NONE = np.empty(0, np.int64)


@pytest.mark.parametrize("merge_rows", [4, 1024])
def test_equals_brute_force(monkeypatch: pytest.MonkeyPatch, seed: int, merge_rows: int) -> None:
    monkeypatch.setattr(lexical, "MERGE_ROWS", merge_rows)
    rng = np.random.default_rng(seed)
    index = LexicalIndex.build(NONE, Postings.of([]))
    documents: dict[int, LexicalWeights] = {}
    merges = 0
    for step in range(60):
        present = np.array(sorted(documents), np.int64)
        gone = rng.choice(present, min(len(present), int(rng.integers(0, 4))), replace=False)
        added = np.concatenate([gone[: len(gone) // 2], np.arange(5) + 10 * step]).astype(np.int64)
        new = [weights(rng) for _ in added]
        before = index.main
        index = index.changed(gone, added, new)
        merges += index.main is not before
        for key in gone.tolist():
            del documents[key]
        documents.update(zip(added.tolist(), new, strict=True))
        query = weights(rng)
        some = np.array(sorted(rng.choice(sorted(documents), len(documents) // 2, replace=False)), np.int64)
        for allowed in (None, some, NONE):
            scores = {
                key: score
                for key, one in documents.items()
                if (allowed is None or key in allowed) and (score := lexical_score(query, one)) > 0
            }
            for count in (1, 7, 1000):
                keys, found = index.search(query, count, allowed)
                assert len(keys) == min(count, len(scores))
                assert set(keys.tolist()) <= set(scores)
                np.testing.assert_allclose(found, [scores[key] for key in keys.tolist()], atol=1e-6)
                best = sorted(scores.values(), reverse=True)[:count]
                np.testing.assert_allclose(found, best, atol=1e-6)
    assert (merges > 3) is (merge_rows == 4)


def test_ties_come_by_key(seed: int) -> None:
    one = LexicalWeights(np.array([3], np.int32), np.array([0.5], np.float32))
    index = LexicalIndex.build(np.arange(20), Postings.of([one] * 20))
    index = index.changed(np.array([1]), np.array([50, 30]), [one, one])
    assert index.search(one, 4)[0].tolist() == [0, 2, 3, 4]
    assert index.search(one, 100)[0].tolist() == [0, *range(2, 20), 30, 50]


def test_extreme_terms_and_empty_sides() -> None:
    far = LexicalWeights(np.array([0, 2**31 - 1], np.int32), np.array([1, 2], np.float32))
    empty = LexicalWeights(np.empty(0, np.int32), np.empty(0, np.float32))
    index = LexicalIndex.build(np.array([7, 8]), Postings.of([far, empty]))
    index = index.changed(NONE, np.array([9]), [far])
    keys, scores = index.search(far, 10)
    assert (keys.tolist(), scores.tolist()) == ([7, 9], [5.0, 5.0])
    assert index.search(empty, 10)[0].size == 0
