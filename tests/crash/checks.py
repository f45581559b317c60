"""What must hold of a data folder after its process was killed, compared with brute force."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.index import upkeep
from app.index.backup import restore
from app.index.collection import SEGMENTS, Collection, Database, Document, SearchRequest
from app.index.search import SPARE
from app.index.storage import FILE_NAME
from model.embedding import Embedding, LexicalWeights
from model.scoring import FusionWeights
from tests.crash.writer import SEGMENT_ROWS, THREADS, State, applied, document
from tests.index_helpers import blend, bm25, embedding, opened, truth, words

ROOT = Path(__file__).parent.parent.parent
LEGS_ALONE = FusionWeights(0.5, 0.5, 0)
"""Weights with which candidates of the dense and the lexical index prove what the best hits are."""
Entry = dict[str, Any]
FLOAT16_ERROR = 4e-3
"""Documents whose scores are closer than this may be ranked either way by an index of float16."""


def process(*arguments: str) -> subprocess.Popen[str]:
    """A Python process of this project, whose output is read."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )


@contextmanager
def reopened(folder: Path) -> Iterator[tuple[Database, Collection]]:
    """The folder opened as a server does, with small segments and no threads; then its file is checked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upkeep, "SEGMENT_ROWS", SEGMENT_ROWS)
        patch.setattr(upkeep.Upkeep, "wake", lambda self: None)
        with opened(folder) as database:
            database.load()
            yield database, database.get("c")
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def held(collection: Collection) -> State:
    """The version of each document that is stored, each of one piece: text, metadata, vectors, outputs."""
    found: State = {}
    for one in collection.documents(limit=1_000_000):
        version = one.metadata["version"]
        assert isinstance(version, int)
        expected = document(one.id, version)
        assert (one.text, one.metadata, one.outputs) == (
            expected.text,
            expected.metadata,
            expected.embedding.outputs,
        )
        found[one.id] = version
    return found


def check_whole(collection: Collection, state: State, rng: np.random.Generator) -> None:
    """Sums, stored vectors and every kind of search of a collection that must hold `state`."""
    documents = [document(name, version) for name, version in sorted(state.items())]
    stats = collection.stats()
    assert stats.count == len(documents) == len({key for part in _living(collection) for key in part})
    assert stats.text_bytes == sum(len(one.text) for one in documents)
    assert stats.dense_bytes == sum(
        one.embedding.dense.nbytes for one in documents if one.embedding.dense is not None
    )
    counted = [one.terms for one in documents if one.terms is not None]
    if collection.info.settings.bm25:
        assert stats.length == sum(int(one.values.sum()) for one in counted)
    for one in documents[:: max(1, len(documents) // 5)]:
        _same(collection.embedding(one.id), one.embedding)
    for _ in range(2):
        check_searches(collection, documents, embedding(rng))


def check_searches(collection: Collection, documents: Sequence[Document], query: Embedding) -> None:
    """Dense, sparse, ColBERT and hybrid searches give the scores that brute force gives."""
    true = {one.id: truth(query, one.embedding) for one in documents}
    texts = {one.id: one.text for one in documents}
    hybrid = {name: blend(scores, FusionWeights()) for name, scores in true.items()}
    legs = {name: blend(scores, LEGS_ALONE) for name, scores in true.items()}
    dense = {name: scores["dense"] for name, scores in true.items() if scores["dense"] is not None}
    sparse = {name: scores["sparse"] for name, scores in true.items() if scores["sparse"]}
    colbert = {name: scores["colbert"] for name, scores in true.items() if scores["colbert"] is not None}
    everything = len(documents) + 1
    for request, expected in (
        (SearchRequest(query, mode="dense", top_k=10, candidates=10), dense),
        (SearchRequest(query, mode="sparse", top_k=10, candidates=10), sparse),
        (SearchRequest(query, mode="colbert", exact=True, top_k=10), colbert),
        (SearchRequest(query, exact=True, top_k=everything), hybrid),
        (SearchRequest(query, weights=LEGS_ALONE, top_k=5), legs),
    ):
        hits = collection.search(request)
        best = sorted(expected.values(), reverse=True)[: request.top_k]
        assert [hit.score for hit in hits] == pytest.approx(best, abs=FLOAT16_ERROR)
        for hit in hits:
            assert hit.score == pytest.approx(expected[hit.id], abs=1e-5)
            assert hit.text == texts[hit.id]
        if request.top_k == everything:
            assert {hit.id for hit in hits} == set(texts)
    if collection.info.settings.bm25:
        _check_words(collection, documents, words(np.random.default_rng(len(documents)), 12))


def _check_words(collection: Collection, documents: Sequence[Document], query: LexicalWeights) -> None:
    true = bm25(query, {one.id: one.terms for one in documents if one.terms is not None})
    request = SearchRequest(Embedding(2), mode="bm25", terms=query, top_k=10, candidates=10)
    hits = collection.search(request)
    for hit in hits:
        assert hit.score == pytest.approx(true[hit.id], rel=1e-5)
    best = sorted((score for score in true.values() if score > 0), reverse=True)[:10]
    few = len(documents) <= 10 + SPARE  # else what is found first depends on how the mean length has changed
    exact = hits if few else collection.search(replace(request, exact=True))
    assert [hit.score for hit in exact] == pytest.approx(best, rel=1e-5)
    assert len(hits) == len(best)


def check_backup(file: Path, folder: Path, rng: np.random.Generator) -> State:
    """What a backup holds, once it has been restored and searched."""
    restore(file, folder)
    with reopened(folder) as (_, collection):
        state = held(collection)
        check_whole(collection, state, rng)
    shutil.rmtree(folder)
    return state


class Changes:
    """One thread's documents after each of its changes, and how far it was at each line of the log."""

    def __init__(self, state: State, entries: Sequence[Entry], thread: int) -> None:
        self.states = [state]
        self.acknowledged = [0]
        """At each line of the whole log: how many changes had been acknowledged."""
        self.begun = [0]
        for entry in entries:
            begun, acknowledged = self.begun[-1], self.acknowledged[-1]
            if entry.get("thread") == thread:
                if entry["do"] == "acknowledged":
                    acknowledged += 1
                else:
                    begun += 1
                    self.states.append(applied(self.states[-1], entry))
            self.begun.append(begun)
            self.acknowledged.append(acknowledged)

    def agrees(self, found: State, first: int, last: int) -> bool:
        """Whether these are the documents at one moment from line `first` on up to line `last`."""
        return found in self.states[self.acknowledged[first] : self.begun[last] + 1]


def _of(state: State, thread: int) -> State:
    return {name: version for name, version in state.items() if name.startswith(f"d{thread}-")}


def check_killed(folder: Path, before: State, entries: list[Entry], rng: np.random.Generator) -> State:
    """What a killed process left, compared with what it said; `before` is what it began with."""
    threads = [Changes(_of(before, thread), entries, thread) for thread in range(THREADS)]
    end = len(entries)
    with reopened(folder / "data") as (_, collection):
        after = held(collection)
        for thread, log in enumerate(threads):
            assert log.agrees(_of(after, thread), end, end), (
                f"thread {thread} holds {_of(after, thread)}, not {log.states[log.acknowledged[-1]]} "
                f"nor, with what was under way, {log.states[-1]}"
            )
        check_whole(collection, after, rng)
    assert leftovers(folder / "data") == []
    lines = {(entry["do"], entry.get("file")): place for place, entry in enumerate(entries)}
    begun = [file for do, file in lines if do == "backup"]
    for file in begun[-2:]:  # the last that was finished, and the one under way
        done = lines.get(("backed up", file))
        copy = folder / "copies" / file
        if not copy.exists():
            assert done is None, f"{file} was finished and is not there"
            continue
        saved = check_backup(copy, folder / "restored", rng)
        for thread, log in enumerate(threads):
            first, last = lines["backup", file], end if done is None else done
            assert log.agrees(_of(saved, thread), first, last), f"{file}: {_of(saved, thread)}"
    shutil.rmtree(folder / "copies", ignore_errors=True)
    return after


def leftovers(folder: Path) -> list[str]:
    """Derived files that are half written, or of collections that are gone."""
    with opened(folder) as database:
        known = len(database.list())
        hidden = [str(path) for path in (folder / SEGMENTS).rglob(".*")]
        folders = [path.name for path in (folder / SEGMENTS).glob("*")]
        return hidden + (folders if len(folders) > known else [])


def _living(collection: Collection) -> list[list[int]]:
    state = collection.load()
    found = [part.rows.keys[part.alive].tolist() for part in state.parts]
    found.append(state.recent.keys[state.alive].tolist())
    assert sum(map(len, found)) == state.count, "a document is in two places, or in none"
    return found


def _same(found: Embedding | None, expected: Embedding) -> None:
    assert found is not None and found.outputs == expected.outputs
    for leg in ("dense", "colbert"):
        if (wanted := getattr(expected, leg)) is not None:
            np.testing.assert_array_equal(getattr(found, leg), wanted)
    if expected.sparse is not None:
        assert found.sparse is not None
        np.testing.assert_array_equal(found.sparse.indices, expected.sparse.indices)
        np.testing.assert_array_equal(found.sparse.values, expected.sparse.values)
