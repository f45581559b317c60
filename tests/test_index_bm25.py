"""BM25 as a leg of the index: the formula, statistics that follow every change, and bounds that hold."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.index import bm25 as room
from app.index import search as index_search
from app.index import upkeep
from app.index.bm25 import K1, MOST_COUNT
from app.index.collection import Collection, CollectionSettings, Database, Document, SearchRequest
from app.index.errors import CollectionExists, DocumentInvalid, QueryInvalid
from app.index.filters import parse
from app.index.posting_kernels import RANGE
from app.index.posting_types import Norms
from app.index.postings import Postings
from app.index.storage import FILE_NAME
from app.index.verify import verify
from model.embedding import Embedding, LexicalWeights
from model.scoring import FusionWeights
from tests.index_helpers import bm25, embedding, made, most_bm25, opened, words

SETTINGS = CollectionSettings(colbert="float32", bm25=True)


def counts(**times: int) -> LexicalWeights:
    """`a=2, c=1`: term 0 twice, term 2 once."""
    pairs = sorted((ord(name) - ord("a"), count) for name, count in times.items())
    return LexicalWeights(
        np.array([term for term, _ in pairs], np.int32), np.array([count for _, count in pairs], np.float32)
    )


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.setattr(upkeep.Upkeep, "wake", lambda self: None)
    with opened(tmp_path) as database:
        yield database


def put(where: Collection, documents: dict[str, LexicalWeights], rng: np.random.Generator) -> None:
    batch = [
        Document(name, "", embedding(rng), {"n": int(name[1:])}, terms=one) for name, one in documents.items()
    ]
    for first in range(0, len(batch), 64):
        where.upsert(batch[first : first + 64])


def asked(terms: LexicalWeights, **fields: object) -> SearchRequest:
    return replace(SearchRequest(Embedding(2), mode="bm25", terms=terms), **fields)  # type: ignore[arg-type]


def test_the_formula_on_numbers_that_can_be_checked_by_hand(
    database: Database, rng: np.random.Generator
) -> None:
    where = made(database, settings=SETTINGS)
    put(where, {"d1": counts(a=2, b=2), "d2": counts(a=1, c=1), "d3": counts(c=6)}, rng)
    # N 3, mean 4; a: df 2, ln(1 + 1.5 / 2.5); b: df 1, ln(1 + 2.5 / 1.5).
    idf_a, idf_b = math.log(1.6), math.log(1 + 5 / 3)
    # norms: 1.2 * (0.25 + 0.75 * 4 / 4) = 1.2 and, of two tokens, 1.2 * 0.625 = 0.75.
    first = idf_a * 2 * 2.2 / 3.2 + 3 * idf_b * 2 * 2.2 / 3.2
    second = idf_a * 2.2 / 1.75
    hits = where.search(asked(counts(a=1, b=3)))
    assert [hit.id for hit in hits] == ["d1", "d2"]  # d3 shares no token
    assert [hit.score for hit in hits] == pytest.approx([first, second], rel=1e-6)
    assert (hits[0].scores.bm25, hits[0].scores.dense) == (hits[0].score, None)
    assert [hit.ranks.bm25 for hit in hits] == [1, 2]
    (hit,) = where.search(asked(counts(b=1, c=5), filter=parse({"n": 1})))
    assert hit.score == pytest.approx(idf_b * 2 * 2.2 / 3.2, rel=1e-6)  # a filter changes no statistic
    assert where.search(asked(counts(z=1))) == []
    assert where.search(asked(counts())) == []


def test_an_explanation_adds_up(database: Database, rng: np.random.Generator) -> None:
    where = made(database, settings=SETTINGS)
    documents = {f"d{place}": words(rng) for place in range(40)}
    put(where, documents, rng)
    query = counts(a=1, b=2, c=1, d=3, e=1)
    hits = where.search(asked(query, top_k=50, with_embeddings=True))
    assert hits
    for hit in hits:
        assert sum(term.product for term in hit.terms) == pytest.approx(hit.score, rel=1e-5)
        own = documents[hit.id]
        for term in hit.terms:
            assert own.values[own.indices == term.id] == term.count
            assert query.values[query.indices == term.id] == term.query_count
            assert 0 < term.product < term.idf * term.query_count * (K1 + 1)
    without = where.search(SearchRequest(embedding(rng), with_embeddings=True))
    assert all(hit.terms == () for hit in without)


def test_in_a_hybrid_it_is_divided_by_what_no_document_reaches(
    database: Database, rng: np.random.Generator
) -> None:
    where = made(database, settings=SETTINGS)
    documents = {f"d{place}": words(rng) for place in range(30)}
    documents["d99"] = counts(a=10**4, b=10**4)
    put(where, documents, rng)
    query = counts(a=1, b=2)
    only = FusionWeights(0, 0, 0, 7)
    hits = where.search(asked(query, mode="hybrid", weights=only, top_k=100))
    true, most = bm25(query, documents), most_bm25(query, documents)
    assert {hit.id: hit.score for hit in hits} == pytest.approx(
        {n: s / most for n, s in true.items()}, rel=1e-5
    )
    assert 0.9 < hits[0].score < 1 and hits[0].id == "d99"
    ranked = where.search(asked(query, mode="hybrid", fusion="rrf", weights=only, top_k=100))
    assert ranked[0].score == pytest.approx(7 / 61)
    assert [hit.score for hit in ranked if hit.ranks.bm25 is None] == [0.0] * sum(
        s == 0 for s in true.values()
    )


def test_what_it_cannot_do_is_said(database: Database, rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="bm25 is off"):
        CollectionSettings(fusion=FusionWeights(1, 1, 1, 1))
    plain, where = made(database, "plain"), made(database, settings=SETTINGS)
    with pytest.raises(CollectionExists):
        made(database, "plain", SETTINGS)
    one, terms = embedding(rng), counts(a=1)
    plain.upsert([Document("a", "", one, terms=terms)])
    for wrong, part in (
        (asked(terms), "mode"),
        (SearchRequest(one, weights=FusionWeights(1, 0, 0, 0.1), terms=terms), "weights"),
    ):
        with pytest.raises(QueryInvalid, match="without bm25") as caught:
            plain.search(wrong)
        assert caught.value.part == part
    (hit,) = plain.search(SearchRequest(one, terms=terms, with_embeddings=True))
    assert (hit.scores.bm25, hit.ranks.bm25, hit.terms) == (None, None, ())
    assert (plain.stats().terms_bytes, plain.stats().length) == (0, 0)
    with pytest.raises(DocumentInvalid, match="how often each token") as refused:
        where.upsert([Document("a", "", one, terms=terms), Document("b", "", one)])
    assert (refused.value.document_id, refused.value.part) == ("b", "terms")
    half = LexicalWeights(np.array([1], np.int32), np.array([0.5], np.float32))
    with pytest.raises(DocumentInvalid, match="whole number"):
        where.upsert([Document("b", "", one, terms=half)])
    with pytest.raises(QueryInvalid, match="whole number"):
        where.search(asked(half))
    assert where.stats().count == 0
    where.upsert([Document("a", "", one, terms=terms)])
    with pytest.raises(QueryInvalid, match="needs a text"):
        where.search(SearchRequest(one, mode="bm25"))
    with pytest.raises(QueryInvalid, match="nor a text"):
        where.search(SearchRequest(one, weights=FusionWeights(0, 0, 0, 1)))
    # Vectors alone may be searched for: the leg that needs a text has no weight then.
    (hit,) = where.search(SearchRequest(one, weights=FusionWeights(1, 0, 0, 1)))
    assert hit.scores.bm25 is None and hit.score == hit.scores.dense


def test_statistics_follow_every_change(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replaced, deleted, sealed, merged, lost: counts of documents and lengths are those of what there is."""
    monkeypatch.setattr(upkeep, "SEGMENT_ROWS", 32)
    monkeypatch.setattr(upkeep.Upkeep, "wake", lambda self: None)
    documents: dict[str, LexicalWeights] = {}
    terms = np.arange(30, dtype=np.int32)

    def check(where: Collection) -> None:
        with where.view(parse({"n": {"$lt": 7}})) as view:
            known = view.statistics(terms)
        having = [sum(int(term) in one.indices for one in documents.values()) for term in terms]
        assert known.frequencies.tolist() == having
        assert known.documents == len(documents)
        assert (
            known.length == sum(int(one.values.sum()) for one in documents.values()) == where.stats().length
        )
        assert where.load().mean == pytest.approx(room.mean_length(known.documents, known.length))

    with opened(tmp_path) as database:
        where = made(database, settings=SETTINGS)
        check(where)
        for turn in range(6):
            some = {f"d{place}": words(rng) for place in rng.integers(0, 200, 40)}
            put(where, some, rng)
            documents.update(some)
            check(where)
            for name in rng.choice(sorted(documents), turn):
                assert where.delete([str(name)]) == (documents.pop(str(name), None) is not None)
            check(where)
            if turn != 4:
                where.seal()
                check(where)
        assert any(part.living < len(part.rows) for part in where.load().parts)
        while where.merge(idle=True):
            check(where)
    with opened(tmp_path) as database:
        check(database.get("c"))
    for path in tmp_path.rglob("*.segment"):
        path.unlink()
    with opened(tmp_path) as database:
        check(database.get("c"))


@pytest.mark.parametrize("tended", [False, True])
def test_bounds_hold_though_the_mean_length_has_changed(
    database: Database, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, tended: bool
) -> None:
    """Short texts first, then long ones: segments' impacts are of another mean, and the best are found all
    the same, with few candidates."""
    monkeypatch.setattr(upkeep, "SEGMENT_ROWS", 100)
    monkeypatch.setattr(index_search, "FIRST_CANDIDATES", 3)
    monkeypatch.setattr(index_search, "SPARE", 0)
    where = made(database, settings=SETTINGS)
    documents: dict[str, LexicalWeights] = {}
    for often in (1, 40, 3, 200):
        some = {f"d{len(documents) + place}": words(rng, 25, often) for place in range(100)}
        put(where, some, rng)
        documents.update(some)
        assert where.seal()
        while tended and where.merge(idle=False):
            pass
    some = {f"d{400 + place}": words(rng, 25, 9) for place in range(30)}
    put(where, some, rng)
    documents.update(some)
    while tended and where.merge(idle=False):
        pass
    state = where.load()
    drifted = [part.rows.mean / state.mean for part in state.parts]
    assert all(1 / upkeep.DRIFT <= one <= upkeep.DRIFT for one in drifted) if tended else min(drifted) < 0.1
    for _ in range(25):
        query = words(rng, 10, 2)
        true = bm25(query, documents)
        best = sorted((score for score in true.values() if score > 0), reverse=True)
        hits = where.search(asked(query, top_k=3))
        assert [hit.score for hit in hits] == pytest.approx(best[:3], rel=1e-5)
        with where.view(None) as view:
            known = room.asked(query, view.statistics(query.indices))
            keys, bounds = view.candidates(Embedding(2), ["bm25"], 20, known)["bm25"]
            names = view.ids(keys)
        found = {names[key]: float(bound) for key, bound in zip(keys.tolist(), bounds, strict=True)}
        assert all(true[name] <= bound * (1 + 1e-6) for name, bound in found.items())
        if len(found) == 20:
            last = min(found.values()) * (1 + 1e-6)
            assert all(true[name] <= last for name in set(true) - set(found))
        if tended and found:
            assert max(bound / true[name] for name, bound in found.items()) < upkeep.DRIFT * 1.001


def test_a_segment_of_another_mean_length_is_written_anew(
    database: Database, rng: np.random.Generator
) -> None:
    where = made(database, settings=SETTINGS)
    put(where, {f"d{place}": counts(a=1, b=1 + place % 3) for place in range(20)}, rng)
    assert where.seal(least=1) and not where.merge(idle=False)
    put(where, {"d20": counts(c=3)}, rng)
    assert not where.merge(idle=False)  # the mean is nearly what it was
    put(where, {f"d{place}": counts(a=50, c=place) for place in range(21, 30)}, rng)
    (before,) = where.load().parts
    assert where.merge(idle=False) and not where.merge(idle=False)
    (after,) = where.load().parts
    assert before.rows.mean < after.rows.mean == where.load().mean
    assert after.rows.lengths is not None and after.rows.lengths.tolist() == [2 + n % 3 for n in range(20)]
    where.delete_where(parse({"n": {"$gte": 20}}))
    assert where.merge(idle=False)  # and back
    assert where.load().parts[0].rows.mean == pytest.approx(before.rows.mean)


def test_it_puts_up_candidates_for_a_hybrid_that_gives_it_weight(
    database: Database, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document that no other leg would find: far by its vector, without a lexical weight."""
    monkeypatch.setattr(index_search, "FIRST_CANDIDATES", 2)
    monkeypatch.setattr(index_search, "SPARE", 0)
    where = made(database, settings=SETTINGS)
    axis = np.eye(12, dtype=np.float32)
    near = [Document(f"d{place}", "", Embedding(2, dense=axis[0]), terms=counts(b=9)) for place in range(60)]
    where.upsert([*near, Document("far", "", Embedding(2, dense=-axis[0]), terms=counts(a=9))])
    request = SearchRequest(Embedding(2, dense=axis[0]), terms=counts(a=1), top_k=2)
    found = {}
    for weight in (0.0, 50.0):
        hits = where.search(replace(request, weights=FusionWeights(1, 0, 0, weight)))
        found[weight] = [hit.id for hit in hits]
        assert all(hit.scores.bm25 is not None for hit in hits)
    assert "far" not in found[0.0] and found[50.0][0] == "far"


def test_a_hybrid_takes_more_candidates_while_others_could_reach_the_top_by_bm25(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lower by dense score the higher by BM25; neither leg alone puts up the best of both early."""
    monkeypatch.setattr(index_search, "FIRST_CANDIDATES", 3)
    monkeypatch.setattr(index_search, "SPARE", 0)
    where = made(database, settings=SETTINGS)
    axis = np.eye(12, dtype=np.float32)[0]
    for place in range(90):
        # Of equal length; in the middle both scores are good, at the ends one of them is 0.
        times = min(place, 89 - place) + 1 if 20 < place < 70 else place // 3 + 1
        one = Embedding(2, dense=np.float32(1 - place / 90) * axis)
        where.upsert([Document(f"d{place}", "", one, terms=counts(a=times, z=200 - times))])
    query = SearchRequest(
        Embedding(2, dense=axis), terms=counts(a=1), top_k=3, weights=FusionWeights(1, 0, 0, 1)
    )
    exact = [(hit.id, hit.score) for hit in where.search(replace(query, exact=True))]
    assert [(hit.id, hit.score) for hit in where.search(query)] == exact
    assert [(hit.id, hit.score) for hit in where.search(replace(query, candidates=3))] != exact


def test_texts_without_a_token_and_of_very_many(database: Database, rng: np.random.Generator) -> None:
    where = made(database, settings=SETTINGS)
    put(where, {f"d{place}": counts() for place in range(5)}, rng)
    assert where.load().mean == 1.0 and where.seal(least=1)
    assert where.search(asked(counts(a=1))) == []
    endless = LexicalWeights(np.array([0], np.int32), np.array([1e9], np.float32))
    put(where, {"d9": endless}, rng)
    (hit,) = where.search(asked(endless, with_embeddings=True))
    assert hit.terms[0].count == hit.terms[0].query_count == MOST_COUNT == where.stats().length
    most = most_bm25(counts(a=MOST_COUNT), {**{str(n): counts() for n in range(5)}, "d9": endless})
    assert hit.score == pytest.approx(most, rel=1e-3)
    where.seal(least=1)
    while where.merge(idle=True):
        pass
    assert [one.id for one in where.search(asked(endless))] == ["d9"]
    where.delete_where(parse({}))
    assert (where.stats().length, where.stats().terms_bytes) == (0, 0)
    assert where.search(asked(counts(a=1))) == []


def test_counts_are_under_the_digest(tmp_path: Path, rng: np.random.Generator) -> None:
    with opened(tmp_path) as database:
        put(made(database, settings=SETTINGS), {"d1": counts(a=1), "d2": counts(a=2, b=1)}, rng)
    assert verify(tmp_path).damaged == ()
    for column in ("terms", "counts"):
        with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection, connection:
            (old,) = connection.execute(f"SELECT {column} FROM vectors WHERE document = 2").fetchone()
            connection.execute(
                f"UPDATE vectors SET {column} = ? WHERE document = 2", (bytes([old[0] ^ 4, *old[1:]]),)
            )
        assert [one.id for one in verify(tmp_path).damaged] == ["d2"]
        with opened(tmp_path) as database:
            assert [hit.id for hit in database.get("c").search(asked(counts(a=1), exact=True))] == ["d1"]
        with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection, connection:
            connection.execute(f"UPDATE vectors SET {column} = ? WHERE document = 2", (old,))
    assert verify(tmp_path).damaged == ()


# Posting lists


def _lists(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of one to three of 40 terms, low ones in more of them, with counts."""
    drawn = np.sort((40 * rng.random((rows, 3)) ** 2).astype(np.int32), axis=1)
    kept = np.concatenate([np.ones((rows, 1), bool), drawn[:, 1:] > drawn[:, :-1]], axis=1)
    offsets = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
    terms = drawn[kept]
    return offsets, terms, rng.choice([1, 1, 2, 7, 900], len(terms)).astype(np.float32)


@pytest.mark.parametrize("dead", [0.0, 0.0001, 0.02, 0.9, 1.0])
def test_rows_that_live_are_counted(rng: np.random.Generator, dead: float) -> None:
    offsets, terms, values = _lists(rng, RANGE + 9000)
    lists = Postings.build(offsets, terms, values)
    living = rng.random(lists.rows) >= dead
    rows = np.repeat(np.arange(lists.rows), np.diff(offsets))
    wanted = np.array([0, 1, 7, 39, 40, 2**31 - 1], np.int32)
    for flags in (living, None):
        expected = [np.count_nonzero((terms == term) & (flags is None or living[rows])) for term in wanted]
        if flags is None:
            expected = [np.count_nonzero(terms == term) for term in wanted]
        assert lists.frequencies(wanted, flags).tolist() == expected
    nothing = Postings.build(np.zeros(1, np.int64), terms[:0], values[:0])
    assert nothing.frequencies(wanted, np.empty(0, np.bool_)).tolist() == [0] * 6


def test_impacts_of_another_mean_length(rng: np.random.Generator) -> None:
    """Merged from two means to a third they are what they would be if they had been made with it."""
    offsets, terms, values = _lists(rng, RANGE + 3000)
    lengths = room.row_lengths(offsets, values)
    assert lengths.tolist()[:5] == [int(values[offsets[r] : offsets[r + 1]].sum()) for r in range(5)]

    def built(mean: float) -> Postings:
        return Postings.build(offsets, terms, room.entry_impacts(offsets, values, lengths, mean))

    living = rng.random(len(lengths)) < 0.7
    every = np.ones(len(lengths), np.bool_)
    both = np.concatenate([lengths[living], lengths])
    before = np.concatenate([room.norms(lengths[living], 3.0), room.norms(lengths, 900.0)])
    merged = Postings.merged(
        [(built(3.0), living), (built(900.0), every)], Norms(before, room.norms(both, 40.0), K1 + 1)
    )
    fresh = Postings.merged([(built(40.0), living), (built(40.0), every)])
    for name, array in fresh.arrays().items():
        if name in ("weights", "run_maxima"):
            np.testing.assert_allclose(merged.arrays()[name], array, rtol=1e-6)
        elif name != "codes":
            np.testing.assert_array_equal(merged.arrays()[name], array)
    Postings.of(merged.arrays())
    weights = built(3.0).arrays()["weights"].copy()
    weights[5] = K1 + 1
    damaged = Postings.of({**built(3.0).arrays(), "weights": weights})
    with pytest.raises(ValueError, match="no impacts"):
        Postings.merged([(damaged, every)], Norms(*2 * [room.norms(lengths, 40.0)], K1 + 1))
