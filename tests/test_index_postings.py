"""Posting lists return exactly what brute force does: the same rows, order and scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.index.posting_types import RANGE
from app.index.postings import Postings
from app.index.workers import Workers
from model.embedding import FloatArray, IntArray, LexicalWeights

Documents = tuple[NDArray[np.int64], IntArray, FloatArray]
Found = tuple[NDArray[np.int64], FloatArray]


def lexical(terms: Any, weights: Any) -> LexicalWeights:
    return LexicalWeights(np.array(terms, np.int32), np.array(weights, np.float32))


def column(terms: Any, weights: Any) -> Documents:
    """Documents of one term each."""
    return np.arange(len(terms) + 1), np.array(terms, np.int32), np.array(weights, np.float32)


def drawn(rng: np.random.Generator, rows: int, vocabulary: int, most: int, levels: int) -> Documents:
    """Random documents, some empty, low terms in more of them; weights are one of `levels`, or any if 0."""
    row = np.repeat(np.arange(rows), rng.integers(0, most + 1, rows))
    term = (vocabulary * rng.random(len(row)) ** 2).astype(np.int64)
    pairs = np.unique(row * vocabulary + term)
    row, term = pairs // vocabulary, pairs % vocabulary
    weights = rng.integers(1, levels + 1, len(pairs)) / 8 if levels else rng.lognormal(-2, 2, len(pairs))
    return np.searchsorted(row, np.arange(rows + 1)), term.astype(np.int32), weights.astype(np.float32)


def asked(rng: np.random.Generator, vocabulary: int) -> LexicalWeights:
    """A random query, perhaps of no term, with a term that no document has."""
    terms = np.append(
        rng.choice(vocabulary, int(rng.integers(0, min(vocabulary, 20))), replace=False), 2**31 - 1
    )
    return lexical(np.sort(terms), rng.choice([0.25, 0.5, 1.75, rng.random() + 0.1], len(terms)))


def truth(documents: Documents, query: LexicalWeights) -> tuple[NDArray[np.bool_], FloatArray]:
    """Which rows share a term, and all scores, in float64 by ascending term."""
    offsets, terms, weights = documents
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    at = np.searchsorted(query.indices, terms)
    at[at == len(query)] = 0
    here = np.flatnonzero(query.indices[at] == terms) if len(query) else np.empty(0, np.int64)
    products = weights[here].astype(np.float64) * query.values[at[here]].astype(np.float64)
    scores = np.bincount(rows[here], products, len(offsets) - 1)  # adds in order
    shared = np.bincount(rows[here], minlength=len(offsets) - 1) > 0
    with np.errstate(over="ignore"):
        return shared, scores.astype(np.float32)


def brute(
    documents: Documents,
    query: LexicalWeights,
    count: int,
    usable: NDArray[np.bool_] | None = None,
    floor: float = 0.0,
) -> Found:
    shared, scores = truth(documents, query)
    rows = np.flatnonzero((shared if usable is None else shared & usable) & (scores >= floor))
    order = np.lexsort((rows, -scores[rows]))[:count]
    return rows[order], scores[rows[order]]


def same(found: Found, expected: Found) -> None:
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def kept(documents: Documents, living: NDArray[np.bool_]) -> Documents:
    """The documents whose flag is true."""
    offsets, terms, weights = documents
    lengths = np.diff(offsets)
    chosen = np.repeat(living, lengths)
    return np.concatenate([[0], np.cumsum(lengths[living])]), terms[chosen], weights[chosen]


def joined(*parts: Documents) -> Documents:
    lengths = np.concatenate([np.diff(offsets) for offsets, _, _ in parts])
    terms, weights = (np.concatenate([part[at] for part in parts]) for at in (1, 2))
    return np.concatenate([[0], np.cumsum(lengths)]), terms, weights


@pytest.fixture(scope="module")
def workers() -> Workers:
    return Workers(3)


SHAPES = [
    (0, 5, 4),
    (1, 5, 4),
    (50, 5, 4),
    (400, 60, 12),
    (3000, 900, 12),
    (150_000, 40, 2),
    (210_000, 3000, 3),
]


@pytest.mark.parametrize(("rows", "vocabulary", "most"), SHAPES)
def test_equals_brute_force(seed: int, workers: Workers, rows: int, vocabulary: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    for levels in (0, 1, 3):
        documents = drawn(rng, rows, vocabulary, most, levels)
        index = Postings.build(*documents)
        assert (index.rows, index.postings) == (rows, len(documents[1]))
        for _ in range(12):
            query = asked(rng, vocabulary)
            count = int(rng.choice([0, 1, 7, 100, 1000, 10**6]))
            usable = (
                rng.random(rows) < rng.choice([0.0, 0.001, 0.1, 0.9, 1.0]) if rng.random() < 0.7 else None
            )
            _, scores = truth(documents, query)
            floor = float(rng.choice(scores)) if rows and rng.random() < 0.3 else 0.0
            for pool in (None, workers):
                same(
                    index.search(query, count, usable, pool, floor),
                    brute(documents, query, count, usable, floor),
                )
            some = rng.integers(0, rows, 20) if rows else np.empty(0, np.int64)
            np.testing.assert_array_equal(index.scores(query, some), scores[some])


def test_merging_equals_building(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for rows in (0, 5, 200, 70_000):
        parts = [drawn(rng, int(rng.integers(0, rows + 1)), 50 * (at + 1), 3, 3) for at in range(3)]
        living = [
            rng.random(len(part[0]) - 1) < share for part, share in zip(parts, (0.5, 0, 0.97), strict=True)
        ]
        merged = Postings.merged(
            [(Postings.build(*part), flags) for part, flags in zip(parts, living, strict=True)]
        )
        documents = joined(*(kept(part, flags) for part, flags in zip(parts, living, strict=True)))
        built = Postings.build(*documents)
        for name, array in built.arrays().items():
            np.testing.assert_array_equal(merged.arrays()[name], array, err_msg=name, strict=True)
        query = asked(rng, 150)
        same(merged.search(query, 10), brute(documents, query, 10))
    assert Postings.merged([]).rows == 0


def test_arrays_come_back_from_a_file(seed: int, tmp_path: Any) -> None:
    rng = np.random.default_rng(seed)
    documents = drawn(rng, 500, 80, 9, 0)
    built = Postings.build(*documents)
    mapped = {}
    for name, array in built.arrays().items():
        np.save(tmp_path / f"{name}.npy", array)
        mapped[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    again = Postings.of(mapped)
    assert np.shares_memory(again.weights, mapped["weights"])
    assert again.nbytes == sum(array.nbytes for name, array in mapped.items() if name != "weights")
    for _ in range(5):
        query = asked(rng, 80)
        same(again.search(query, 10), brute(documents, query, 10))
    assert again.arrays().keys() == built.arrays().keys()


@pytest.mark.parametrize("huge", [1e30, 1e-30, 3e38, 1e-44])
@pytest.mark.parametrize("asks", [1.0, 1e30, 1e-30, 1e-44])
def test_extreme_weights(seed: int, huge: float, asks: float) -> None:
    """Scores beyond float32 are infinite or 0, and then equal."""
    rng = np.random.default_rng(seed)
    for part in (2, 3000):
        offsets, terms, weights = drawn(rng, 4000, 20, 5, 0)
        weights = weights.copy()
        weights[rng.integers(0, len(weights), part)] = huge
        index = Postings.build(offsets, terms, weights)
        for values in ([asks, 1, 1], [1, 1, asks], [asks, asks, asks]):
            query = lexical([0, 3, 7], values)
            for count in (1, 10, 2000):
                same(index.search(query, count), brute((offsets, terms, weights), query, count))


def test_scores_below_the_smallest_float32_come_by_row(seed: int) -> None:
    """They differ in float64 and are a few steps of 2^-149, or 0, in float32."""
    rng = np.random.default_rng(seed)
    documents = column(np.full(3000, 4), 1e-15 * (0.1 + 4 * rng.random(3000)))
    query = lexical([4], [1e-30])
    for count in (1, 10, 700, 2990):
        same(Postings.build(*documents).search(query, count), brute(documents, query, count))


def test_codes_are_the_least_upper_bounds(seed: int) -> None:
    offsets, terms, weights = drawn(np.random.default_rng(seed), 3000, 40, 9, 0)
    index = Postings.build(offsets, terms, weights)
    step = np.repeat(index.run_maxima, np.diff(index.starts)).astype(np.float64) / 255  # one run a term
    assert np.all(index.codes >= 1)
    assert np.all(index.weights <= step * index.codes * (1 + 1e-12))
    assert np.all(index.weights > step * (index.codes.astype(np.float64) - 1))


def test_an_outlier_in_one_range(seed: int) -> None:
    """Bounds of its range are coarse, those of others are not; nothing may be lost in either."""
    rng = np.random.default_rng(seed)
    offsets, terms, weights = drawn(rng, 5 * RANGE - 100, 6, 3, 0)
    weights = weights.copy()
    weights[rng.integers(0, len(weights))] = 1e30
    index = Postings.build(offsets, terms, weights)
    query = lexical(range(6), [0.5] * 6)
    for count in (1, 50):
        same(index.search(query, count), brute((offsets, terms, weights), query, count))


def test_equal_scores_come_by_row(workers: Workers) -> None:
    rows = 120_000
    documents = column([7] * rows, [0.3] * rows)
    index = Postings.build(*documents)
    for query in (lexical([7], [0.7]), lexical([3, 7, 2**31 - 1], [1, 1e-3, 1])):
        for count in (1, 100, rows + 5):
            found, scores = index.search(query, count, None, workers)
            np.testing.assert_array_equal(found, np.arange(min(count, rows)))
            assert len(set(scores.tolist())) == 1
    usable = np.arange(rows) % 3 == 2
    assert index.search(lexical([7], [1]), 3, usable)[0].tolist() == [2, 5, 8]


def test_scores_that_round_to_the_same_float32_come_by_row() -> None:
    """The sum of the second is greater in float64 only."""
    documents = np.array([0, 1, 3]), np.array([1, 1, 2], np.int32), np.array([1, 1, 1e-12], np.float32)
    rows, scores = Postings.build(*documents).search(lexical([1, 2], [1, 1]), 1)
    assert (rows.tolist(), scores.tolist()) == ([0], [1.0])


def test_far_terms_and_many_terms(seed: int) -> None:
    rng = np.random.default_rng(seed)
    far = np.array([0, 1 << 24, 2**31 - 1])
    documents = column(far, [1, 2, 3])
    index = Postings.build(*documents)
    same(index.search(lexical(far, [1, 1, 1]), 2), brute(documents, lexical(far, [1, 1, 1]), 2))
    documents = joined(*(column([term], [1]) for term in range(3)), drawn(rng, 40, 100_000, 90_000, 3))
    index = Postings.build(*documents)
    query = lexical(range(80_000), rng.random(80_000) + 0.01)
    same(index.search(query, 5), brute(documents, query, 5))  # more terms than bounds have units


@pytest.mark.parametrize(
    ("offsets", "terms", "weights"),
    [
        ([0, 2], [1, 1], [1, 1]),
        ([0, 2], [2, 1], [1, 1]),
        ([0, 1], [-1], [1]),
        ([0, 1], [1], [0]),
        ([0, 1], [1], [np.nan]),
        ([0, 1], [1], [np.inf]),
        ([0, 2, 1], [1], [1]),
        ([1], [1], [1]),
        ([], [], []),
    ],
)
def test_documents_that_make_no_sense(offsets: list[int], terms: list[int], weights: list[float]) -> None:
    with pytest.raises(ValueError, match=r"ascend|divide"):
        Postings.build(np.array(offsets, np.int64), np.array(terms, np.int32), np.array(weights, np.float32))


def test_flags_and_rows_of_another_segment() -> None:
    index = Postings.build(*column([1, 1], [1, 1]))
    with pytest.raises(ValueError, match="flags"):
        index.search(lexical([1], [1]), 1, np.ones(3, bool))
    with pytest.raises(ValueError, match="flags"):
        Postings.merged([(index, np.ones(3, bool))])
    for row in (-1, 2):
        with pytest.raises(IndexError):
            index.scores(lexical([1], [1]), np.array([row]))


def test_damage_is_refused_or_harmless(seed: int) -> None:
    """Any bytes changed in any array: a ValueError, or some answer."""
    rng = np.random.default_rng(seed)
    documents = drawn(rng, 70_000, 30, 2, 0)
    good = Postings.build(*documents).arrays()
    refused = 0
    for trial in range(300):
        name = list(good)[trial % len(good)]
        array = good[name].copy()
        if trial % 3 == 0:
            array = array[: len(array) - 1] if trial % 2 else np.append(array, array[-1:])
        else:
            values = [0, 1, -1, 77, 80_000] if name == "count" else [0, 1, -1, 2**31, 2**62, 77]
            array[rng.integers(len(array))] = rng.choice(values).astype(array.dtype)
        try:
            index = Postings.of({**good, name: array})
            rows, _ = index.search(lexical(range(30), [1] * 30), 50, np.ones(index.rows, bool))
            assert np.all((rows >= 0) & (rows < index.rows))
            Postings.merged([(index, np.ones(index.rows, bool))])
        except ValueError:
            refused += 1
    assert refused > 100
    for name in good:
        strided = np.repeat(good[name], 3)[::2]
        for wrong in (good[name].astype(np.complex64), good[name][:, None], strided):
            with pytest.raises(ValueError, match="posting lists"):
                Postings.of({**good, name: wrong})
        with pytest.raises(ValueError, match="lack"):
            Postings.of({other: array for other, array in good.items() if other != name})


def test_a_damaged_row_beyond_the_last() -> None:
    index = Postings.build(*column([3] * 70_000, [1] * 70_000))
    row_parts = index.row_parts.copy()
    row_parts[-1] = 65_535
    damaged = Postings.of({**index.arrays(), "row_parts": row_parts})
    rows, _ = damaged.search(lexical([3], [1]), 100_000, np.ones(70_000, bool))
    assert rows.tolist() == list(range(69_999))
    with pytest.raises(ValueError, match="ascend"):
        Postings.merged([(damaged, np.ones(70_000, bool))])
