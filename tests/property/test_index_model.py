"""The collection against a dictionary: any sequence of changes and restarts, and no document lost or back."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.index import restage, upkeep
from app.index.collection import SEGMENTS, CollectionSettings, Document, SearchRequest
from app.index.errors import QueryInvalid
from app.index.filters import matches, parse
from app.index.owner import FolderLock
from model.embedding import LexicalWeights
from model.scoring import FusionWeights
from tests.index_helpers import (
    FINGERPRINT,
    blend,
    bm25,
    embedding,
    made,
    most_bm25,
    opened,
    truth,
    words,
)

_IDS = st.sampled_from([f"d{place}" for place in range(12)])
_SEEDS = st.integers(0, 2**32 - 1)
_WITHOUT = st.sampled_from([(), (), (), ("dense",), ("sparse",), ("colbert",), ("dense", "colbert")])
_METADATA = st.fixed_dictionaries(
    {},
    optional={
        "n": st.integers(0, 3),
        "tags": st.lists(st.sampled_from("ab"), max_size=2),
        "on": st.booleans(),
    },
)
_FILTERS = st.sampled_from(
    [
        {"n": {"$gte": 2}},
        {"tags": "a"},
        {"on": True},
        {"on": {"$ne": True}},
        {"$or": [{"n": 1}, {"tags": {"$in": ["b"]}}]},
        {"$not": {"n": {"$exists": True}}},
    ]
)
_MODES = st.sampled_from(["hybrid", "dense", "sparse", "colbert", "bm25"])
_WEIGHTS = st.sampled_from([FusionWeights(), FusionWeights(0.2, 0.1, 0.3, 0.8), FusionWeights(0, 0, 0, 1)])


def _document(
    name: str,
    text: str,
    rng: np.random.Generator,
    without: tuple[str, ...],
    metadata: Mapping[str, object],
) -> Document:
    one = embedding(rng, without)
    return Document(name, text, one, metadata, terms=words(rng))


class Index(RuleBasedStateMachine):
    """`documents` is what the collection must hold."""

    @initialize(with_bm25=st.booleans())
    def start(self, with_bm25: bool) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="trivec-model-"))
        self.documents: dict[str, Document] = {}
        self.last_seq = 0
        self.fingerprint = FINGERPRINT
        self.bm25 = with_bm25
        self.database = opened(self.folder)
        settings = CollectionSettings(colbert="float32", bm25=with_bm25)
        self.collection = made(self.database, settings=settings)

    def reopen(self) -> None:
        self.database = opened(self.folder, self.fingerprint)
        self.collection = self.database.get("c")

    def true(self, query: LexicalWeights) -> dict[str, dict[str, float | None]]:
        """BM25 scores of all documents; None where the collection has none."""
        if not self.bm25:
            return {name: {"bm25": None} for name in self.documents}
        counted = {name: one.terms for name, one in self.documents.items() if one.terms is not None}
        return {name: {"bm25": score} for name, score in bm25(query, counted).items()}

    @rule(entries=st.lists(st.tuples(_IDS, _SEEDS, _WITHOUT, _METADATA), min_size=1, max_size=5))
    def upsert(self, entries: list[tuple[str, int, tuple[str, ...], dict[str, object]]]) -> None:
        batch = [
            _document(name, f"text {seed}", np.random.default_rng(seed), without, metadata)
            for name, seed, without, metadata in entries
        ]
        numbers = self.collection.upsert(batch)
        assert min(numbers) > self.last_seq
        self.last_seq = max(numbers)
        self.documents.update({one.id: one for one in batch})

    @rule(names=st.lists(_IDS, max_size=4))
    def delete(self, names: list[str]) -> None:
        present = {name for name in names if name in self.documents}
        assert self.collection.delete(names) == len(present)
        for name in present:
            del self.documents[name]

    @rule(source=_FILTERS)
    def delete_where(self, source: dict[str, object]) -> None:
        condition = parse(source)
        gone = [name for name, one in self.documents.items() if matches(condition, one.metadata)]
        assert self.collection.delete_where(condition) == len(gone)
        for name in gone:
            del self.documents[name]

    @rule()
    def restart(self) -> None:
        self.database.close()
        self.reopen()

    @rule(seed=_SEEDS)
    def reindex(self, seed: int) -> None:
        """All vectors and counts by another model, of another tokenizer."""
        self.database.close()
        lock = FolderLock(self.folder)
        self.fingerprint = f"f{seed}"
        with closing(restage.Source(self.folder, "c", owned=True)) as source:
            if source.info.fingerprint != self.fingerprint:
                target = replace(source.info, fingerprint=self.fingerprint)
                with closing(restage.Staging(self.folder, source.key, target, {})) as staging:
                    for text in source.texts(source.versions()[0].tolist()):
                        old = self.documents[text.doc_id]
                        rng = np.random.default_rng([seed, text.key])
                        new = _document(text.doc_id, old.text, rng, (), old.metadata)
                        staging.put([staging.row(text, new.embedding, new.terms)])
                        self.documents[text.doc_id] = new
                restage.adopt(source, target, lambda *_: None)
        lock.release()
        self.reopen()

    @rule(idle=st.booleans())
    def tend(self, idle: bool) -> None:
        """What upkeep's threads do now and then, now."""
        self.collection.seal()
        while self.collection.merge(idle=idle):
            pass

    @rule(whole=st.booleans())
    def lose_derived_files(self, whole: bool) -> None:
        """Derived files go, or are torn, while nobody serves the folder."""
        self.database.close()
        for path in (self.folder / SEGMENTS).rglob("*.segment"):
            content = path.read_bytes()
            path.write_bytes(b"" if whole else content[: len(content) // 2])
        self.reopen()

    @precondition(lambda self: self.documents)
    @rule(
        seed=_SEEDS,
        mode=_MODES,
        source=st.one_of(st.none(), _FILTERS),
        exact=st.booleans(),
        candidates=st.sampled_from([1, 3, 100]),
        top_k=st.sampled_from([1, 2, 100]),
        use=_WEIGHTS,
    )
    def search(
        self,
        seed: int,
        mode: str,
        source: object,
        exact: bool,
        candidates: int,
        top_k: int,
        use: FusionWeights,
    ) -> None:
        rng = np.random.default_rng(seed)
        query, terms = embedding(rng), words(rng, 12)
        condition = None if source is None else parse(source)
        request = SearchRequest(
            query,
            mode=mode,
            weights=use,
            filter=condition,
            exact=exact,
            candidates=candidates,
            top_k=top_k,
            terms=terms,
        )
        if not self.bm25 and (mode == "bm25" or use.bm25):
            with pytest.raises(QueryInvalid, match="made without bm25"):
                self.collection.search(request)
            return
        hits = self.collection.search(request)
        by_words = self.true(terms)
        allowed = {
            name: {**truth(query, one.embedding), **by_words[name]}
            for name, one in self.documents.items()
            if condition is None or matches(condition, one.metadata)
        }
        most = most_bm25(
            terms, {name: one.terms for name, one in self.documents.items() if one.terms is not None}
        )
        expected = {}
        for name, scores in allowed.items():
            score = blend(scores, use, most) if mode == "hybrid" else scores[mode]
            if score is not None and (mode not in ("sparse", "bm25") or score > 0):
                expected[name] = score
        names = [hit.id for hit in hits]
        assert len(set(names)) == len(names) and set(names) <= set(expected)
        for hit in hits:
            assert hit.text == self.documents[hit.id].text
            assert hit.score == pytest.approx(expected[hit.id], rel=1e-6, abs=1e-5)
            for leg in ("dense", "sparse", "colbert", "bm25"):
                found, true = getattr(hit.scores, leg), allowed[hit.id][leg]
                assert found is true is None or found == pytest.approx(true, rel=1e-6, abs=1e-5)
        # The legs' own modes find the true best with any number of candidates; the others when all are.
        if exact or mode in ("dense", "sparse") or max(candidates, top_k) >= len(allowed):
            best = sorted(expected.values(), reverse=True)[:top_k]
            assert [hit.score for hit in hits] == pytest.approx(best, rel=1e-6, abs=1e-5)
        if mode == "hybrid":
            assert len(hits) == min(top_k, len(allowed))

    @invariant()
    def holds_what_it_should(self) -> None:
        stored = {one.id: one for one in self.collection.documents()}
        assert stored.keys() == self.documents.keys()
        for name, one in stored.items():
            wanted = self.documents[name]
            assert (one.text, one.metadata, one.outputs) == (
                wanted.text,
                wanted.metadata,
                wanted.embedding.outputs,
            )
        stats = self.collection.stats()
        assert stats.count == len(stored)
        assert stats.text_bytes == sum(len(one.text.encode()) for one in stored.values())
        counted = [one.terms for one in self.documents.values() if self.bm25 and one.terms is not None]
        assert stats.length == sum(int(one.values.sum()) for one in counted)
        assert stats.terms_bytes == 6 * sum(len(one) for one in counted)

    @invariant()
    def finds_the_best_of_either_leg(self) -> None:
        """With one candidate, so that it is the index in memory that finds it."""
        rng = np.random.default_rng(7)
        query, terms = embedding(rng, ("colbert",)), words(rng, 12)
        by_words = self.true(terms)
        for leg in ("dense", "sparse", "bm25") if self.bm25 else ("dense", "sparse"):
            found = (
                {**truth(query, one.embedding), **by_words[name]}[leg] for name, one in self.documents.items()
            )
            scores = [score for score in found if score is not None and (leg == "dense" or score > 0)]
            hits = self.collection.search(SearchRequest(query, mode=leg, candidates=1, top_k=1, terms=terms))
            assert [hit.score for hit in hits] == pytest.approx(sorted(scores)[-1:], rel=1e-6, abs=1e-5)

    def teardown(self) -> None:
        if hasattr(self, "database"):
            self.database.close()
            shutil.rmtree(self.folder)


@pytest.mark.parametrize("segment_rows", [2, 4096])
def test_the_index_is_a_dictionary_that_can_be_searched(
    monkeypatch: pytest.MonkeyPatch, segment_rows: int
) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    # With 2 nearly every change makes a segment, with 4,096 none does.
    monkeypatch.setattr(upkeep, "SEGMENT_ROWS", segment_rows)
    monkeypatch.setattr(upkeep, "MOST_RECENT", 4 * segment_rows)
    run_state_machine_as_test(
        Index,
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            deadline=None,
            print_blob=True,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
