"""kill -9 at the moments that matter: around each rename, each commit and each removal."""

from __future__ import annotations

import json
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from app.index.backup import backup, restore
from app.index.errors import StorageUnavailable
from app.index.facts import facts
from app.index.storage import APPLICATION_ID, FILE_NAME, MIGRATIONS
from tests.crash.checks import Entry, check_killed, check_whole, held, process, reopened
from tests.crash.moments import MOMENTS
from tests.crash.writer import State, document
from tests.index_helpers import COLBERT, FINGERPRINT, WIDTH, made, opened


def _killed(task: str, moment: str, folder: Path, seed: int) -> list[Entry]:
    """What a process said that killed itself."""
    with process("-m", "tests.crash.moments", task, moment, str(folder), str(seed)) as child:
        try:
            said, _ = child.communicate(timeout=60)
        finally:
            child.kill()
    assert child.returncode == -signal.SIGKILL, f"ended with {child.returncode}, not at the chosen moment"
    return [json.loads(line) for line in said.splitlines()]


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_work(tmp_path: Path, seed: int, moment: str) -> None:
    entries = _killed("work", moment, tmp_path, seed)
    check_killed(tmp_path, {}, entries, np.random.default_rng(seed))


@pytest.mark.parametrize("moment", ["amid a segment", "after a segment bears its name"])
def test_killed_at_a_start_that_makes_segments_anew(tmp_path: Path, seed: int, moment: str) -> None:
    entries = _killed("start", moment, tmp_path, seed)
    check_killed(tmp_path, {}, entries, np.random.default_rng(seed))


@pytest.mark.parametrize("moment", ["before a backup bears its name", "after a backup bears its name"])
def test_killed_while_a_backup_is_restored(tmp_path: Path, seed: int, moment: str) -> None:
    state = {f"d0-{number}": number for number in range(20)}
    with opened(tmp_path / "data") as database:
        made(database).upsert([document(name, version) for name, version in state.items()])
    backup(tmp_path / "data", tmp_path / "copy")
    _killed("bring_back", moment, tmp_path, seed)
    if moment.startswith("before"):
        restore(tmp_path / "copy", tmp_path / "restored")
    else:
        with pytest.raises(StorageUnavailable, match="is there already"):
            restore(tmp_path / "copy", tmp_path / "restored")
    with reopened(tmp_path / "restored") as (_, collection):
        assert held(collection) == state
        check_whole(collection, state, np.random.default_rng(seed))


@pytest.mark.parametrize("moment", ["before a commit", "after a commit"])
def test_killed_while_the_format_is_brought_up_to_date(tmp_path: Path, seed: int, moment: str) -> None:
    state = {f"d0-{number}": number for number in range(40)}
    _write_first_format(tmp_path / "data", state)
    _killed("bring_up_to_date", moment, tmp_path, seed)
    with closing(sqlite3.connect(tmp_path / "data" / FILE_NAME)) as connection:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        assert version == (1 if moment.startswith("before") else len(MIGRATIONS))
    with reopened(tmp_path / "data") as (_, collection):
        assert held(collection) == state
        check_whole(collection, state, np.random.default_rng(seed))


def _write_first_format(folder: Path, state: State) -> None:
    folder.mkdir()
    weights = {"dense": 0.4, "sparse": 0.2, "colbert": 0.4}
    settings = json.dumps({"dense_index": "auto", "colbert": "float32", "fusion": weights})
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection, connection:
        for statement in MIGRATIONS[0]:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
        connection.execute(
            "INSERT INTO collections VALUES (1, 'c', ?, ?, ?, ?, '', ?)",
            (settings, FINGERPRINT, WIDTH, COLBERT, len(state)),
        )
        for key, (name, version) in enumerate(state.items(), 1):
            one = document(name, version)
            metadata, vectors = json.dumps(one.metadata), one.embedding
            dense, sparse, colbert = vectors.dense, vectors.sparse, vectors.colbert
            sizes = (
                len(one.text),
                len(metadata),
                None if dense is None else dense.nbytes,
                None if sparse is None else 8 * len(sparse),
                None if colbert is None else colbert.nbytes,
            )
            connection.execute(
                f"INSERT INTO documents VALUES ({', '.join('?' * 13)})",
                (key, 1, name, key, vectors.tokens, vectors.truncated, *sizes, metadata, one.text),
            )
            connection.execute(
                "INSERT INTO vectors VALUES (?, ?, ?, ?, ?, ?)",
                (
                    key,
                    None if dense is None else dense.tobytes(),
                    None if sparse is None else sparse.indices.tobytes(),
                    None if sparse is None else sparse.values.tobytes(),
                    None if colbert is None else len(colbert),
                    None if colbert is None else colbert.tobytes(),
                ),
            )
            for path, kind, value in facts(one.metadata):
                connection.execute("INSERT INTO facts VALUES (1, ?, ?, ?, ?)", (key, path, kind, value))
