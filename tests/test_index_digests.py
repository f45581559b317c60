"""A bit that was turned within a stored row: it is noticed, named, and keeps nobody else from answering."""

from __future__ import annotations

import json
import logging
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app import cli
from app.index import changes, fetch
from app.index.backup import backup
from app.index.collection import SEGMENTS, Collection, CollectionSettings, Document, SearchRequest
from app.index.digests import Damaged, digest
from app.index.errors import StorageDamaged
from app.index.storage import FILE_NAME
from app.index.verify import verify
from tests.http_helpers import problem, serving
from tests.index_helpers import embedding, made, opened

COLUMNS = [
    ("documents", "text", "text"),
    ("documents", "metadata", "text"),
    ("vectors", "dense", "vectors"),
    ("vectors", "sparse_indices", "vectors"),
    ("vectors", "sparse_values", "vectors"),
    ("token_vectors", "codes", "token vectors"),
    ("token_vectors", "tokens_of_row", "token vectors"),
]
POOLED = CollectionSettings(colbert="float32", colbert_pooling=2)


def _filled(folder: Path, seed: int, settings: CollectionSettings | None = None) -> None:
    rng = np.random.default_rng(seed)
    with opened(folder) as database:
        documents = [
            Document(f"d{number}", f"word {number} für alle", _whole(rng), {"n": number})
            for number in range(6)
        ]
        made(database, settings=settings or POOLED).upsert(documents)


def _whole(rng: np.random.Generator):  # type: ignore[no-untyped-def]
    """An embedding with at least one term."""
    while True:
        one = embedding(rng)
        if one.sparse is not None and len(one.sparse):
            return one


def _turn(folder: Path, table: str, column: str, seed: int, key: int = 3) -> None:
    """Turn one bit of a column of the document d2."""
    rng = np.random.default_rng(seed)
    name = "key" if table == "documents" else "document"
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection, connection:
        (kind, value), *_ = connection.execute(
            f"SELECT typeof({column}), CAST({column} AS BLOB) FROM {table} WHERE {name} = ?", (key,)
        ).fetchall()
        changed = bytearray(value)
        # Of a text a bit that leaves it a text, of metadata JSON as it was.
        where = changed.index(b"2") if kind == "text" else int(rng.integers(len(changed)))
        changed[where] ^= 1 if kind == "text" else 1 << int(rng.integers(8))
        new = bytes(changed).decode() if kind == "text" else bytes(changed)
        connection.execute(f"UPDATE {table} SET {column} = ? WHERE {name} = ?", (new, key))


def _hits(collection: Collection, seed: int, **fields: object) -> set[str]:
    query = embedding(np.random.default_rng(seed + 1))
    request = SearchRequest(query, top_k=10, exact=True)
    return {hit.id for hit in collection.search(replace(request, **fields))}  # type: ignore[arg-type]


@pytest.mark.parametrize(("table", "column", "part"), COLUMNS)
def test_a_turned_bit_is_noticed_and_the_others_are_served(
    tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture, table: str, column: str, part: str
) -> None:
    _filled(tmp_path, seed)
    _turn(tmp_path, table, column, seed)
    others = {f"d{number}" for number in (0, 1, 3, 4, 5)}
    assert verify(tmp_path).damaged == (Damaged("c", "d2", part),)
    with opened(tmp_path) as database, caplog.at_level(logging.ERROR, "trivec.index"):
        collection = database.get("c")
        assert _hits(collection, seed) == others
        assert _hits(collection, seed, with_embeddings=True) == others
        lines = [one.getMessage() for one in caplog.records]
        (line,) = set(lines)
        assert "key 3" in line and part in line
        assert len(lines) <= 2  # when it is loaded, and however many searches meet it
        with pytest.raises(StorageDamaged, match=part):
            if table == "documents":
                collection.get("d2")
            else:
                collection.embedding("d2")
        assert collection.get("d1") is not None and collection.embedding("d1") is not None
        # Writing it again mends it; so does deleting it.
        collection.upsert([Document("d2", "new", _whole(np.random.default_rng(seed)))])
        assert _hits(collection, seed) == {*others, "d2"}
    assert verify(tmp_path).damaged == ()


def test_a_damaged_document_can_be_deleted(tmp_path: Path, seed: int) -> None:
    _filled(tmp_path, seed)
    for table, column in (("documents", "text"), ("vectors", "dense"), ("token_vectors", "codes")):
        _turn(tmp_path, table, column, seed)
    with opened(tmp_path) as database:
        assert database.get("c").delete(["d2"]) == 1
        assert database.get("c").stats().count == 5
    assert verify(tmp_path).damaged == ()


@pytest.mark.parametrize("column", ["dense", "sparse_values"])
def test_segments_are_made_anew_without_the_damaged_document(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    monkeypatch.setattr("app.index.upkeep.SEGMENT_ROWS", 2)
    _filled(tmp_path, seed)
    shutil.rmtree(tmp_path / SEGMENTS, ignore_errors=True)
    _turn(tmp_path, "vectors", column, seed)
    with opened(tmp_path) as database:
        collection = database.get("c")
        for mode in ("dense", "hybrid"):
            found = _hits(collection, seed, mode=mode, exact=False, candidates=5, top_k=5)
            assert found and "d2" not in found
        assert collection.stats().count == 6


def test_a_row_in_the_place_of_another_is_noticed(tmp_path: Path, seed: int) -> None:
    _filled(tmp_path, seed)
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection, connection:
        connection.execute("DELETE FROM vectors WHERE document = 2")
        connection.execute("UPDATE vectors SET document = 2 WHERE document = 3")
        connection.execute("DELETE FROM token_vectors WHERE document = 5")
    assert set(verify(tmp_path).damaged) == {
        Damaged("c", "d1", "vectors"),
        Damaged("c", "d2", "vectors"),
        Damaged("c", "d4", "token vectors"),
    }


def test_a_candidate_whose_document_is_lost_is_passed_over(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its vectors are there, but by its key it is not found: pages of a table may contradict each other."""
    _filled(tmp_path, seed)
    real = fetch.ids_by_key
    with opened(tmp_path) as database:
        collection = database.get("c")
        assert "d2" in _hits(collection, seed)
        monkeypatch.setattr(
            fetch, "ids_by_key", lambda *given: {k: v for k, v in real(*given).items() if k != 3}
        )
        for exact in (False, True):
            for mode in ("hybrid", "dense", "colbert"):
                assert _hits(collection, seed, exact=exact, mode=mode) == {"d0", "d1", "d3", "d4", "d5"}


def test_a_document_that_only_its_index_knows(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _filled(tmp_path, seed)
    monkeypatch.setattr(changes, "keys_of", lambda *_: np.array([999], np.int64))
    with opened(tmp_path) as database, pytest.raises(StorageDamaged, match="key 999"):
        database.get("c").embedding("d2")


def test_a_bit_turned_in_the_file_itself(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    data, copy = tmp_path / "data", tmp_path / "copy"
    _filled(data, seed)
    content = bytearray((data / FILE_NAME).read_bytes())
    content[content.index(b"word 4 f") + 5] ^= 2  # "word 6"
    (data / FILE_NAME).write_bytes(content)
    assert verify(data).damaged == (Damaged("c", "d4", "text"),)
    assert cli.main(["verify", "--data-dir", str(data), "--json"]) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["damaged"] == [{"collection": "c", "id": "d4", "part": "text"}]
    assert "'d4'" in shown.err
    # A backup is made all the same, and says so; so does what is restored from it.
    assert backup(data, tmp_path / "b").damaged == (Damaged("c", "d4", "text"),)
    assert cli.main(["restore", str(tmp_path / "b"), "--data-dir", str(copy)]) == 1
    assert "'d4'" in capsys.readouterr().err
    with opened(copy) as database:
        assert database.get("c").get("d3") is not None
        database.get("c").delete(["d4"])
    assert cli.main(["verify", "--data-dir", str(copy)]) == 0


def test_the_client_is_told_and_the_log_says_what_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tmp_path) as client:
        body = {"documents": [{"id": "a", "text": "one 2"}, {"id": "b", "text": "two"}]}
        assert client.post("/collections/default/documents", json=body).status_code == 200
    _turn(tmp_path, "documents", "text", 0, key=1)
    with serving(tmp_path) as client, caplog.at_level(logging.ERROR):
        said = problem(client.get("/collections/default/documents/a"), 500, "storage_failed")
        assert "key 1" not in said
        assert any("key 1" in record.getMessage() for record in caplog.records)
        assert client.get("/collections/default/documents/b").json()["text"] == "two"
        hits = client.post("/search", json={"query": "one 2"}).json()["hits"]
        assert [hit["id"] for hit in hits] == ["b"]


def test_digests_tell_parts_apart() -> None:
    assert digest(1, b"ab", b"c") != digest(1, b"a", b"bc")
    assert digest(1, b"", None) != digest(1, None, b"") != digest(1, None, None)
    assert digest(1, b"a") != digest(2, b"a")
    assert 0 <= digest(7, b"a" * 10_000) < 1 << 63
