"""Disks that are full, unwritable or damaged, and threads that all want something at once.

The documents are those of `tests.crash.writer`: text, metadata and vectors follow from a version number, so
parts of different versions that were put together are seen.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.index import arrays, collection, upkeep, vector_codes
from app.index.collection import SEGMENTS, Collection, CollectionSettings, Database, SearchRequest
from app.index.errors import StorageDamaged, StorageFault, StorageFull, StorageUnavailable
from app.index.filters import parse
from app.index.storage import FILE_NAME
from app.index.workers import Workers
from tests.crash.checks import ROOT, check_searches, check_whole, held, reopened
from tests.crash.writer import SEGMENT_ROWS, SHARDS, State, document
from tests.index_helpers import embedding, made, opened, truth

NOBODY = 65534


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments are made and merged all the time, by upkeep's own threads."""
    monkeypatch.setattr(upkeep, "SEGMENT_ROWS", SEGMENT_ROWS)
    monkeypatch.setattr(upkeep, "MOST_RECENT", 4 * SEGMENT_ROWS)
    monkeypatch.setattr(upkeep, "IDLE_S", 0.02)


@pytest.fixture
def faults() -> Iterator[list[BaseException]]:
    """What ended a thread, of upkeep or of a test; the test fails where there is any."""
    found: list[BaseException] = []
    genuine = threading.excepthook
    threading.excepthook = lambda one: found.append(one.exc_value or one.exc_type())
    yield found
    threading.excepthook = genuine
    assert found == []


def _put(where: Collection, state: State, names: list[str], version: int) -> int:
    """Write the next versions of these documents; the first version that is free."""
    items = {name: version + place for place, name in enumerate(names)}
    where.upsert([document(name, number) for name, number in items.items()])
    state.update(items)
    return version + len(names)


def _names(count: int, thread: int = 0) -> list[str]:
    return [f"d{thread}-{number}" for number in range(count)]


def _check(where: Collection, state: State, rng: np.random.Generator) -> None:
    assert held(where) == state
    check_searches(where, [document(*one) for one in state.items()], embedding(rng))


def _child(function: str, *arguments: object, before: tuple[str, ...] = ()) -> None:
    """A function of this file in a process of its own, which fails where that does."""
    code = f"from tests.test_index_faults import {function} as task; import sys; task(*sys.argv[1:])"
    done = subprocess.run(
        [*before, sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


# A full disk


def _small_files(folder: str, seed: str) -> None:
    """No file may grow any more: what a full disk is to SQLite, without one."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    most = 300_000
    _fill(
        Path(folder),
        int(seed),
        fill=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard)),
        make_room=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard)),
        expected=StorageFault,
    )


def _small_disk(folder: str, seed: str) -> None:
    """A disk of 1.5 MB that really is full."""
    ballast = Path(folder) / "ballast"

    def fill() -> None:
        with suppress(OSError):  # it may be full already
            ballast.write_bytes(bytes(600_000))

    _fill(Path(folder), int(seed), fill=fill, make_room=ballast.unlink, expected=StorageFull)


def _fill(
    folder: Path,
    seed: int,
    *,
    fill: Callable[[], None],
    make_room: Callable[[], None],
    expected: type[StorageFault],
) -> None:
    rng = np.random.default_rng(seed)
    upkeep.SEGMENT_ROWS, upkeep.MOST_RECENT, upkeep.IDLE_S = SEGMENT_ROWS, 4 * SEGMENT_ROWS, 0.02
    state: State = {}
    with opened(folder / "data") as database:
        where = made(database)
        version = _put(where, state, _names(100), 0)
        _check(where, state, rng)
        fill()
        refused: list[StorageFault] = []
        for turn in range(2000):
            try:
                names = _names(20, 1 + turn % 8)
                where.upsert([document(name, version + place) for place, name in enumerate(names)])
                state.update({name: version + place for place, name in enumerate(names)})
                if turn % 3 == 0:
                    where.delete([names[0]])
                    del state[names[0]]
            except StorageFault as fault:
                refused.append(fault)
                _check(where, state, rng)  # nothing of the batch is there, all else is
                if len(refused) == 5:
                    break
            version += 20
        assert len(refused) == 5, f"wrote {version} documents and the disk was never full"
        assert any(isinstance(fault, expected) for fault in refused), refused
        assert where.stats().count == len(state)
        make_room()
        for thread in range(3):
            version = _put(where, state, _names(20, thread), version)
        _check(where, state, rng)
        fill()
    try:
        with opened(folder / "data") as database:  # on a full disk it may open
            _check(made(database), state, rng)
    except StorageFault:
        pass
    make_room()
    with reopened(folder / "data") as (_, where):
        assert held(where) == state
        check_whole(where, state, rng)
        _put(where, state, _names(20), version)
        _check(where, state, rng)


def test_a_disk_that_takes_no_more(tmp_path: Path, seed: int) -> None:
    _child("_small_files", tmp_path, seed)


def test_a_full_disk(tmp_path: Path, seed: int) -> None:
    mount = ("unshare", "-m") if os.geteuid() == 0 else ("unshare", "-Urm")
    script = 'mount -t tmpfs -o size=1536k tmpfs "$0" && exec "$@"'
    before = (*mount, "sh", "-c", script, str(tmp_path))
    if shutil.which("unshare") is None or subprocess.run([*before, "true"], capture_output=True).returncode:
        pytest.skip("a disk of its own needs Linux and leave to mount one in a namespace")
    _child("_small_disk", tmp_path, seed, before=before)


# Folders that cannot be written


def _without_leave(folder: str, seed: str, case: str) -> None:
    """As a user who may do no more than the permissions say; kernels are compiled and read before."""
    data, rng = Path(folder) / "data", np.random.default_rng(int(seed))
    upkeep.SEGMENT_ROWS = SEGMENT_ROWS
    upkeep.Upkeep.wake = lambda self: None  # type: ignore[method-assign]
    state: State = {}
    with opened(data) as database:
        where = made(database)
        for _ in range(3):
            _put(where, state, _names(40), 100)
            where.seal()
        _check(where, state, rng)
    everything = [Path(folder), data, *data.rglob("*")]
    inner = [path for path in everything if SEGMENTS in path.parts]
    closed, mode = {
        "folder": ([data], 0o555),
        "folder and files": ([path for path in everything if path != Path(folder)], 0o555),
        "database": ([data / FILE_NAME], 0o444),
        "segments": (inner, 0o555),
        "unreadable segments": (inner, 0o000),
    }[case]
    if os.geteuid() == 0:
        for path in everything:
            os.chown(path, NOBODY, NOBODY)
    for path in reversed(closed):
        path.chmod(mode)
    if os.geteuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    if "segments" in case:  # they are not the truth
        with opened(data) as database:
            where = made(database)
            database.load()
            _check(where, state, rng)
            _put(where, state, _names(50), 500)
            where.delete(["d0-3"])
            del state["d0-3"]
            _check(where, state, rng)
    elif case == "database":  # reading goes on
        with opened(data) as database:
            where = database.get("c")
            _check(where, state, rng)
            for change in (lambda: _put(where, {}, ["d0-1"], 900), lambda: where.delete(["d0-1"])):
                with pytest.raises(StorageUnavailable, match="readonly"):
                    change()
            with pytest.raises(StorageUnavailable, match="readonly"):
                made(database, "another")
            _check(where, state, rng)
    else:
        with pytest.raises(StorageUnavailable):
            opened(data)
    for path in closed:
        path.chmod(0o755)
    with opened(data) as database:
        _check(made(database), state, rng)


@pytest.mark.parametrize(
    "case", ["folder", "folder and files", "database", "segments", "unreadable segments"]
)
def test_a_folder_that_may_not_be_written(seed: int, case: str) -> None:
    # Not pytest's own folder: another user cannot look into that.
    with tempfile.TemporaryDirectory(prefix="trivec-faults-") as folder:
        Path(folder).chmod(0o755)
        _child("_without_leave", folder, seed, case)


# Damage


def _damaged(content: bytes, rng: random.Random) -> bytes:
    """A file as a failing disk gives it back."""
    at = rng.randrange(len(content))
    length = min(rng.choice([1, 30, 4096]), len(content) - at)
    match rng.choice(["flip", "zero", "truncate", "extend", "garbage", "empty"]):
        case "flip":
            return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
        case "zero":
            return content[:at] + bytes(length) + content[at + length :]
        case "truncate":
            return content[:at]
        case "extend":
            return content + rng.randbytes(length)
        case "garbage":
            return content[:at] + rng.randbytes(length) + content[at + length :]
    return b""


@pytest.mark.parametrize("kind", ["auto", "rabitq", "ivf", "hnsw"])
def test_damaged_segments_are_made_anew(
    tmp_path: Path, seed: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep.Upkeep, "wake", lambda self: None)
    monkeypatch.setattr(upkeep, "SEGMENT_ROWS", SEGMENT_ROWS)
    rng, chance = np.random.default_rng(seed), random.Random(seed)
    state: State = {}
    with opened(tmp_path) as database:
        where = made(
            database,
            settings=CollectionSettings(kind, "float32", colbert_candidates=kind != "auto", bm25=True),
        )
        version = 0
        for _ in range(8):
            version = _put(where, state, chance.sample(_names(100), 2 * SEGMENT_ROWS), version)
            where.seal()
        where.merge(idle=False)
        version = _put(where, state, chance.sample(_names(100), SEGMENT_ROWS), version)
        where.seal()
    for _ in range(15):
        files = sorted((tmp_path / SEGMENTS).rglob("*.segment"))
        for path in chance.sample(files, chance.randint(1, min(3, len(files)))):
            path.write_bytes(_damaged(path.read_bytes(), chance))
        if len(files) > 1 and chance.random() < 0.2:  # one in the place of another
            shutil.copyfile(*chance.sample(files, 2))
        with reopened(tmp_path) as (_, where):
            check_whole(where, state, rng)
            version = _put(where, state, chance.sample(_names(100), chance.choice([2, 20])), version)
            where.seal()
            if chance.random() < 0.3:
                where.merge(idle=True)
            check_whole(where, state, rng)


def test_a_damaged_database_gives_errors_and_never_other_documents(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole pages are overwritten, as disks lose them; rows bear no checksums that would tell of one byte."""
    monkeypatch.setattr(upkeep.Upkeep, "wake", lambda self: None)
    monkeypatch.setattr(upkeep, "SEGMENT_ROWS", SEGMENT_ROWS)
    rng, chance = np.random.default_rng(seed), random.Random(seed)
    state: State = {}
    with opened(tmp_path / "whole") as database:
        for name in ("c", "other"):
            where = made(database, name)
            for _ in range(3):
                _put(where, state, _names(100), 0)
                where.seal()
    page = 4096
    answered = refused = 0
    for turn in range(60):
        folder = tmp_path / f"damaged{turn}"
        shutil.copytree(tmp_path / "whole", folder)
        if chance.random() < 0.5:
            shutil.rmtree(folder / SEGMENTS)
        content = bytearray((folder / FILE_NAME).read_bytes())
        for _ in range(chance.choice([1, 1, 3])):
            at = page * chance.randrange(len(content) // page)
            content[at : at + page] = chance.choice([bytes(page), chance.randbytes(page)])
        (folder / FILE_NAME).write_bytes(content)
        try:
            with opened(folder) as database:
                for name in ("c", "other"):
                    right, wrong = _asked(database, name, state, rng, chance)
                    answered, refused = answered + right, refused + wrong
        except StorageFault:
            refused += 1
        shutil.rmtree(folder)
    print(f"{answered} answers, {refused} errors")
    assert answered and refused


def _asked(
    database: Database, name: str, state: State, rng: np.random.Generator, chance: random.Random
) -> tuple[int, int]:
    """How many questions were answered, rightly, and how many met a fault that says so."""
    query = embedding(rng)
    where = database.get(name)
    documents = {one: document(one, version) for one, version in state.items()}

    def one_document() -> None:
        expected = documents[chance.choice(sorted(documents))]
        found, own = where.get(expected.id), where.embedding(expected.id)
        assert found is not None and own is not None
        assert (found.text, found.metadata) == (expected.text, expected.metadata)
        for leg in ("dense", "colbert"):
            np.testing.assert_array_equal(getattr(own, leg), getattr(expected.embedding, leg))

    def search(mode: str, source: object) -> None:
        condition = None if source is None else parse(source)
        for hit in where.search(SearchRequest(query, mode=mode, top_k=20, filter=condition)):
            expected = documents[hit.id]
            assert (hit.text, hit.metadata) == (expected.text, expected.metadata)
            assert hit.scores.dense == pytest.approx(truth(query, expected.embedding)["dense"], abs=1e-5)

    def change() -> None:
        written = document(chance.choice(sorted(documents)), 1000)
        where.upsert([written])
        documents[written.id] = written

    def delete() -> None:
        name = chance.choice(sorted(documents))
        if where.delete([name]):
            del documents[name]

    questions: list[Callable[[], object]] = [
        *[one_document] * 5,
        *(lambda mode=mode: search(mode, None) for mode in ("dense", "sparse", "colbert", "hybrid")),  # type: ignore[misc]
        lambda: search("hybrid", {"shard": {"$lt": 3}}),
        lambda: where.documents(limit=50),
        where.stats,
        change,
        delete,
        where.seal,
        one_document,
    ]
    answered = refused = 0
    for question in questions:
        try:
            question()
            answered += 1
        except StorageFault:
            refused += 1
    return answered, refused


def test_a_text_that_is_damaged_is_not_quoted(tmp_path: Path) -> None:
    with opened(tmp_path) as database:
        made(database).upsert([replace(document("d0-0", 0), text="quite secret")])
    content = (tmp_path / FILE_NAME).read_bytes()
    assert b"quite secret" in content
    (tmp_path / FILE_NAME).write_bytes(content.replace(b"quite secret", b"quite se\xffret"))
    with opened(tmp_path) as database:
        with pytest.raises(StorageDamaged) as caught:
            database.get("c").get("d0-0")
        assert "quite" not in str(caught.value)


@pytest.mark.usefixtures("busy")
def test_segments_that_are_deleted_while_they_are_searched(
    tmp_path: Path, seed: int, faults: list[BaseException]
) -> None:
    rng, chance = np.random.default_rng(seed), random.Random(seed)
    state: State = {}
    version = 0
    with opened(tmp_path) as database:
        where = made(database)
        for turn in range(60):
            version = _put(where, state, chance.sample(_names(100), 10), version)
            if turn % 5 == 4:
                shutil.rmtree(tmp_path / SEGMENTS, ignore_errors=True)
                check_whole(where, state, rng)
    shutil.rmtree(tmp_path / SEGMENTS, ignore_errors=True)
    with reopened(tmp_path) as (_, where):
        check_whole(where, state, rng)


# The end, and everything at once


@pytest.mark.usefixtures("busy")
def test_closed_while_segments_are_merged(tmp_path: Path, seed: int, faults: list[BaseException]) -> None:
    rng, chance = np.random.default_rng(seed), random.Random(seed)
    state: State = {}
    version = 0
    for _ in range(12):
        database = Database(tmp_path, fingerprint="f1", threads=2)
        where = made(database)
        for _ in range(chance.randint(1, 12)):
            version = _put(where, state, chance.sample(_names(100), 15), version)
        closing = threading.Thread(target=database.close, daemon=True)
        closing.start()
        closing.join(60)
        assert not closing.is_alive()
        assert [
            one.name for one in threading.enumerate() if one.name in ("trivec-seal", "trivec-merge")
        ] == []
        with pytest.raises(StorageUnavailable, match="closed"):
            where.search(SearchRequest(embedding(rng)))
    with reopened(tmp_path) as (_, where):
        check_whole(where, state, rng)


def test_a_search_under_way_at_the_end_is_answered_or_refused(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch, faults: list[BaseException]
) -> None:
    rng = np.random.default_rng(seed)
    state: State = {}
    reached, go_on = threading.Event(), threading.Event()
    genuine = Workers.run

    def run(self: Workers, tasks: Sequence[Callable[[], object]]) -> list[object]:
        reached.set()
        go_on.wait(60)
        return genuine(self, tasks)

    database = Database(tmp_path, fingerprint="f1", threads=2)
    where = made(database)
    _put(where, state, _names(60), 0)
    _put(where, state, _names(60, 1), 100)
    monkeypatch.setattr(Workers, "run", run)

    def search() -> None:
        with suppress(StorageUnavailable):
            assert len(where.search(SearchRequest(embedding(rng)))) == 10

    searching = threading.Thread(target=search)
    searching.start()
    assert reached.wait(60)
    closing = threading.Thread(target=database.close)
    closing.start()
    closing.join(0.5)  # it may wait for the search, or not
    go_on.set()
    searching.join()
    closing.join()


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("place", ["an array", "the end", "a name"])
@pytest.mark.parametrize("when", ["before the next start", "after the next start"])
def test_a_merge_that_outlives_its_database_does_no_harm(
    tmp_path: Path,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
    faults: list[BaseException],
    place: str,
    when: str,
) -> None:
    rng = np.random.default_rng(seed)
    state: State = {}
    reached, go_on = threading.Event(), threading.Event()
    merging = []

    def held_up(genuine: Callable[..., object]) -> Callable[..., object]:
        def replacement(*arguments: object, **named: object) -> object:
            if threading.current_thread().name == "trivec-merge" and not reached.is_set():
                merging.append(threading.current_thread())
                reached.set()
                go_on.wait(60)
            return genuine(*arguments, **named)

        return replacement

    owner: tuple[type, str] = {
        "an array": (arrays.ArrayWriter, "stream"),
        "the end": (arrays.ArrayWriter, "finish"),
        "a name": (Path, "replace"),
    }[place]
    monkeypatch.setattr(collection, "CLOSING_S", 0.1)
    monkeypatch.setattr(
        vector_codes, "BLOCK_ROWS", 8
    )  # so that a merge shares its work with searches' threads
    database = Database(tmp_path, fingerprint="f1", threads=2)
    where = made(database, settings=CollectionSettings("rabitq", "float32"))
    version = _put(where, state, _names(40), 0)
    monkeypatch.setattr(*owner, held_up(getattr(*owner)))
    while not reached.wait(0.01):
        version = _put(where, state, _names(20), version)
    database.close()
    if when == "before the next start":
        go_on.set()
        merging[0].join(60)
    with opened(tmp_path) as database:
        where = database.get("c")
        _check(where, state, rng)
        go_on.set()
        merging[0].join(60)
        assert not merging[0].is_alive()
        version = _put(where, state, _names(50), version)
        _check(where, state, rng)
    with reopened(tmp_path) as (_, where):
        check_whole(where, state, rng)


@pytest.mark.usefixtures("busy")
def test_whatever_threads_do_each_hit_is_of_one_version(
    tmp_path: Path, seed: int, faults: list[BaseException]
) -> None:
    """4 search, 2 write, 1 deletes. Documents of thread 0 are never deleted: none of them may be missed."""
    state: State = {}
    writing = threading.Event()
    with opened(tmp_path) as database:
        where = made(database)

        def write(thread: int) -> None:
            chance, version = random.Random(seed + thread), thread
            for _ in range(60):
                items = {}
                for name in chance.sample(_names(60, thread), chance.choice([1, 10, 30])):
                    items[name], version = version, version + 2
                where.upsert([document(*one) for one in items.items()])
                if thread == 0:
                    state.update(items)

        def delete() -> None:
            chance = random.Random(seed)
            while not writing.is_set():
                where.delete(chance.sample(_names(60, 1), 5))
                where.delete_where(parse({"thread": 1, "shard": chance.randrange(SHARDS)}))

        def search(thread: int) -> None:
            rng = np.random.default_rng(seed + thread)
            while not writing.is_set():
                _search_consistently(where, dict(state), rng)

        writers = [threading.Thread(target=write, args=(thread,)) for thread in range(2)]
        others = [threading.Thread(target=delete)]
        others += [threading.Thread(target=search, args=(thread,)) for thread in range(4)]
        for one in (*writers, *others):
            one.start()
        for one in writers:
            one.join()
        writing.set()
        for one in others:
            one.join()
        check_whole(where, held(where), np.random.default_rng(seed))
    with reopened(tmp_path) as (_, where):
        after = held(where)
        assert {name: version for name, version in after.items() if name.startswith("d0-")} == state
        check_whole(where, after, np.random.default_rng(seed))


def _search_consistently(where: Collection, before: State, rng: np.random.Generator) -> None:
    """One search of each kind: parts of each hit belong together, and nothing is older than `before`."""
    query = embedding(rng)
    shard = int(rng.integers(SHARDS))
    for request in (
        SearchRequest(query, mode="dense", top_k=10, candidates=10, with_embeddings=True),
        SearchRequest(query, mode="sparse", top_k=10, candidates=10, with_embeddings=True),
        SearchRequest(query, top_k=5, filter=parse({"shard": shard}), with_embeddings=True),
        SearchRequest(query, exact=True, top_k=1000),
    ):
        hits = where.search(request)
        assert len({hit.id for hit in hits}) == len(hits)
        for hit in hits:
            version = hit.metadata["version"]
            assert isinstance(version, int)
            expected = document(hit.id, version)
            assert (hit.text, hit.metadata) == (expected.text, expected.metadata)
            assert version >= before.get(hit.id, 0)
            assert request.filter is None or hit.metadata["shard"] == shard
            scores = truth(query, expected.embedding)
            for leg, score in scores.items():
                assert getattr(hit.scores, leg) == (None if score is None else pytest.approx(score, abs=1e-5))
            if hit.embedding is not None:
                np.testing.assert_array_equal(hit.embedding.dense, expected.embedding.dense)
                np.testing.assert_array_equal(hit.embedding.colbert, expected.embedding.colbert)
        if request.exact:
            assert set(before) <= {hit.id for hit in hits}
    chosen = str(rng.choice(sorted(before))) if before else "d0-0"
    one = where.get(chosen)
    if one is not None:
        assert one.text == f"text {one.metadata['version']}"
