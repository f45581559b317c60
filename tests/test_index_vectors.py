"""Dense segments find what brute force finds; codes may miss a row, but never the score of one."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from app.index import faiss_index, vector_codes, vectors
from app.index.faiss_index import FaissIndex
from app.index.vectors import DenseSegment
from app.index.workers import Workers
from model.embedding import FloatArray

Rows = NDArray[np.float16]


@pytest.fixture
def always_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small segments use their codes or FAISS too, and score few rows."""
    monkeypatch.setattr(vectors, "EXACT_ROWS", 0)
    monkeypatch.setattr(vectors, "RESCORED_ROWS", 400)
    monkeypatch.setattr(faiss_index, "CODE_COST", 0)
    monkeypatch.setattr(faiss_index, "NODE_COST", 0)


def _clustered(rng: np.random.Generator, count: int, width: int) -> Rows:
    """Unit rows around a mean and some clusters, as text embeddings are."""
    clusters = rng.standard_normal((max(1, count // 100), width))
    rows = 0.7 * rng.standard_normal(width) + clusters[rng.integers(len(clusters), size=count)]
    rows = rows + rng.standard_normal((count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def _query(rng: np.random.Generator, rows: Rows) -> FloatArray:
    near = rows[rng.integers(len(rows))].astype(np.float32)
    return near + np.float32(0.5 * np.linalg.norm(near)) * _unit(rng, len(near))


def _unit(rng: np.random.Generator, width: int) -> FloatArray:
    drawn = rng.standard_normal(width)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


def _products(rows: Rows, query: FloatArray) -> NDArray[np.float64]:
    return np.asarray(rows.astype(np.float64) @ query.astype(np.float64))


def _brute(rows: Rows, query: FloatArray, count: int, usable: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    products = _products(rows, query)
    places = np.arange(len(rows)) if usable is None else np.flatnonzero(usable)
    return places[np.lexsort((places, -products[places]))][:count]


def _check_scores(rows: Rows, query: FloatArray, found: tuple[NDArray[np.int64], FloatArray]) -> None:
    """Distinct rows with their own products, best first, equals by ascending row."""
    places, scores = found
    assert places.dtype == np.int64 and scores.dtype == np.float32
    assert len(np.unique(places)) == len(places)
    tolerance = 1e-5 * np.abs(rows[places].astype(np.float64)) @ np.abs(query.astype(np.float64)) + 1e-30
    assert np.all(np.abs(scores - _products(rows, query)[places]) <= tolerance)
    np.testing.assert_array_equal(np.lexsort((places, -scores)), np.arange(len(places)))


@pytest.mark.parametrize("width", [1, 8, 12, 64, 100, 1024])
@pytest.mark.parametrize("kind", ["exact", "rabitq", "ivf", "hnsw"])
def test_whole_numbers_equal_brute_force_with_ties_by_row(
    seed: int, always_codes: None, width: int, kind: vectors.DenseKind
) -> None:
    rng = np.random.default_rng(seed)
    for count in (1, 2, 63, 300):
        # Products of small whole numbers are exact, and many are equal.
        rows = rng.integers(-2, 3, (count, width)).astype(np.float16)
        query = rng.integers(-2, 3, width).astype(np.float32)
        segment = DenseSegment.build(rows, kind)
        assert segment.kind == kind or (kind in ("ivf", "hnsw") and segment.kind == "rabitq")
        for usable in (None, rng.random(count) < 0.5, np.zeros(count, np.bool_), np.ones(count, np.bool_)):
            for wanted in (0, 1, 7, 1000):
                places, scores = segment.search(query, wanted, usable)
                np.testing.assert_array_equal(places, _brute(rows, query, wanted, usable))
                np.testing.assert_array_equal(scores, _products(rows, query)[places])


def test_every_finite_float16_counts_as_its_value() -> None:
    values = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    values = values[np.isfinite(values)]
    segment = DenseSegment(np.ascontiguousarray(values[:, np.newaxis]))
    np.testing.assert_array_equal(segment.scores(np.ones(1, np.float32), np.arange(len(values))), values)


@pytest.mark.parametrize(("count", "width"), [(3000, 64), (3000, 100), (20_000, 256), (6000, 1024)])
@pytest.mark.parametrize("threads", [None, 3])
def test_codes_miss_little(
    seed: int, always_codes: None, count: int, width: int, threads: int | None
) -> None:
    rng = np.random.default_rng(seed)
    rows = _clustered(rng, count, width)
    workers = Workers(threads) if threads else None
    segment = DenseSegment.build(rows, "rabitq", workers)
    hits = []
    for _ in range(10):
        query = _query(rng, rows)
        found = segment.search(query, 20, workers=workers)
        _check_scores(rows, query, found)
        hits.append(np.isin(_brute(rows, query, 20, None), found[0]).mean())
    assert np.mean(hits) >= 0.95
    if workers:
        workers.close()


def test_codes_see_only_what_may_matter(
    seed: int, always_codes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recall above is the codes' doing: few rows are scored, and with other codes recall is gone."""
    rng = np.random.default_rng(seed)
    rows = _clustered(rng, 20_000, 256)
    segment = DenseSegment.build(rows, "rabitq")
    assert segment.codes is not None
    scored = []
    genuine = DenseSegment._scored

    def counted(self: DenseSegment, query: FloatArray, places: Any, workers: Workers | None) -> FloatArray:
        scored.append(len(places))
        return genuine(self, query, places, workers)

    monkeypatch.setattr(DenseSegment, "_scored", counted)
    query = _query(rng, rows)
    expected = _brute(rows, query, 20, None)
    assert np.isin(expected, segment.search(query, 20)[0]).mean() >= 0.8
    assert sum(scored) <= 400
    spoiled = DenseSegment.of(rows, segment.arrays() | {"codes": segment.codes.codes[::-1].copy()})
    assert np.isin(expected, spoiled.search(query, 20)[0]).mean() < 0.5


@pytest.mark.parametrize("width", [100, 256])
def test_bounds_lie_a_margin_above_products(seed: int, width: int) -> None:
    """Errors of estimates, in the deviations that a margin counts in, have mean 0 and deviation 1."""
    rng = np.random.default_rng(seed)
    # Rows of several lengths along a large mean: what the centre contributes must be counted once.
    rows = 3 * rng.standard_normal(width) * rng.uniform(0.5, 1.5, (4000, 1)) + rng.standard_normal(
        (4000, width)
    )
    rows = rows.astype(np.float16)
    codes = DenseSegment.build(rows, "rabitq").codes
    assert codes is not None
    for query in (_query(rng, rows), 100 * _unit(rng, width)):
        question = codes.question(query)
        places, bounds = codes.scanned(question, -np.inf, 4000, 4000, None, None)
        np.testing.assert_array_equal(places, np.arange(4000))
        errors = (bounds - _products(rows, query)) / (question.spread * codes.scales)
        assert abs(np.mean(errors) - vector_codes.MARGIN) < 0.25
        assert 0.6 < np.std(errors) < 1.2


def test_rows_without_clusters_are_looked_for_again(
    seed: int, always_codes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where products are nearly equal, the first few rows scored leave out many that matter."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((20_000, 256)).astype(np.float16)
    segment = DenseSegment.build(rows, "rabitq")
    hits = {}
    for least in (vectors.LEAST_MARGIN, -np.inf):
        monkeypatch.setattr(vectors, "LEAST_MARGIN", least)
        again = np.random.default_rng(seed + 1)
        queries = [_unit(again, 256) for _ in range(10)]
        found = [np.isin(_brute(rows, query, 20, None), segment.search(query, 20)[0]) for query in queries]
        hits[least] = np.mean(found)
    assert hits[vectors.LEAST_MARGIN] < 0.9 < 0.95 <= hits[1.5]


@pytest.mark.parametrize("share", [0.001, 0.02, 0.1, 0.3, 0.6, 0.9, 0.999])
def test_only_usable_rows_are_found(seed: int, always_codes: None, share: float) -> None:
    rng = np.random.default_rng(seed)
    rows = _clustered(rng, 20_000, 64)
    segment = DenseSegment.build(rows, "rabitq")
    workers = Workers(2)
    hits = []
    for _ in range(8):
        query, usable = _query(rng, rows), rng.random(len(rows)) < share
        expected = _brute(rows, query, 20, usable)
        places, scores = segment.search(query, 20, usable, workers)
        assert usable[places].all() and len(places) == len(expected)
        _check_scores(rows, query, (places, scores))
        hits.append(np.isin(expected, places).mean() if len(expected) else 1.0)
    # By codes alone a row in some thousands is missed, however few are usable.
    assert np.mean(hits) >= (0.98 if share <= 0.02 else 0.95)
    workers.close()


def test_few_usable_rows_are_scored_exactly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = (rng.standard_normal((vectors.EXACT_ROWS + 3000, 8))).astype(np.float16)
    segment = DenseSegment.build(rows, "rabitq")
    usable = rng.random(len(rows)) < 0.5
    query = _unit(rng, 8)
    found = segment.search(query, 1000, usable)
    expected = segment.exact(query, 1000, usable)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_rows_of_any_length(seed: int, always_codes: None) -> None:
    """Zero rows, tiny and large ones: the best are the large ones, and for a query the other way zeros."""
    rng = np.random.default_rng(seed)
    for width in (1, 8, 96):
        rows = _clustered(rng, 4000, width) * 10.0 ** rng.uniform(-4, 2, (4000, 1))
        rows[rng.random(4000) < 0.1] = 0
        rows = rows.astype(np.float16)
        segment = DenseSegment.build(rows, "rabitq")
        for query in (_query(rng, rows), -_query(rng, rows), _unit(rng, width), np.zeros(width, np.float32)):
            query = query * np.float32(10.0 ** rng.uniform(-3, 3))
            found = segment.search(query, 10)
            _check_scores(rows, query, found)
            best = np.sort(_products(rows, query))[::-1][:10]
            assert len(found[0]) == 10
            # One row in ten may be missed; its stead must be nearly as good.
            assert np.mean(found[1] >= best - 1e-5 * np.abs(best) - 1e-30) >= 0.5


def test_duplicates_come_by_row(seed: int, always_codes: None) -> None:
    rng = np.random.default_rng(seed)
    rows = _clustered(rng, 5000, 32)
    same = np.sort(rng.choice(5000, 1500, replace=False))
    rows[same] = rows[same[0]]
    segment = DenseSegment.build(rows, "rabitq")
    query = rows[same[0]].astype(np.float32)
    for usable in (None, rng.random(5000) < 0.5, rng.random(5000) < 0.2):
        expected = same if usable is None else same[usable[same]]
        places, scores = segment.search(query, 30, usable)
        np.testing.assert_array_equal(places, expected[:30])
        assert len(set(scores.tolist())) == 1
    all_same = DenseSegment.build(np.tile(rows[:1], (5000, 1)), "rabitq")
    np.testing.assert_array_equal(all_same.search(query, 30)[0], np.arange(30))


def test_arrays_come_back(seed: int, always_codes: None) -> None:
    rng = np.random.default_rng(seed)
    rows = _clustered(rng, 2000, 48)
    for kind in ("exact", "rabitq", "auto", "ivf", "hnsw"):
        segment = DenseSegment.build(rows, kind)  # type: ignore[arg-type]
        kept = {
            name: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)
            for name, array in segment.arrays().items()
        }
        assert bool(kept) is (kind in ("rabitq", "ivf", "hnsw"))
        again = DenseSegment.of(rows, kept)
        assert again.kind == segment.kind == ("exact" if kind == "auto" else kind)
        for name, array in again.arrays().items():
            np.testing.assert_array_equal(array, kept[name])
        query = _query(rng, rows)
        for one, other in zip(segment.search(query, 50), again.search(query, 50), strict=True):
            np.testing.assert_array_equal(one, other)


def _built(rows: Rows, kind: vectors.DenseKind, workers: Workers | None = None) -> DenseSegment:
    segment = DenseSegment.build(rows, kind, workers)
    assert segment.kind == kind
    return segment


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
@pytest.mark.parametrize(("count", "width"), [(12_000, 64), (12_000, 100)])
def test_faiss_misses_little(
    seed: int, always_codes: None, kind: vectors.DenseKind, count: int, width: int
) -> None:
    """Neither does it look at all rows: a search gives some of them as candidates."""
    rng = np.random.default_rng(seed)
    rows = _clustered(rng, count, width)
    workers = Workers(2)
    segment = _built(rows, kind, workers)
    assert segment.index is not None
    hits = []
    for wanted in (1, 20, 20, 20, 100, 100, 200):
        query = _query(rng, rows)
        candidates = segment.index.candidates(query, wanted, None)
        assert candidates is not None and wanted <= len(candidates) < 0.8 * count
        found = segment.search(query, wanted, workers=workers)
        _check_scores(rows, query, found)
        assert set(found[0].tolist()) <= set(candidates.tolist()) and len(found[0]) == wanted
        hits.append(np.isin(_brute(rows, query, wanted, None), found[0]).mean())
    assert np.mean(hits) >= 0.9
    workers.close()


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_faiss_finds_usable_rows_only(seed: int, always_codes: None, kind: vectors.DenseKind) -> None:
    rng = np.random.default_rng(seed)
    rows = _clustered(rng, 12_000, 64)
    segment = _built(rows, kind)
    far = np.argsort(_products(rows, _unit(rng, 64))) < 6000
    masks = [rng.random(len(rows)) < share for share in (0, 0.001, 0.02, 0.1, 0.3, 0.6, 0.9, 0.999)]
    for usable in (*masks, far, ~far, np.ones(len(rows), np.bool_)):
        hits = []
        for _ in range(4):
            query = _query(rng, rows)
            expected = _brute(rows, query, 20, usable)
            found = segment.search(query, 20, usable)
            assert usable[found[0]].all() and len(found[0]) == len(expected)
            _check_scores(rows, query, found)
            hits.append(np.isin(expected, found[0]).mean() if len(expected) else 1.0)
        assert np.mean(hits) >= 0.85


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_faiss_that_finds_too_few_is_asked_for_more_or_left(
    seed: int, always_codes: None, monkeypatch: pytest.MonkeyPatch, kind: vectors.DenseKind
) -> None:
    rng = np.random.default_rng(seed)
    rows = _clustered(rng, 6000, 32)
    segment = _built(rows, kind)
    asked: list[int] = []

    def few(self: FaissIndex, queries: Any, effort: int, breadth: int, bits: Any) -> NDArray[np.int64]:
        asked.append(effort)
        # Rows that damaged bytes may name.
        return np.array([[3, -1, -5, *range(6000, 6020), 1 << 40]])

    monkeypatch.setattr(FaissIndex, "_searched", few)
    query = _query(rng, rows)
    places, _ = segment.search(query, 20)
    np.testing.assert_array_equal(places, segment.exact(query, 20)[0])
    assert segment.index is not None and asked == sorted(set(asked))
    assert len(asked) == 1 if kind == "hnsw" else asked[-1] == segment.index.index.nlist > asked[0]


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_faiss_takes_rows_and_queries_of_any_length(
    seed: int, always_codes: None, kind: vectors.DenseKind
) -> None:
    """Zero rows, equal rows, tiny and large ones; queries likewise. What FAISS cannot find, codes do."""
    rng = np.random.default_rng(seed)
    for width in (1, 3, 8, 96):
        rows = _clustered(rng, 4000, width) * 10.0 ** rng.uniform(-2, 2, (4000, 1))
        rows[rng.random(4000) < 0.1] = 0
        rows[rng.random(4000) < 0.1] = rows[0]
        for kept in (rows, np.zeros_like(rows), np.tile(rows[:1], (4000, 1))):
            kept = kept.astype(np.float16)
            segment = DenseSegment.build(kept, kind)
            assert segment.kind in (kind, "rabitq")
            for query in (_query(rng, kept), _unit(rng, width), np.zeros(width, np.float32)):
                for factor in (1e-30, 1, 1e30):
                    scaled = query * np.float32(factor)
                    found = segment.search(scaled, 10)
                    _check_scores(kept, scaled, found)
                    assert len(found[0]) == 10
                    if segment.index is None:
                        continue
                    if not query.any():
                        np.testing.assert_array_equal(found[0], np.arange(10))
                    candidates = segment.index.candidates(scaled, 10, None)
                    expected = segment.index.candidates(query, 10, None)
                    # A query's length changes nothing but digits.
                    assert (candidates is None) is (expected is None)
                    if candidates is not None and expected is not None:
                        # Of equal rows any may be candidates.
                        ends = [
                            np.sort(_products(kept, query)[places])[-10:] for places in (candidates, expected)
                        ]
                        np.testing.assert_allclose(*ends)


def test_codes_take_the_place_of_faiss_that_misses_much(
    seed: int, always_codes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = _clustered(np.random.default_rng(seed), 1000, 32)
    for kind in ("ivf", "hnsw"):
        monkeypatch.setattr(faiss_index, "GOAL", 0.9)
        assert DenseSegment.build(rows, kind).kind == kind  # type: ignore[arg-type]
        monkeypatch.setattr(faiss_index, "GOAL", 1.01)
        segment = DenseSegment.build(rows, kind)  # type: ignore[arg-type]
        assert segment.kind == "rabitq" and segment.index is None


def test_auto_goes_by_the_number_of_rows(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "AUTO_ROWS", 100)
    monkeypatch.setattr(vectors, "EXACT_ROWS", 100)
    monkeypatch.setattr(vectors, "IVF_ROWS", 1000)
    rows = _clustered(np.random.default_rng(seed), 1000, 32)
    kinds = {count: DenseSegment.build(rows[:count]).kind for count in (1, 100, 101, 999, 1000)}
    assert kinds == {1: "exact", 100: "exact", 101: "rabitq", 999: "rabitq", 1000: "ivf"}
    # Searches would score so few rows anyway.
    assert {DenseSegment.build(rows[:100], kind).kind for kind in ("ivf", "hnsw")} == {"exact"}


def test_faiss_searches_on_one_thread_and_builds_on_those_given(
    seed: int, always_codes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calling thread's own number is back afterwards."""
    rows = _clustered(np.random.default_rng(seed), 3000, 32)
    threads: list[int] = []
    genuine = FaissIndex._searched

    def watched(self: FaissIndex, *given: Any) -> NDArray[np.int64]:
        threads.append(faiss.omp_get_max_threads())
        return genuine(self, *given)

    monkeypatch.setattr(FaissIndex, "_searched", watched)
    before, workers = faiss.omp_get_max_threads(), Workers(3)
    faiss.omp_set_num_threads(5)
    try:
        segment = _built(rows, "ivf", workers)
        assert set(threads) == {3} and faiss.omp_get_max_threads() == 5
        threads.clear()
        segment.search(rows[0].astype(np.float32), 5, workers=workers)
        assert threads == [1] and faiss.omp_get_max_threads() == 5
    finally:
        faiss.omp_set_num_threads(before)
        workers.close()


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_damaged_faiss_is_refused(seed: int, always_codes: None, kind: vectors.DenseKind) -> None:
    rng = np.random.default_rng(seed)
    rows = _clustered(rng, 600, 24)
    good = _built(rows, kind).arrays()
    DenseSegment.of(rows, good)
    stored, effort = good["faiss"], good["effort"]
    euclidean = faiss.IndexHNSWSQ(24, faiss.ScalarQuantizer.QT_8bit, 8)
    flat = faiss.IndexFlatIP(24)
    for index in (euclidean, flat):
        index.train(rows.astype(np.float32))
        index.add(rows.astype(np.float32))
    bad: list[dict[str, Any]] = [
        good | {"faiss": stored[:cut].copy()} for cut in (0, 1, 4, 50, len(stored) - 1)
    ]
    bad += [good | {"faiss": np.zeros_like(stored)}, good | {"faiss": stored[::-1]}]
    bad += [good | {"faiss": stored.view(np.int8)}, good | {"faiss": stored[np.newaxis]}]
    bad += [good | {"faiss": faiss.serialize_index(index)} for index in (euclidean, flat)]
    bad += [good | {"effort": np.array(values, np.int64)} for values in ([0, 5], [5, -1], [5], [1 << 40, 5])]
    bad += [good | {"effort": effort.astype(np.int32)}, {"faiss": stored}, good | {"more": effort}]
    for arrays in bad:
        with pytest.raises(ValueError, match="dense segment"):
            DenseSegment.of(rows, arrays)
    for others in (rows[:-1], np.ascontiguousarray(rows[:, :20]), rows[:0]):
        with pytest.raises(ValueError, match="dense segment"):
            DenseSegment.of(others, good)


def test_encoding_does_not_depend_on_workers(seed: int) -> None:
    rows = _clustered(np.random.default_rng(seed), vector_codes.BLOCK_ROWS + 100, 12)
    workers = Workers(3)
    alone, shared = (DenseSegment.build(rows, "rabitq", use).arrays() for use in (None, workers))
    assert alone.keys() == shared.keys()
    for name, array in alone.items():
        np.testing.assert_array_equal(array, shared[name])
    workers.close()


def test_what_cannot_belong_together_is_refused(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = _clustered(rng, 200, 70)
    good = DenseSegment.build(rows, "rabitq").arrays()
    DenseSegment.of(rows, good)
    bad: list[dict[str, Any]] = []
    bad += [{name: array for name, array in good.items() if name != gone} for gone in good]
    bad += [good | {name: array[:-1]} for name, array in good.items()]
    bad += [good | {name: array.astype(np.float64)} for name, array in good.items()]
    bad += [good | {"more": good["scales"]}, good | {"codes": np.asfortranarray(good["codes"])}]
    for name, value in (
        ("scales", np.nan),
        ("scales", -1),
        ("along", np.inf),
        ("centre", np.nan),
        ("signs", 0),
        ("signs", -128),
        ("error", -0.1),
        ("error", 1.5),
        ("error", np.nan),
    ):
        damaged = good[name].copy()
        damaged.flat[damaged.size // 2] = value
        bad.append(good | {name: damaged})
    for arrays in bad:
        with pytest.raises(ValueError, match="dense segment"):
            DenseSegment.of(rows, arrays)
    for others in (rows[:-1], np.ascontiguousarray(rows[:, :60]), rows[:0]):
        with pytest.raises(ValueError, match="dense segment"):
            DenseSegment.of(others, good)
    for odd in (rows.astype(np.float32), rows[0], rows[:, ::2]):
        with pytest.raises(ValueError, match="float16"):
            DenseSegment.of(odd, {})  # type: ignore[arg-type]


def test_questions_that_do_not_fit_are_refused() -> None:
    segment = DenseSegment.build(np.ones((5, 4), np.float16))
    query = np.ones(4, np.float32)
    for call in (segment.search, segment.exact):
        with pytest.raises(ValueError, match="shape"):
            call(query[:3], 2)
        for usable in (np.ones(4, np.bool_), np.ones(5, np.int8)):
            with pytest.raises(ValueError, match="usable"):
                call(query, 2, usable)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finite"):
        segment.search(np.array([1, np.nan, 1, 1], np.float32), 2)
    for places in ([5], [-1], [0, 1 << 40]):
        with pytest.raises(IndexError, match="numbered"):
            segment.scores(query, np.array(places, np.int64))


@pytest.mark.parametrize("kind", ["auto", "exact", "rabitq", "ivf", "hnsw"])
def test_empty(kind: vectors.DenseKind) -> None:
    for shape in ((0, 8), (0, 1)):
        segment = DenseSegment.of(np.empty(shape, np.float16), {})
        assert not DenseSegment.build(np.empty(shape, np.float16), kind).arrays()
        for usable in (None, np.empty(0, np.bool_)):
            places, scores = segment.search(np.ones(shape[1], np.float32), 3, usable)
            assert (places.dtype, scores.dtype, len(places), len(scores)) == (np.int64, np.float32, 0, 0)
        assert len(segment.scores(np.ones(shape[1], np.float32), np.empty(0, np.int64))) == 0
