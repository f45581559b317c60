"""Segments: made of recent documents, merged, read again, and made anew where they are lost or damaged."""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.index import arrays, collection, rebuild, upkeep
from app.index.collection import SEGMENTS, Collection, CollectionSettings, Document, SearchRequest
from app.index.derived import Part
from app.index.filters import matches, parse
from app.index.upkeep import merge_plan
from model.embedding import Embedding
from tests.index_helpers import COLBERT, WIDTH, embedding, made, opened, truth, unit

ROWS = 32


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 32 documents, and no threads: tests say when."""
    monkeypatch.setattr(upkeep, "SEGMENT_ROWS", ROWS)
    monkeypatch.setattr(upkeep.Upkeep, "wake", lambda self: None)


def _documents(rng: np.random.Generator, first: int, count: int) -> list[Document]:
    return [
        Document(f"d{place}", f"text {place}", embedding(rng), {"n": place})
        for place in range(first, first + count)
    ]


def _agrees(where: Collection, documents: dict[str, Document], rng: np.random.Generator) -> None:
    """Every leg finds the true best, with and without a filter."""
    for source in (None, {"n": {"$lt": 40}}, {"n": {"$in": [1, 50, 90]}}):
        query = embedding(rng)
        allowed = {
            name: truth(query, one.embedding)
            for name, one in documents.items()
            if source is None or matches(parse(source), one.metadata)
        }
        for leg in ("dense", "sparse"):
            request = SearchRequest(
                query, mode=leg, top_k=5, candidates=5, filter=None if source is None else parse(source)
            )
            best = sorted(
                (scores[leg] for scores in allowed.values() if leg == "dense" or scores[leg] > 0),
                reverse=True,
            )
            assert [hit.score for hit in where.search(request)] == pytest.approx(best[:5], abs=1e-5)


def _sizes(where: Collection) -> list[tuple[int, int]]:
    state = where.load()
    return [(len(part.rows), part.living) for part in state.parts]


@pytest.mark.parametrize("kind", ["auto", "exact"])
def test_documents_move_through_segments_and_are_found_all_the_while(
    tmp_path: Path, seed: int, kind: str
) -> None:
    rng = np.random.default_rng(seed)
    documents: dict[str, Document] = {}
    settings = CollectionSettings(dense_index=kind, colbert="float32")
    with opened(tmp_path) as database:
        where = made(database, settings=settings)
        for first in range(0, 5 * ROWS, ROWS):
            batch = _documents(rng, first, ROWS)
            where.upsert(batch)
            documents.update({one.id: one for one in batch})
            _agrees(where, documents, rng)
            assert where.seal() and not where.seal()
            _agrees(where, documents, rng)
        assert _sizes(where) == [(ROWS, ROWS)] * 5
        again = _documents(rng, 10, 3)  # replaced in the first segment
        where.upsert(again)
        documents.update({one.id: one for one in again})
        assert where.delete(["d40", "d41"]) == 2
        del documents["d40"], documents["d41"]
        assert _sizes(where)[:2] == [(ROWS, ROWS - 3), (ROWS, ROWS - 2)]
        _agrees(where, documents, rng)
        assert where.merge(idle=False)
        assert _sizes(where) == [(5 * ROWS - 5, 5 * ROWS - 5)]
        assert not where.merge(idle=False)
        _agrees(where, documents, rng)
        files = list((tmp_path / SEGMENTS).rglob("*"))
        assert len([one for one in files if one.is_file()]) == 1
    with opened(tmp_path) as database:
        where = database.get("c")
        assert _sizes(where) == [(5 * ROWS - 5, 5 * ROWS - 5)]
        assert len(where.load().recent) == 3
        _agrees(where, documents, rng)


def test_changes_during_a_merge_are_not_lost(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(seed)
    with opened(tmp_path) as database:
        where = made(database)
        documents = {one.id: one for one in _documents(rng, 0, 4 * ROWS)}
        for first in range(0, 4 * ROWS, ROWS):
            where.upsert(list(documents.values())[first : first + ROWS])
            where.seal()
        genuine = collection.write

        def interrupted(*arguments: object) -> object:
            done = genuine(*arguments)  # type: ignore[arg-type]
            fresh = _documents(rng, 5, 2)
            where.upsert(fresh)
            documents.update({one.id: one for one in fresh})
            where.delete(["d77"])
            del documents["d77"]
            return done

        monkeypatch.setattr(collection, "write", interrupted)
        assert where.merge(idle=False)
        assert _sizes(where) == [(4 * ROWS, 4 * ROWS - 3)]
        _agrees(where, documents, rng)
        assert {hit.id for hit in where.search(SearchRequest(embedding(rng), exact=True, top_k=1000))} == set(
            documents
        )


def test_a_search_keeps_its_state_while_segments_are_merged(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with opened(tmp_path) as database:
        where = made(database)
        for first in range(0, 4 * ROWS, ROWS):
            where.upsert(_documents(rng, first, ROWS))
            where.seal()
        before, query = where.load(), embedding(rng).dense
        assert query is not None
        expected = before.search_vectors("dense", query, 10, before.usable(None), database._workers)
        where.merge(idle=False)
        where.delete_where(parse({}))
        found = before.search_vectors(
            "dense", query, 10, before.usable(None), database._workers
        )  # its files are gone, its maps are not
        np.testing.assert_array_equal(found[0], expected[0])


@pytest.mark.parametrize("harm", ["lost", "torn", "altered", "foreign", "other width"])
def test_what_is_lost_is_made_anew(tmp_path: Path, seed: int, harm: str) -> None:
    rng = np.random.default_rng(seed)
    documents = {one.id: one for one in _documents(rng, 0, 3 * ROWS)}
    with opened(tmp_path) as database:
        where = made(database)
        for first in range(0, 3 * ROWS, ROWS):
            where.upsert(list(documents.values())[first : first + ROWS])
            where.seal()
    files = sorted((tmp_path / SEGMENTS).rglob("*.segment"))
    assert len(files) == 3
    content = files[0].read_bytes()
    match harm:
        case "lost":
            files[0].unlink()
        case "torn":
            files[0].write_bytes(content[: len(content) // 2])
        case "altered":
            files[0].write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
        case "foreign":
            files[0].write_bytes(b"something else")
        case "other width":
            with arrays.writing(files[0]) as file:
                file.add("keys", np.zeros(1, np.int64))
                file.finish({"format": 1, "width": 99})
    (files[1].parent / ".half-written").write_bytes(b"...")
    told: list[tuple[str, int, int]] = []
    with opened(tmp_path) as database:
        database.load(lambda *progress: told.append(progress))
        where = database.get("c")
        _agrees(where, documents, rng)
        assert sum(living for _, living in _sizes(where)) == 3 * ROWS
    assert told == [("c", ROWS, ROWS)]
    assert not (files[1].parent / ".half-written").exists()


def test_files_of_other_times_do_no_harm(tmp_path: Path, seed: int) -> None:
    """An older database beside newer segments: the same keys and sequence numbers, other documents."""
    rng = np.random.default_rng(seed)
    folders = []
    for name in ("one", "two"):
        with opened(tmp_path / name) as database:
            where = made(database)
            where.upsert(_documents(rng, 0, ROWS))
            where.seal()
        folders.append(tmp_path / name / SEGMENTS)
    two = next(folders[1].rglob("*.segment"))
    two.replace(next(folders[0].iterdir()) / two.name)
    with opened(tmp_path / "one") as database:
        where = database.get("c")
        assert _sizes(where) == [(ROWS, ROWS)]
        documents = {
            hit.id: hit for hit in where.search(SearchRequest(embedding(rng), exact=True, top_k=100))
        }
        for name in list(documents)[:5]:
            own = where.embedding(name)
            assert own is not None
            assert where.search(SearchRequest(own, mode="dense", top_k=1))[0].id == name
    with opened(tmp_path / "two") as database:
        assert len(database.get("c").load().recent) + sum(n for n, _ in _sizes(database.get("c"))) == ROWS


def test_a_disk_that_takes_no_segments_costs_no_document(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(seed)
    documents = {one.id: one for one in _documents(rng, 0, 3 * ROWS)}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(collection, "write", full)
        patch.setattr(rebuild, "write", full)
        patch.setattr(upkeep, "MOST_RECENT", 2 * ROWS)
        with opened(tmp_path) as database:
            where = made(database)
            for one in documents.values():
                where.upsert([one])
            _agrees(where, documents, rng)
        with opened(tmp_path) as database:
            _agrees(database.get("c"), documents, rng)
            assert len(database.get("c").load().recent) == 3 * ROWS
    with opened(tmp_path) as database:
        _agrees(database.get("c"), documents, rng)
        assert _sizes(database.get("c")) == [(3 * ROWS, 3 * ROWS)]


def test_what_only_late_interaction_finds_is_found(tmp_path: Path, seed: int) -> None:
    """The document that one of its many token vectors speaks for, before and after a restart from nothing."""
    rng = np.random.default_rng(seed)
    needle = unit(rng, COLBERT)
    documents = _documents(rng, 0, 6 * ROWS)
    hidden = documents[77]
    rows = np.concatenate([unit(rng, 3, COLBERT), needle[np.newaxis]])
    apart = -unit(rng, WIDTH)
    documents[77] = replace(
        hidden, embedding=replace(hidden.embedding, colbert=rows, dense=apart, sparse=None)
    )
    query = Embedding(2, dense=-apart, sparse=None, colbert=needle[np.newaxis])
    for able in (False, True):
        with opened(tmp_path / str(able)) as database:
            where = made(database, settings=CollectionSettings(colbert="float32", colbert_candidates=able))
            for first in range(0, len(documents), ROWS):
                where.upsert(documents[first : first + ROWS])
                where.seal()
            request = SearchRequest(query, mode="colbert", top_k=1, candidates=10)
            assert (where.search(request)[0].id == hidden.id) == able
        shutil.rmtree(tmp_path / str(able) / SEGMENTS)
        with opened(tmp_path / str(able)) as database:
            assert (database.get("c").search(request)[0].id == hidden.id) == able


@pytest.mark.parametrize("kind", ["float32", "2bit"])
def test_pooled_token_vectors_speak_for_all_their_tokens(tmp_path: Path, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    pairs = np.repeat(unit(rng, 5, COLBERT), 2, axis=0)  # each token vector twice: pooling by 2 loses nothing
    one = Document("a", "", replace(embedding(rng), colbert=pairs))
    query = embedding(rng)
    scores = []
    with opened(tmp_path) as database:
        for name, factor in (("c", 1), ("d", 2)):
            settings = CollectionSettings(colbert=kind, colbert_pooling=factor)
            where = made(database, name, settings)
            where.upsert([one])
            stored = where.embedding("a")
            assert stored is not None and stored.colbert is not None
            assert stored.colbert.shape == pairs.shape
            np.testing.assert_array_equal(stored.colbert[::2], stored.colbert[1::2])
            if kind == "float32":
                np.testing.assert_allclose(stored.colbert, pairs, atol=1e-6)
            scores.append(where.search(SearchRequest(query, mode="colbert"))[0].score)
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
        sizes = [database.get(name).stats().colbert_bytes for name in ("c", "d")]
        assert sizes[0] == 2 * sizes[1]


def test_a_dropped_collection_leaves_no_files(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with opened(tmp_path) as database:
        where = made(database)
        where.upsert(_documents(rng, 0, ROWS))
        where.seal()
        (stale,) = (tmp_path / SEGMENTS).iterdir()
        database.drop("c")
        assert list((tmp_path / SEGMENTS).iterdir()) == []
        stale.mkdir()  # as if the process had been killed between the two
    opened(tmp_path).close()
    assert list((tmp_path / SEGMENTS).iterdir()) == []


def test_upkeep_works_by_itself(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    monkeypatch.undo()
    monkeypatch.setattr(upkeep, "SEGMENT_ROWS", ROWS)
    monkeypatch.setattr(upkeep, "IDLE_S", 0.05)
    documents = {one.id: one for one in _documents(rng, 0, 10 * ROWS)}
    with opened(tmp_path) as database:
        where = made(database)
        stop = threading.Event()
        faults: list[Exception] = []

        def search() -> None:
            while not stop.is_set():
                try:
                    hits = where.search(SearchRequest(embedding(rng), top_k=3))
                    assert all(hit.id in documents for hit in hits)
                except Exception as error:  # noqa: BLE001 - whatever it is, the test must fail
                    faults.append(error)

        thread = threading.Thread(target=search)
        thread.start()
        for first in range(0, 10 * ROWS, 8):
            where.upsert(list(documents.values())[first : first + 8])
        deadline = time.monotonic() + 60
        while (len(_sizes(where)) != 1 or len(where.load().recent) >= ROWS) and time.monotonic() < deadline:
            time.sleep(0.05)
        stop.set()
        thread.join()
        assert not faults
        assert len(_sizes(where)) == 1
        _agrees(where, documents, rng)


def _part(rows: int, living: int) -> Part:
    return Part(range(rows), None, living)  # type: ignore[arg-type]


def test_what_is_merged_when() -> None:
    def plan(parts: list[Part], idle: bool = False) -> list[int]:
        state = type("State", (), {"parts": tuple(parts)})
        return [len(part.rows) for part in merge_plan(state, idle=idle)]  # type: ignore[arg-type]

    full = [_part(size, size) for size in (32, 32, 32)]
    assert plan(full) == []
    assert plan([*full, _part(30, 30)]) == [32, 32, 32, 30]
    assert plan([*full, _part(500, 500)]) == []
    assert plan([*full, _part(100, 60)]) == [100]
    assert plan([_part(100, 0)]) == [100]
    assert plan([*full, _part(500, 500)], idle=True) == [32, 32, 32, 500]
    assert plan([*full, _part(5000, 5000)], idle=True) == [32, 32, 32]
    assert plan([_part(32, 32), _part(5000, 5000)], idle=True) == []
    assert plan([_part(32, 32)], idle=True) == []
