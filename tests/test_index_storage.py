"""The file and the folder: formats, faults, and who owns them."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.index.collection import CollectionSettings, Document, SearchRequest
from app.index.errors import DataFolderInUse, StorageDamaged, StorageFull, StorageUnavailable
from app.index.facts import facts
from app.index.filters import parse
from app.index.owner import LOCK_NAME, Owner, owner
from app.index.storage import APPLICATION_ID, FILE_NAME, MIGRATIONS, Storage
from model.scoring import FusionWeights
from tests.index_helpers import COLBERT, FINGERPRINT, WIDTH, embedding, made, opened


def test_every_commit_is_synced(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    with storage.write() as connection:
        answers = [
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "user_version")
        ]
    assert answers == ["wal", 2, 1, len(MIGRATIONS)]
    storage.close()


def test_a_raise_undoes_and_readers_see_whole_transactions(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    count = "SELECT count(*) FROM collections"
    insert = (
        "INSERT INTO collections (name, settings, fingerprint, hidden_size, colbert_dim, created) "
        "VALUES ('a', '', '', 0, 0, '')"
    )
    with pytest.raises(RuntimeError), storage.write() as connection:
        connection.execute(insert)
        raise RuntimeError
    with storage.read() as reader:
        assert reader.execute(count).fetchone() == (0,)
        with storage.write() as connection:
            connection.execute(insert)
        assert reader.execute(count).fetchone() == (0,)  # its snapshot stays
    with storage.read() as reader:
        assert reader.execute(count).fetchone() == (1,)
        with pytest.raises(StorageUnavailable), storage.read() as other:
            other.execute(insert)
    storage.close()
    storage.close()
    with pytest.raises(StorageUnavailable, match="closed"), storage.read():
        pass
    with pytest.raises(StorageUnavailable, match="closed"), storage.write():
        pass


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    Storage(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(StorageDamaged, match=f"version {len(MIGRATIONS) + 1}"):
        opened(tmp_path)
    assert owner(tmp_path) is None


def test_a_file_of_the_first_format_is_brought_up_to_date(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    texts = {"a": {"n": 1, "tags": ["x", "y"]}, "b": {"n": 1.5, "on": True}, "c": {}}
    vectors = {name: embedding(rng, ("colbert",) if name == "b" else ()) for name in texts}
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection, connection:
        for statement in MIGRATIONS[0]:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
        weights = {"dense": 1, "sparse": 0, "colbert": 0}
        settings = json.dumps({"dense_index": "exact", "colbert": "float32", "fusion": weights})
        connection.execute(
            "INSERT INTO collections VALUES (7, 'c', ?, ?, ?, ?, '', 3)",
            (settings, FINGERPRINT, WIDTH, COLBERT),
        )
        for key, (name, metadata) in enumerate(texts.items(), 1):
            one = vectors[name]
            assert one.dense is not None and one.sparse is not None
            rows = None if one.colbert is None else one.colbert.tobytes()
            sparse = one.sparse.indices.tobytes(), one.sparse.values.tobytes()
            sizes = (
                6,
                len(json.dumps(metadata)),
                4 * WIDTH,
                8 * len(one.sparse),
                None if rows is None else len(rows),
            )
            connection.execute(
                "INSERT INTO documents VALUES (?, 7, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (key, name, key, one.tokens, one.truncated, *sizes, json.dumps(metadata), f"text {name}"),
            )
            connection.execute(
                "INSERT INTO vectors VALUES (?, ?, ?, ?, ?, ?)",
                (
                    key,
                    one.dense.tobytes(),
                    *sparse,
                    None if rows is None else len(rows) // COLBERT // 4,
                    rows,
                ),
            )
            for path, kind, value in facts(metadata):
                connection.execute("INSERT INTO facts VALUES (7, ?, ?, ?, ?)", (key, path, kind, value))
    with opened(tmp_path) as database:
        collection = database.get("c")
        fusion = FusionWeights(1, 0, 0)
        assert collection.info.settings == CollectionSettings("exact", "float32", fusion=fusion)
        for name, metadata in texts.items():
            stored, again = collection.get(name), collection.embedding(name)
            assert stored is not None and again is not None
            assert (stored.text, stored.metadata, stored.outputs) == (
                f"text {name}",
                metadata,
                vectors[name].outputs,
            )
            np.testing.assert_array_equal(again.dense, vectors[name].dense)
            if vectors[name].colbert is not None:
                np.testing.assert_array_equal(again.colbert, vectors[name].colbert)
        stats = collection.stats()
        assert (stats.count, stats.last_seq, stats.text_bytes) == (3, 3, 18)
        assert stats.colbert_bytes == sum(
            one.colbert.nbytes for one in vectors.values() if one.colbert is not None
        )
        assert stats.sparse_bytes == sum(
            8 * len(one.sparse) for one in vectors.values() if one.sparse is not None
        )
        query = SearchRequest(vectors["a"], filter=parse({"n": {"$gt": 1}}))
        assert [hit.id for hit in collection.search(query)] == ["b"]
        assert [hit.id for hit in collection.search(replace(query, filter=parse({"tags": "y"})))] == ["a"]
        assert collection.upsert([Document("a", "new", vectors["b"])]) == [4]
        assert collection.delete(["b"]) == 1
        stats = collection.stats()
        assert (stats.count, stats.text_bytes, stats.dense_bytes) == (2, 9, 8 * WIDTH)


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    connection.close()
    with pytest.raises(StorageDamaged, match="another program"):
        opened(tmp_path)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"not a database, " * 1000)
    with pytest.raises(StorageDamaged, match="not a database"):
        opened(tmp_path)


def test_a_damaged_database(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with opened(tmp_path) as database:
        made(database).upsert([Document(f"d{place}", "text", embedding(rng)) for place in range(100)])
    file = tmp_path / FILE_NAME
    content = bytearray(file.read_bytes())
    content[4096:] = bytes(rng.integers(0, 256, len(content) - 4096, np.uint8))
    file.write_bytes(content)
    with pytest.raises(StorageDamaged):
        opened(tmp_path)


def test_a_folder_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageUnavailable):
        opened(tmp_path / "file")
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(StorageUnavailable):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("pragma", "undo", "fault"),
    [
        ("PRAGMA max_page_count = 1", "PRAGMA max_page_count = 4294967294", StorageFull),
        ("PRAGMA query_only = ON", "PRAGMA query_only = OFF", StorageUnavailable),
    ],
)
def test_a_full_or_read_only_disk_changes_nothing(
    tmp_path: Path, seed: int, pragma: str, undo: str, fault: type[Exception]
) -> None:
    rng = np.random.default_rng(seed)
    with opened(tmp_path) as database:
        collection = made(database)
        collection.upsert([Document("kept", "text", one := embedding(rng))])
        before = collection.stats()
        collection._storage._writer.execute(pragma)  # no other way to fill a disk here
        many = [Document(f"d{place}", "x" * 9000, embedding(rng)) for place in range(50)]
        with pytest.raises(fault):
            collection.upsert([*many, Document("kept", "replaced", embedding(rng))])
        assert collection.stats() == before
        assert [hit.text for hit in collection.search(SearchRequest(one))] == ["text"]
        collection._storage._writer.execute(undo)
        collection.upsert(many)
        assert collection.stats().count == 51
        assert len(collection.search(SearchRequest(one, top_k=100))) == 51


def test_one_owner(tmp_path: Path) -> None:
    assert owner(tmp_path) is None
    database = opened(tmp_path)
    database.announce("http://127.0.0.1:8000")
    here = Owner(os.getpid(), "http://127.0.0.1:8000")
    assert owner(tmp_path) == here
    with pytest.raises(DataFolderInUse, match=r"127\.0\.0\.1:8000") as caught:
        opened(tmp_path)
    assert (caught.value.pid, caught.value.url) == (here.pid, here.url)
    database.close()
    assert owner(tmp_path) is None
    opened(tmp_path).close()


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from app.index.collection import Database
database = Database(Path({str(tmp_path)!r}), url="http://there")
print("open", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        assert owner(tmp_path) == Owner(process.pid, "http://there")
        with pytest.raises(DataFolderInUse) as caught:
            opened(tmp_path)
        assert (caught.value.pid, caught.value.url) == (process.pid, "http://there")
        process.kill()
    # The file still names the dead; the lock is what counts.
    assert json.loads((tmp_path / LOCK_NAME).read_text())["url"] == "http://there"
    assert owner(tmp_path) is None
    opened(tmp_path).close()


def test_a_lock_file_of_nonsense(tmp_path: Path) -> None:
    database = opened(tmp_path)
    for content in ("", "{", "[1]", '{"pid": "x", "url": 1}'):
        (tmp_path / LOCK_NAME).write_text(content)
        assert owner(tmp_path) == Owner(None, None)
    database.close()
