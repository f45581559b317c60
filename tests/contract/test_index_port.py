"""What every store behind the index's port must do: run over the real one and over a plain list in memory.

A store that puts another database behind the port joins `STORES` and passes the same tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.index import bm25 as bm25_room
from app.index import search as index_search
from app.index import upkeep
from app.index.bm25 import Asked, Statistics
from app.index.collection import CollectionInfo, CollectionSettings, CollectionStats, Document, StoredDocument
from app.index.filters import Filter, matches, parse
from app.index.fusion import Legs
from app.index.port import Finder, Found, Scored, Store, View
from app.index.search import SPARE, check, search
from app.index.values import LEGS, SearchRequest
from model.embedding import OUTPUTS, Embedding, LexicalWeights
from model.scoring import FusionWeights
from tests.index_helpers import (
    COLBERT,
    FINGERPRINT,
    WIDTH,
    blend,
    bm25,
    embedding,
    made,
    most_bm25,
    opened,
    truth,
    words,
)

SETTINGS = CollectionSettings(colbert="float32", bm25=True)


class Listed:
    """Documents in a list: the port in its plainest form, scored one by one."""

    def __init__(self) -> None:
        self.info = CollectionInfo("c", SETTINGS, FINGERPRINT, WIDTH, COLBERT, "")
        self.held: dict[str, tuple[int, int, Document]] = {}
        self.seq = self.keys = 0

    def upsert(self, documents: Sequence[Document]) -> list[int]:
        numbers = {}
        for one in {document.id: document for document in documents}.values():
            self.seq += 1
            if one.id not in self.held:
                self.keys += 1
            key = self.held[one.id][0] if one.id in self.held else self.keys
            self.held[one.id] = (key, self.seq, one)
            numbers[one.id] = self.seq
        return [numbers[one.id] for one in documents]

    def delete(self, ids: Sequence[str]) -> int:
        gone = [one for one in set(ids) if self.held.pop(one, None)]
        self.seq += len(gone)
        return len(gone)

    def delete_where(self, condition: Filter) -> int:
        return self.delete(
            [name for name, (_, _, one) in self.held.items() if matches(condition, one.metadata)]
        )

    def get(self, doc_id: str) -> StoredDocument | None:
        return self._stored(*self.held[doc_id][1:]) if doc_id in self.held else None

    def stats(self) -> CollectionStats:
        text = sum(len(one.text.encode()) for _, _, one in self.held.values())
        return CollectionStats(len(self.held), self.seq, text, 0, 0, 0, 0)

    @contextmanager
    def view(self, condition: Filter | None) -> Iterator[ListedView]:
        allowed = {
            key: (seq, one)
            for key, seq, one in self.held.values()
            if condition is None or matches(condition, one.metadata)
        }
        counted = {one.id: one.terms for _, _, one in self.held.values() if one.terms is not None}
        yield ListedView(allowed, counted, self._stored)

    @staticmethod
    def _stored(seq: int, one: Document) -> StoredDocument:
        e = one.embedding
        return StoredDocument(one.id, one.text, one.metadata, e.tokens, e.truncated, seq, e.outputs)


class ListedView:
    def __init__(
        self,
        allowed: dict[int, tuple[int, Document]],
        counted: dict[str, LexicalWeights],
        stored: Callable[[int, Document], StoredDocument],
    ) -> None:
        self.allowed, self.counted, self.stored, self.count = allowed, counted, stored, len(allowed)
        self.finders: frozenset[Finder] = frozenset({"dense", "sparse", "bm25"})

    def statistics(self, terms: np.ndarray) -> Statistics:
        having = [sum(int(term) in one.indices for one in self.counted.values()) for term in terms]
        length = sum(int(one.values.sum()) for one in self.counted.values())
        return Statistics(len(self.counted), length, np.array(having, np.int64))

    def _true(self, query: Embedding, asked: Asked | None) -> dict[int, dict[str, float | None]]:
        by_words = {} if asked is None else bm25(asked.counts, self.counted)
        return {
            key: {**truth(query, one.embedding), "bm25": by_words.get(one.id)}
            for key, (_, one) in self.allowed.items()
        }

    def candidates(
        self, query: Embedding, legs: Sequence[Finder], count: int, asked: Asked | None = None
    ) -> Mapping[Finder, Found]:
        found: dict[Finder, Found] = {}
        true = self._true(query, asked)
        for leg in legs:
            scores = {key: one[leg] for key, one in true.items()}
            best = sorted(
                (key for key, score in scores.items() if score is not None and (leg == "dense" or score > 0)),
                key=lambda key: (-scores[key], key),
            )[:count]
            found[leg] = np.array(best, np.int64), np.array([scores[key] for key in best], np.float32)
        return found

    def keys(self) -> np.ndarray:
        return np.array(sorted(self.allowed), np.int64)

    def scores(self, keys: np.ndarray, query: Embedding, asked: Asked | None = None) -> Scored:
        present = np.array(sorted(set(keys.tolist()) & set(self.allowed)), np.int64)
        true = self._true(query, asked)
        rows = [true[int(key)] for key in present]
        columns = {
            leg: np.array([np.nan if row[leg] is None else row[leg] for row in rows], np.float64)
            for leg in LEGS
        }
        return Scored(present, Legs(**columns))

    def ids(self, keys: np.ndarray) -> dict[int, str]:
        return {int(key): self.allowed[int(key)][1].id for key in keys}

    def documents(self, keys: np.ndarray) -> dict[int, StoredDocument]:
        return {int(key): self.stored(*self.allowed[int(key)]) for key in keys if int(key) in self.allowed}

    def embeddings(self, documents: Mapping[int, StoredDocument]) -> dict[int, Embedding]:
        return {key: self.allowed[key][1].embedding for key in documents}

    def counts(self, keys: np.ndarray) -> dict[int, LexicalWeights]:
        found = {int(key): self.allowed[int(key)][1].terms for key in keys}
        return {key: one for key, one in found.items() if one is not None}


def _sqlite(folder: Path, stack: ExitStack) -> Store:
    return made(stack.enter_context(opened(folder)), settings=SETTINGS)


def _listed(folder: Path, stack: ExitStack) -> Store:
    return Listed()


STORES = {"sqlite": _sqlite, "listed": _listed}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(upkeep, "SEGMENT_ROWS", 16)
    with ExitStack() as stack:
        yield STORES[request.param](tmp_path, stack)


def _filled(store: Store, rng: np.random.Generator, count: int) -> dict[str, Document]:
    documents = {}
    for place in range(count):
        without = ((), (), (), ("dense",), ("sparse",), ("colbert",))[rng.integers(6)]
        documents[f"d{place}"] = Document(
            f"d{place}",
            f"text {place}",
            embedding(rng, without),
            {"n": place, "even": place % 2 == 0},
            terms=words(rng),
        )
    for first in range(0, count, 7):
        store.upsert(list(documents.values())[first : first + 7])
    return documents


def _bare(name: str, text: str, one: Embedding) -> Document:
    """A document of whose tokens nothing is said."""
    return Document(name, text, one, terms=bm25_room.no_terms())


def _counted(documents: Mapping[str, Document]) -> dict[str, LexicalWeights]:
    return {name: one.terms for name, one in documents.items() if one.terms is not None}


def _ids(view: View, keys: np.ndarray) -> list[str]:
    names = view.ids(keys)
    return [names[int(key)] for key in keys]


def test_what_was_stored_is_read(store: Store, seed: int) -> None:
    documents = _filled(store, np.random.default_rng(seed), 50)
    for name, one in documents.items():
        stored = store.get(name)
        assert stored is not None
        assert (stored.id, stored.text, stored.metadata) == (name, one.text, one.metadata)
        assert (stored.tokens, stored.truncated) == (one.embedding.tokens, one.embedding.truncated)
        assert stored.outputs == one.embedding.outputs
    assert store.get("nobody") is None
    assert store.stats().count == 50
    assert store.stats().text_bytes == sum(len(one.text) for one in documents.values())


def test_sequence_numbers_grow_and_of_one_id_the_last_wins(store: Store, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = store.upsert([_bare("a", "1", embedding(rng)), _bare("b", "2", embedding(rng))])
    again = store.upsert([_bare(name, text, embedding(rng)) for name, text in (("a", "3"), ("a", "4"))])
    assert first[0] < first[1] < again[0] == again[1]
    assert store.get("a").text == "4"  # type: ignore[union-attr]
    assert store.delete(["a", "a", "nobody"]) == 1 and store.delete(["a"]) == 0
    last = store.upsert([_bare("a", "5", embedding(rng))])
    assert last[0] > again[0] and store.stats().last_seq == last[0]
    assert store.delete_where(parse({})) == 2 and store.stats().count == 0


def test_candidates_are_the_best_of_each_leg(store: Store, seed: int) -> None:
    rng = np.random.default_rng(seed)
    documents = _filled(store, rng, 120)
    for source in (None, {"even": True}, {"n": {"$lt": 5}}, {"n": 1000}):
        condition = None if source is None else parse(source)
        allowed = {
            n: one for n, one in documents.items() if condition is None or matches(condition, one.metadata)
        }
        query, terms = embedding(rng), words(rng, 12)
        by_words = bm25(terms, _counted(documents))
        with store.view(condition) as view:
            assert view.count == len(allowed)
            assert sorted(_ids(view, view.keys())) == sorted(allowed)
            asked = bm25_room.asked(terms, view.statistics(terms.indices))
            found = view.candidates(query, ["dense", "sparse", "bm25"], 10 + SPARE, asked)
            for leg in ("dense", "sparse", "bm25"):
                keys, scores = found[leg]
                assert list(scores) == sorted(scores, reverse=True) and len(set(keys.tolist())) == len(keys)
                true = {
                    n: {**truth(query, one.embedding), "bm25": by_words[n]}[leg] for n, one in allowed.items()
                }
                true = {n: s for n, s in true.items() if s is not None and (leg == "dense" or s > 0)}
                if leg == "bm25":  # found by bounds
                    names = _ids(view, keys)
                    assert all(true[n] <= bound * (1 + 1e-5) for n, bound in zip(names, scores, strict=True))
                    if len(keys) >= 10 + SPARE:
                        others = [true[n] for n in set(true) - set(names)]
                        assert max(others, default=0.0) <= scores[-1] * (1 + 1e-5)
                        continue
                best = sorted(true.values(), reverse=True)[:10]
                got = sorted((true[name] for name in _ids(view, keys)), reverse=True)
                assert got[:10] == pytest.approx(best, abs=1e-5)
                if len(true) <= 10:
                    assert len(keys) == len(true)


def test_scores_are_the_equations_of_documents_that_exist(store: Store, seed: int) -> None:
    rng = np.random.default_rng(seed)
    documents = _filled(store, rng, 60)
    query, terms = embedding(rng), words(rng, 12)
    by_words = bm25(terms, _counted(documents))
    with store.view(parse({"n": {"$lt": 20}})) as view:  # which changes nothing of what the collection says
        asked = bm25_room.asked(terms, view.statistics(terms.indices))
        scored = view.scores(view.keys(), query, asked)
        expected = [by_words[name] for name in _ids(view, scored.keys)]
        np.testing.assert_allclose(scored.legs.bm25, expected, rtol=1e-5, atol=1e-6)
        if len(terms):
            assert asked.ceiling == pytest.approx(most_bm25(terms, _counted(documents)), rel=1e-6)
        counts = view.counts(scored.keys)
        for key, name in zip(scored.keys.tolist(), _ids(view, scored.keys), strict=True):
            own = documents[name].terms
            assert own is not None
            np.testing.assert_array_equal(counts[key].indices, own.indices)
            np.testing.assert_array_equal(counts[key].values, own.values)
    with store.view(None) as view:
        keys = view.keys()
        scored = view.scores(np.concatenate([keys[::-1], [10**9]]), query)
        np.testing.assert_array_equal(scored.keys, keys)
        assert np.isnan(scored.legs.bm25).all()
        for place, name in enumerate(_ids(view, scored.keys)):
            for leg in OUTPUTS:
                expected = truth(query, documents[name].embedding)[leg]
                found = scored.legs.of(leg)[place]
                assert np.isnan(found) if expected is None else found == pytest.approx(expected, abs=1e-5)
        stored = view.documents(keys[:5])
        for key, one in view.embeddings(stored).items():
            own = documents[stored[key].id].embedding
            for part in ("dense", "colbert"):
                if getattr(own, part) is None:
                    assert getattr(one, part) is None
                else:
                    np.testing.assert_allclose(getattr(one, part), getattr(own, part), atol=1e-6)
        without = view.scores(keys, Embedding(2, dense=query.dense))
        assert np.isnan(without.legs.sparse).all() and np.isnan(without.legs.colbert).all()


def test_a_view_is_of_one_moment(store: Store, seed: int) -> None:
    rng = np.random.default_rng(seed)
    documents = _filled(store, rng, 30)
    query = embedding(rng)
    with store.view(None) as view:
        before = view.scores(view.keys(), query)
        store.upsert([_bare("d3", "changed", embedding(rng)), _bare("new", "", embedding(rng))])
        store.delete(["d4"])
        after = view.scores(view.keys(), query)
        np.testing.assert_array_equal(before.keys, after.keys)
        np.testing.assert_array_equal(before.legs.dense, after.legs.dense)
        texts = {one.id: one.text for one in view.documents(view.keys()).values()}
        assert texts == {name: one.text for name, one in documents.items()}
    with store.view(None) as view:
        texts = {one.id: one.text for one in view.documents(view.keys()).values()}
        assert texts["d3"] == "changed" and "new" in texts and "d4" not in texts


@pytest.mark.parametrize("mode", ["hybrid", "dense", "sparse", "colbert", "bm25"])
def test_a_search_over_the_port_is_brute_force(store: Store, seed: int, mode: Any) -> None:
    rng = np.random.default_rng(seed)
    documents = _filled(store, rng, 90)
    counted = _counted(documents)
    for use in 3 * [FusionWeights(0.5, 0.2, 0.3), FusionWeights(0.3, 0.1, 0.2, 0.9)]:
        query, terms = embedding(rng), words(rng, 12)
        request = SearchRequest(query, mode=mode, weights=use, top_k=5, terms=terms)
        with store.view(None) as view:
            hits = search(view, request, check(request, store.info))
        by_words, most = bm25(terms, counted), most_bm25(terms, counted)
        scores = [{**truth(query, one.embedding), "bm25": by_words[n]} for n, one in documents.items()]
        expected = [blend(one, use, most) if mode == "hybrid" else one[mode] for one in scores]
        positive = mode in ("sparse", "bm25")
        kept = sorted((s for s in expected if s is not None and (not positive or s > 0)), reverse=True)
        assert [hit.score for hit in hits] == pytest.approx(kept[:5], rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("mode", ["hybrid", "colbert"])
def test_candidates_are_widened_while_others_could_reach_the_top(
    store: Store, monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:
    """The lower by dense score, the higher by ColBERT, up to a place far beyond the first candidates."""
    monkeypatch.setattr(index_search, "FIRST_CANDIDATES", 2)
    axes = np.eye(WIDTH, dtype=np.float32)[0], np.eye(COLBERT, dtype=np.float32)[:1]
    for place in range(90):
        late = 0.3 + 0.01 * place if place <= 40 else 0.2
        one = Embedding(2, dense=(1 - 0.005 * place) * axes[0], colbert=np.float32(late) * axes[1])
        store.upsert([_bare(f"d{place:02}", "", one)])
    query = Embedding(2, dense=axes[0], colbert=axes[1])
    use = FusionWeights(0.1, 0, 0.9)
    found = {}
    for candidates in (None, 2):
        request = SearchRequest(query, mode=mode, weights=use, top_k=3, candidates=max(3, candidates or 3))
        request = replace(request, candidates=None) if candidates is None else request
        with store.view(None) as view:
            found[candidates] = [hit.id for hit in search(view, request, check(request, store.info))]
    assert found[None] == ["d40", "d39", "d38"]
    assert "d40" not in found[2]  # a number of candidates that is asked for is kept to
