"""Backups: whole, of one moment, taken while documents are written; restored into an empty folder only."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from app import cli
from app.index.backup import backup, restore
from app.index.collection import Document, SearchRequest
from app.index.errors import DataFolderInUse, StorageDamaged, StorageFault, StorageUnavailable
from app.index.storage import FILE_NAME
from tests.index_helpers import embedding, made, opened


def documents(first: int, count: int) -> list[Document]:
    return [
        Document(f"d{n}", f"text {n}", embedding(np.random.default_rng(n)), {"n": n})
        for n in range(first, first + count)
    ]


def test_what_was_backed_up_comes_back(tmp_path: Path) -> None:
    query = SearchRequest(embedding(np.random.default_rng(7)), top_k=20)
    with opened(tmp_path / "data") as database:
        collection = made(database)
        collection.upsert(documents(0, 30))
        collection.delete(["d3"])
        before = collection.search(query)
        report = backup(tmp_path / "data", tmp_path / "copies" / "one")  # while it is open
        collection.upsert(documents(30, 5))
    assert (report.collections, report.documents) == (1, 29)
    assert report.bytes == (tmp_path / "copies" / "one").stat().st_size
    assert [file.name for file in (tmp_path / "copies").iterdir()] == ["one"]
    again = restore(tmp_path / "copies" / "one", tmp_path / "other")
    assert again.documents == 29
    with opened(tmp_path / "other") as database:
        collection = made(database)
        after = collection.search(query)
        assert [(hit.id, hit.score, hit.text, hit.seq) for hit in after] == [
            (hit.id, hit.score, hit.text, hit.seq) for hit in before
        ]
        collection.upsert(documents(100, 1))  # it can be written to
        assert collection.stats().count == 30


def test_a_backup_taken_while_batches_are_written_holds_whole_batches(tmp_path: Path) -> None:
    """And all that were acknowledged before it began."""
    acknowledged, stop = [0], threading.Event()

    def write() -> None:
        while not stop.is_set():
            collection.upsert(documents(acknowledged[0], 5))
            acknowledged[0] += 5

    with opened(tmp_path / "data") as database:
        collection = made(database)
        writer = threading.Thread(target=write)
        writer.start()
        try:
            for number in range(8):
                while acknowledged[0] < 10 * (number + 1):
                    time.sleep(0.001)
                least = acknowledged[0]
                report = backup(tmp_path / "data", tmp_path / f"copy{number}")
                assert report.documents >= least and report.documents % 5 == 0
        finally:
            stop.set()
            writer.join()
    assert collection.name


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as database:
        made(database).upsert(documents(0, 3))
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(StorageUnavailable, match="is there already"):
        backup(tmp_path / "data", tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "kept"
    backup(tmp_path / "data", tmp_path / "copy")
    with pytest.raises(StorageUnavailable, match="is there already"):
        restore(tmp_path / "copy", tmp_path / "data")


def test_a_served_folder_is_not_restored_into(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as database:
        made(database)
        backup(tmp_path / "data", tmp_path / "copy")
        with pytest.raises(DataFolderInUse):
            restore(tmp_path / "copy", tmp_path / "data")


@pytest.mark.parametrize("kind", ["empty", "text", "stranger", "cut", "scratched", "newer", "absent"])
def test_what_is_no_whole_backup_is_refused(kind: str, tmp_path: Path) -> None:
    with opened(tmp_path / "data") as database:
        made(database).upsert(documents(0, 40))
    copy = tmp_path / "copy"
    backup(tmp_path / "data", copy)
    content = copy.read_bytes()
    if kind == "empty":
        copy.write_bytes(b"")
    elif kind == "text":
        copy.write_text("not a database" * 1000)
    elif kind == "stranger":
        copy.unlink()
        with sqlite3.connect(copy) as connection:
            connection.execute("CREATE TABLE t (x)")
    elif kind == "cut":
        copy.write_bytes(content[: len(content) // 2])
    elif kind == "scratched":
        page = len(content) // 2 // 4096 * 4096
        copy.write_bytes(content[:page] + b"\xff" * 4096 + content[page + 4096 :])
    elif kind == "newer":
        with sqlite3.connect(copy) as connection:
            connection.execute("PRAGMA user_version = 999")
    else:
        copy.unlink()
    with pytest.raises(StorageFault) as refused:
        restore(copy, tmp_path / "new")
    assert kind == "absent" or isinstance(refused.value, StorageDamaged)
    assert not list((tmp_path / "new").glob("*sqlite*")) and not list((tmp_path / "new").glob(".*sqlite*"))


def test_there_must_be_something_to_back_up(tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailable, match="no data folder"):
        backup(tmp_path, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_target_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as database:
        made(database)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageUnavailable, match="cannot be written"):
        backup(tmp_path / "data", tmp_path / "file" / "copy")


def test_a_killed_backup_leaves_no_file_of_that_name(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as database:
        made(database).upsert(documents(0, 200))
    command = [sys.executable, "-m", "app.cli", "backup", "--data-dir", str(tmp_path / "data"), "-o"]
    root = Path(__file__).parent.parent
    for number in range(5):
        target = tmp_path / f"copy{number}"
        process = subprocess.Popen([*command, str(target)], cwd=root, stdout=subprocess.DEVNULL)
        while process.poll() is None and not list(tmp_path.glob(f".copy{number}.*")):
            time.sleep(0.0005)
        time.sleep(0.002 * number)
        process.kill()
        process.wait()
        if target.exists():  # it was quicker: then it is whole
            assert restore(target, tmp_path / f"data{number}").documents == 200


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(tmp_path / "data") as database:
        made(database).upsert(documents(0, 3))
    file, new = tmp_path / "copy", tmp_path / "new"
    assert cli.main(["backup", "--data-dir", str(tmp_path / "data"), "-o", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 3
    assert cli.main(["restore", str(file), "--data-dir", str(new)]) == 0
    assert "3 documents" in capsys.readouterr().err
    assert (new / FILE_NAME).exists()
    assert cli.main(["restore", str(file), "--data-dir", str(new)]) == 1
    assert "is there already" in capsys.readouterr().err
