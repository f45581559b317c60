"""The search benchmark's corpus and arithmetic, and one tiny run of Trivec's side. No peers are needed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import search, synthetic
from benchmarks.search_sides import measuring, registry, truth
from benchmarks.search_sides.protocol import FILTERS, Ask
from benchmarks.synthetic import BLOCK, Batch, Corpus
from model.embedding import LexicalWeights
from model.scoring import FusionWeights, colbert_score, dense_score, hybrid_score, lexical_score

DOCUMENTS = 2 * BLOCK + 130
SMALL = {"width": 48, "vocabulary": 4000}


def same(ours: Batch, theirs: Batch) -> bool:
    arrays = ("dense", "starts", "terms", "weights", "rows")
    return (
        all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in arrays)
        and ours.metadata == theirs.metadata
        and ours.texts == theirs.texts
        and ours.ids == theirs.ids
    )


@pytest.mark.parametrize("size", [1, 64, BLOCK, 700, 10_000])
def test_documents_do_not_depend_on_the_batch_size(seed: int, size: int) -> None:
    whole = Corpus(seed, DOCUMENTS, **SMALL).batch(0, DOCUMENTS)
    batches = list(Corpus(seed, DOCUMENTS, **SMALL).batches(size))
    assert [len(one) for one in batches[:-1]] == [size] * (len(batches) - 1)
    assert same(synthetic.joined(batches), whole)


def test_a_corpus_is_its_seeds_and_parts_of_it_can_be_made_alone(seed: int) -> None:
    corpus, again = (Corpus(seed, DOCUMENTS, **SMALL) for _ in range(2))
    part = again.batch(DOCUMENTS - 7, DOCUMENTS)  # backwards: what was made before must not matter
    other = again.batch(3, 9)
    whole = corpus.batch(0, DOCUMENTS)
    assert same(part, whole.cut(DOCUMENTS - 7, DOCUMENTS)) and same(other, whole.cut(3, 9))
    assert np.array_equal(again.token_rows(other, 2), corpus.token_rows(whole, 5))
    for ours, theirs in zip(corpus.codes(whole.cut(3, 9), 5), again.codes(other, 5), strict=True):
        assert np.array_equal(ours, theirs)
    for ours, theirs in zip(corpus.queries(9), again.queries(9), strict=True):
        assert ours.source == theirs.source and np.array_equal(ours.rows, theirs.rows)
        assert np.array_equal(ours.dense, theirs.dense) and np.array_equal(ours.terms, theirs.terms)
    assert not np.array_equal(Corpus(seed + 1, DOCUMENTS, **SMALL).batch(0, 5).dense, whole.dense[:5])


def test_the_documents_have_the_stated_statistics(seed: int) -> None:
    corpus = Corpus(seed, 50_000)
    batch = corpus.batch(0, 4000)
    assert np.allclose(np.linalg.norm(batch.dense, axis=1), 1, atol=1e-5)
    cosines = batch.dense @ batch.dense.T
    pairs = cosines[np.triu_indices(len(batch), 1)]
    low, middle, high = np.percentile(pairs, [5, 50, 95])
    assert 0.2 < low < 0.33 and 0.3 < middle < 0.45 and high < 0.6
    np.fill_diagonal(cosines, -1)
    low, middle, high = np.percentile(cosines.max(axis=1), [5, 50, 95])
    assert low > 0.55 and 0.68 < middle < 0.85 and high < 0.93
    # A falling spectrum that is not that of the axes.
    spectrum = np.linalg.svd(batch.dense - batch.dense.mean(axis=0), compute_uv=False) ** 2
    assert spectrum[:100].sum() > 0.45 * spectrum.sum()
    assert np.sort(batch.dense.var(axis=0))[-100:].sum() < 0.2 * batch.dense.var(axis=0).sum()

    lengths = np.diff(batch.starts)
    assert lengths.max() <= 150 and 85 < lengths.mean() < 110
    assert (lengths <= 0.9 * batch.rows).all() and (lengths[batch.rows > 70] >= 60).all()
    assert len(batch.terms) == batch.starts[-1] and batch.starts[0] == 0
    for place in range(0, 4000, 97):
        LexicalWeights(*batch.lexical(place))  # refuses what does not ascend, is not distinct, is not above 0
    assert batch.terms.min() >= 4 and batch.terms.max() < corpus.vocabulary
    frequencies = np.bincount(batch.terms, minlength=corpus.vocabulary)
    order = np.argsort(-frequencies)
    shares = frequencies[order] / len(batch)
    assert shares[0] > 0.7 and 0.05 < shares[30] < 0.4 and shares[3000] < 0.02
    # Zipf, where the most frequent do not saturate it: the frequency falls as the rank rises.
    slope = np.polyfit(np.log(np.arange(30, 300)), np.log(shares[30:300]), 1)[0]
    assert -1.4 < slope < -0.4
    medians = [
        np.median(batch.weights[np.isin(batch.terms, order[part])])
        for part in (slice(0, 10), slice(2000, 3000))
    ]
    assert 0.01 < medians[0] < 0.06 and 0.1 < medians[1] < 0.4

    assert batch.rows.min() >= 20 and batch.rows.max() <= 512 and 140 < batch.rows.mean() < 155
    assert 500 < np.mean([len(text) for text in batch.texts]) < 700
    assert len({*batch.ids}) == 4000 and len({*map(len, batch.ids)}) == 1
    languages = [one["lang"] for one in batch.metadata]
    assert 0.36 < languages.count("en") / 4000 < 0.44 and len({*languages}) == 7
    assert 950 < len({one["tenant"] for one in batch.metadata}) <= 1000
    assert 0.45 < sum(bool(one["half"]) for one in batch.metadata) / 4000 < 0.55
    assert {type(one["year"]) for one in batch.metadata} == {int}


def test_queries_and_token_rows_lie_near_their_document(seed: int) -> None:
    corpus = Corpus(seed, DOCUMENTS)
    batch = corpus.batch(0, DOCUMENTS)
    for query in corpus.queries(6):
        assert query.rows.shape == (32, 1024) and np.isclose(np.linalg.norm(query.dense), 1, atol=1e-5)
        assert np.allclose(np.linalg.norm(query.rows, axis=1), 1, atol=1e-5)
        assert 0.65 < query.dense @ batch.dense[query.source] < 0.85
        terms, _ = batch.lexical(query.source)
        assert len(LexicalWeights(query.terms, query.weights)) == 12 and {*query.terms} <= {*terms}
        rows = corpus.token_rows(batch, query.source)
        assert rows.shape == (batch.rows[query.source], 1024) and rows.dtype == np.float32
        assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
        other = corpus.token_rows(batch, (query.source + 1) % DOCUMENTS)
        assert colbert_score(query.rows, rows) > colbert_score(query.rows, other) + 0.1


def test_rows_of_one_term_are_alike_in_two_documents(seed: int) -> None:
    corpus = Corpus(seed, DOCUMENTS)
    batch = corpus.batch(0, 40)
    longest = int(np.argmax(batch.rows))
    terms = {*batch.lexical(longest)[0]}
    shared = [len(terms & {*batch.lexical(place)[0]}) * (place != longest) for place in range(40)]
    ours, theirs = (corpus.token_rows(batch, place) for place in (longest, int(np.argmax(shared))))
    best = np.sort((ours @ theirs.T).max(axis=1))
    assert max(shared) >= 3 and best[-1] > 0.6 > best[0]


def test_percentiles_are_measured_values() -> None:
    assert measuring.percentile(range(1, 101), 50) == 50
    assert measuring.percentile(range(1, 101), 99) == 99
    assert measuring.percentile([7.0], 99) == 7 and measuring.percentile([3, 1, 2], 50) == 2
    assert measuring.percentile([3, 1, 2], 99) == 3


def test_recall_counts_documents_that_were_found() -> None:
    assert measuring.recall([[1, 2, 3], [9]], [[1, 2, 4, 5], [9]]) == 0.75
    assert measuring.recall([[], [1]], [[], [1]]) == 1.0  # without a right answer there is nothing to miss
    assert measuring.recall([[2, 2]], [[1, 2]]) == 0.5


def test_sides_take_turns_with_the_same_queries() -> None:
    calls: list[tuple[str, int]] = []

    def side(name: str, seconds: float) -> measuring.Run:
        def run(queries: object) -> dict[str, object]:
            count = len(list(queries))  # type: ignore[call-overload]
            calls.append((name, count))
            drift = 1 + len(calls)  # both are slower with every round, as on a busy machine
            return {
                "seconds": [seconds * drift] * count,
                "found": [[]] * count,
                "own_s": 1.0,
                "others_s": 0.0,
            }

        return run

    rounds = measuring.in_turns(side("a", 0.001), side("b", 0.002), 8, 4, 60.0)
    assert calls[-8:] == [("a", 8), ("b", 8)] * 4
    assert len(rounds.base) == len(rounds.peer) == 4 and all(2 < one < 2.5 for one in rounds.ratios)
    slow = measuring.in_turns(side("a", 0.001), side("b", 5.0), 50, 2, 60.0)
    assert len(slow.queries) == measuring.PROBES
    alone = measuring.in_turns(side("a", 0.001), None, 5, 2, 60.0)
    assert alone.ratios == [] and alone.peer == () and len(alone.queries) == 5


def test_a_summary_is_over_all_rounds() -> None:
    found = measuring.summary(
        [
            {"seconds": [0.001, 0.002], "own_s": 0.003, "others_s": 0.0},
            {"seconds": [0.003, 0.010], "own_s": 0.026, "others_s": 0.013},
        ]
    )
    assert found["p50_ms"] == 2.0 and found["p99_ms"] == 10.0 and found["mean_ms"] == 4.0
    assert (
        found["timed_queries"] == 4 and found["cores_used"] == 1.5 and found["cores_taken_by_others"] == 0.5
    )


def test_the_truth_is_that_of_the_equations(seed: int) -> None:
    corpus = Corpus(seed, 90, **SMALL)
    queries, batch = corpus.queries(3), corpus.batch(0, 90)
    found = truth.find(corpus, queries, colbert=True)
    assert found.colbert is not None
    for place, query in enumerate(queries):
        scores = []
        for number in range(90):
            dense = dense_score(query.dense, batch.dense[number])
            sparse = lexical_score(
                LexicalWeights(query.terms, query.weights), LexicalWeights(*batch.lexical(number))
            )
            colbert = colbert_score(query.rows, corpus.token_rows(batch, number))
            assert np.isclose(found.dense[place, number], dense, atol=1e-5)
            assert np.isclose(found.lexical[place, number], sparse, atol=1e-5)
            assert np.isclose(found.colbert[place, number], colbert, atol=1e-5)
            scores.append(float(hybrid_score(FusionWeights(), dense, sparse, colbert)))
        best = found.best(Ask("hybrid"))
        assert best is not None
        assert np.allclose([scores[one] for one in best[place]], np.sort(scores)[::-1][:10], atol=1e-5)
        for name, condition in FILTERS.items():
            allowed = found.best(Ask("hybrid", k=90, filter=name))
            right = [n for n in range(90) if truth.holds(condition, batch.metadata[n][condition.field])]
            assert allowed is not None and sorted(allowed[place]) == right
    without = truth.find(corpus, queries, colbert=False)
    assert without.best(Ask("hybrid")) is None and without.best(Ask("dense")) is not None


def test_a_peer_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRIVEC_SEARCH_PYTHON", str(tmp_path / "nothing"))
    options = search.read_options(["--parts", "lexical", "--peers", "scipy,qdrant"])
    assert options.peers == [] and options.absent["scipy"].startswith("not installed")
    with pytest.raises(SystemExit):
        search.read_options(["--peers", "nobody"])


def test_every_part_asks_something_of_somebody() -> None:
    others = [name for name in registry.SIDES if name != registry.BASE]
    for part in ("lexical", "dense", "hybrid", "maxsim", "filters"):
        group = search.GROUPS.get(part, "all")
        assert search.asks(part)
        assert any(search.serves(name, part) and group in registry.SIDES[name].groups for name in others)


def test_a_tiny_run_of_trivec_alone(tmp_path: Path) -> None:
    options = search.read_options(
        "--documents 200 --peers none --queries 4 --rounds 2 --truth 3 --seed 5 --set colbert=float32 "
        f"--parts lexical,dense,hybrid,maxsim,filters,memory --folder {tmp_path}".split()
    )
    result = json.loads(json.dumps(search.measure(options)))
    rows = [row for group in result["groups"].values() for row in group["alone"]]
    assert [row["mode"] for row in rows] == [
        *("lexical", "dense", "dense", "hybrid", "hybrid", "colbert"),
        *["hybrid"] * 4,
    ]
    for row in rows:
        assert row["base"]["timed_queries"] == 8 and row["base"]["p50_ms"] > 0
        assert row["base"][f"recall_at_{row['top']}"] >= (0.9 if row["mode"] != "colbert" else 0.5)
    whole = result["groups"]["all"]
    assert whole["base"]["documents_per_s"] > 0 and whole["opened_again"]["anonymous_mib"] > 0
    assert whole["memory"]["disk_mib"] > 50  # 200 documents of 147 float32 rows
    assert not list(tmp_path.iterdir())
