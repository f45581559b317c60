"""Reindexing: the vectors that a fresh upsert would give, whatever changes, fails or is killed meanwhile."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app import reindex as reindexing
from app.index import restage
from app.index.collection import Collection as Stored
from app.index.collection import Database, Document, StoredDocument
from app.index.errors import (
    CollectionNotFound,
    DataFolderInUse,
    StorageDamaged,
    StorageFull,
    StorageUnavailable,
)
from app.index.owner import FolderLock
from app.index.storage import APPLICATION_ID, FILE_NAME, MIGRATIONS
from app.index.verify import verify
from app.reindex import ReindexReport, reindex
from app.settings import Settings
from model.embedding import Counting, Embedding, IntArray, LexicalWeights, Output
from tests.fakes import CARD, FakeModel, FakeTokens, counted, token_id, vector
from tests.http_helpers import serving
from tests.index_helpers import bm25

ROOT = Path(__file__).parent.parent
WIDTH, COLBERT = 20, 12
OTHER = replace(CARD, name="other", fingerprint="0b" * 32, hidden_size=WIDTH, colbert_dim=COLBERT)


def shifted(terms: LexicalWeights) -> LexicalWeights:
    """What another tokenizer counts: other ids, and twice as many of them."""
    return LexicalWeights(terms.indices + np.int32(1), 2 * terms.values)


@dataclass
class OtherModel(FakeModel):
    """Another checkpoint: other vectors of other widths."""

    card: Any = OTHER
    before: Callable[[], None] = lambda: None
    """Called before each forward pass."""
    count: int = 0
    """Texts that went through a forward pass."""
    infinite: set[int] = field(default_factory=set)
    """Token ids that make a dense vector infinite."""

    def tokenize(
        self, texts: Sequence[str], max_length: int, *, count_terms: Counting | None = None
    ) -> list[FakeTokens]:
        """Of another vocabulary, as far as terms are counted."""
        found = super().tokenize(texts, max_length, count_terms=count_terms)
        return [one if one.terms is None else replace(one, terms=shifted(one.terms)) for one in found]

    def forward(
        self,
        batch: Sequence[IntArray],
        outputs: Collection[Output],
        *,
        normalize: bool = True,
        between: Callable[[], None] | None = None,
    ) -> list[Embedding]:
        self.before()
        self.count += len(batch)
        return super().forward(batch, outputs, normalize=normalize, between=between)

    def _embed(self, ids: IntArray, outputs: frozenset[Output], length: float) -> Embedding:
        dense = np.sum([vector(int(token) + 7, self.card.hidden_size) for token in ids], axis=0)
        dense /= np.linalg.norm(dense)
        if any(int(token) in self.infinite for token in ids):
            dense = np.full_like(dense, np.inf)
        terms = np.unique(ids)
        return Embedding(
            tokens=int(ids.size),
            dense=dense.astype(np.float32),
            sparse=LexicalWeights(terms, (0.5 + terms % 7).astype(np.float32)),
            colbert=np.stack([vector(int(token) + 7, self.card.colbert_dim) for token in ids[1:]]),
        )


def settings(folder: Path, **knobs: Any) -> Settings:
    return Settings(data_dir=folder, passage_max_length=40, max_batch_tokens=64, **knobs)


def again(folder: Path, model: FakeModel | None = None, name: str = "c", **options: Any) -> ReindexReport:
    given = model or OtherModel()
    return reindex(settings(folder), name, lambda: given, progress=False, **options)


def texts(rng: np.random.Generator, count: int, first: int = 0) -> list[dict[str, Any]]:
    """Documents as clients send them: blank ones, cut ones, with a title, with metadata."""
    found = []
    for number in range(first, first + count):
        words = [f"w{rng.integers(300)}" for _ in range(int(rng.integers(1, 60)))]
        one: dict[str, Any] = {"id": f"d{number}", "text": " ".join(words), "metadata": {"n": number % 5}}
        if number % 7 == 0:
            one["text"] = " \n"
        if number % 5 == 0:
            one["title"] = f"title {number}"
        found.append(one)
    return found


def fill(
    folder: Path,
    model: FakeModel,
    documents: Sequence[dict[str, Any]],
    kind: dict[str, object] | None = None,
    most: int = 40,
) -> None:
    """Two collections of these documents, their keys interleaved, of at most so many tokens each."""
    with serving(folder, model, passage_max_length=most) as client:
        for name in ("c", "other"):
            made = client.put(f"/collections/{name}", json=kind or {})
            assert made.status_code in (200, 201), made.text
        for first in range(0, len(documents), 50):
            sent = {"documents": documents[first : first + 50]}
            for name in ("c", "other"):
                assert client.post(f"/collections/{name}/documents", json=sent).status_code == 200


def contents(collection: Stored) -> dict[str, Any]:
    """Everything that a collection holds but sequence numbers and its name."""
    found: dict[str, Any] = {}
    for doc_id in collection.ids():
        stored, one = collection.get(doc_id), collection.embedding(doc_id)
        assert stored is not None and one is not None
        assert one.dense is not None and one.sparse is not None and one.colbert is not None
        vectors = [one.dense, one.sparse.indices, one.sparse.values, one.colbert]
        found[doc_id] = (
            replace(stored, seq=0),
            one.tokens,
            one.truncated,
            [part.tolist() for part in vectors],
        )
    sums = replace(collection.stats(), last_seq=0)
    info = collection.info
    return {"documents": found, "sums": sums, "of": (info.fingerprint, info.hidden_size, info.colbert_dim)}


def read(folder: Path, name: str = "c") -> dict[str, Any]:
    with Database(folder) as database:
        return contents(database.get(name))


def columns(folder: Path, table: str) -> set[tuple[object, ...]]:
    """All that a table holds of collection c, but what tells versions of a document apart."""
    sql = f"SELECT d.doc_id, t.* FROM {table} t JOIN documents d ON d.key = t.{{}} WHERE d.collection = 1"
    own = {"document", "key", "seq", "stamp"}
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        found = connection.execute(sql.format("key" if table == "documents" else "document"))
        kept = [place for place, column in enumerate(found.description) if column[0] not in own]
        return {tuple(row[place] for place in kept) for row in found}


def stamps(folder: Path) -> set[int]:
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        return {row[0] for row in connection.execute("SELECT stamp FROM documents")}


def finds(folder: Path, doc_id: str, text: str) -> bool:
    """Whether a service of the new model finds a document by its own text."""
    with serving(folder, OtherModel(), query_max_length=40) as client:
        ask = {"query": text, "mode": "dense", "top_k": 20}
        hits = client.post("/collections/c/search", json=ask).json()["hits"]
    return any(hit["id"] == doc_id and hit["score"] > 0.999 for hit in hits)


def put(collection: Stored, doc_id: str, text: str) -> None:
    """What a server of the old model does."""
    model = FakeModel()
    (tokens,) = model.tokenize([text], 40)
    (embedding,) = model.forward([tokens.ids], CARD.outputs)
    collection.upsert([Document(doc_id, text, embedding, {"n": 1})])


@pytest.mark.parametrize(
    "kind",
    [
        {"colbert": "float16"},
        {"colbert": "4bit"},
        {"colbert": "int8", "colbert_pooling": 2},
        {"colbert": "1bit", "bm25": True},
    ],
)
def test_what_is_stored_is_what_a_fresh_upsert_stores(
    tmp_path: Path, seed: int, kind: dict[str, object]
) -> None:
    documents = texts(np.random.default_rng(seed), 150)
    fill(tmp_path / "old", FakeModel(), documents, kind, most=20)
    fill(tmp_path / "new", OtherModel(), documents, kind)
    with Database(tmp_path / "old") as database:
        kept = contents(database.get("other"))
        last = database.get("c").stats().last_seq
        seqs = {one.id: one.seq for one in database.get("c").documents()}
        database.load()
    before = stamps(tmp_path / "old")
    report, model = again(tmp_path / "old"), OtherModel()
    assert (report.status, report.documents, report.embedded) == ("adopted", 150, 150)
    assert read(tmp_path / "old") == read(tmp_path / "new")
    for table in ("documents", "vectors", "token_vectors", "facts"):
        assert columns(tmp_path / "old", table) == columns(tmp_path / "new", table)
    # Each is another version now, whatever derived files of the old vectors are found: those of one only.
    assert len(before & stamps(tmp_path / "old")) == len(before) / 2 == 150
    with Database(tmp_path / "old", fingerprint=OTHER.fingerprint) as database:
        assert contents(database.get("other")) == kept
        assert database.get("c").stats().last_seq == last
        assert {one.id: one.seq for one in database.get("c").documents()} == seqs
        assert not list((tmp_path / "old" / restage.STAGING).glob("*.sqlite3*"))
    # The service of the new model searches it, and no longer the other one.
    assert finds(tmp_path / "old", "d1", documents[1]["text"])
    with serving(tmp_path / "old", OtherModel()) as client:
        assert client.post("/collections/other/search", json={"query": "w1"}).status_code == 409
    report = again(tmp_path / "old", model)
    assert report.status == "current" and not model.count
    assert not verify(tmp_path / "old").damaged


@pytest.mark.parametrize("rows", [20, 4096])
def test_words_are_those_of_the_new_tokenizer(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """The whole texts' though they are cut for the model, in segments as in memory."""
    monkeypatch.setattr("app.index.upkeep.SEGMENT_ROWS", rows)
    documents = texts(np.random.default_rng(seed), 60)
    fill(tmp_path, FakeModel(), documents, {"bm25": True}, most=20)
    again(tmp_path)
    whole = {one.id: shifted(counted(one.text)) for one in stored(tmp_path)}
    query = "w1 w2 w3 w4 w5 w6 w7 w8 w9 title"
    expected = bm25(shifted(counted(query)), whole)
    with serving(tmp_path, OtherModel()) as client:
        body = {"query": query, "mode": "bm25", "top_k": 60}
        hits = client.post("/collections/c/search", json=body).json()["hits"]
    assert {hit["id"]: hit["score"] for hit in hits} == pytest.approx(
        {name: score for name, score in expected.items() if score > 0}, rel=1e-5
    )
    with Database(tmp_path) as database:
        stats = database.get("c").stats()
    assert stats.length == sum(int(one.values.sum()) for one in whole.values())


def stored(folder: Path) -> list[StoredDocument]:
    with Database(folder) as database:
        return database.get("c").documents()


def test_derived_files_of_the_old_vectors_are_gone(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.index.upkeep.SEGMENT_ROWS", 20)
    fill(tmp_path, FakeModel(), texts(np.random.default_rng(seed), 90))
    with Database(tmp_path) as database:
        database.get("c").seal()
    folders = {path.name for path in (tmp_path / restage.SEGMENTS).iterdir()}
    assert len(folders) == 2
    again(tmp_path)
    assert {path.name for path in (tmp_path / restage.SEGMENTS).iterdir()} < folders
    assert finds(tmp_path, "d1", read(tmp_path)["documents"]["d1"][0].text)


def test_documents_that_change_while_they_are_embedded(tmp_path: Path, seed: int) -> None:
    """A server of the old model goes on changing and deleting them; what is adopted is what it left."""
    rng = np.random.default_rng(seed)
    fill(tmp_path / "old", FakeModel(), texts(rng, 90))
    with Database(tmp_path / "old", fingerprint=CARD.fingerprint) as database:
        live = database.get("c")

        def meanwhile() -> None:
            if model.count > 120:  # else it would never end
                return
            chosen = f"d{rng.integers(95)}"
            if rng.integers(3):
                put(live, chosen, f"changed {rng.integers(1000)}")
            else:
                live.delete([chosen])

        model = OtherModel(before=meanwhile)
        with pytest.raises(DataFolderInUse):
            again(tmp_path / "old", model, finish=True)
        assert not model.count
        report = again(tmp_path / "old", model)
        assert report.status == "staged" and report.holder is not None and report.holder.pid == os.getpid()
        before = contents(live)
        assert before["of"][0] == CARD.fingerprint
        put(live, "d0", "changed at last")
        put(live, "new", "came at last")
        live.delete(["d1"])
    model = OtherModel()
    report = again(tmp_path / "old", model, finish=True)
    assert report.status == "adopted" and report.embedded == model.count < 30  # and not all of them
    found = read(tmp_path / "old")["documents"]
    assert {"d0", "new"} <= set(found) and "d1" not in found
    left = [{"id": doc_id, "text": one[0].text, "metadata": one[0].metadata} for doc_id, one in found.items()]
    fill(tmp_path / "new", OtherModel(), left)
    assert found == read(tmp_path / "new")["documents"]
    with Database(tmp_path / "old") as database, Database(tmp_path / "new") as fresh:
        sums = replace(database.get("c").stats(), last_seq=0)
        assert sums == replace(fresh.get("c").stats(), last_seq=0)


def test_a_folder_that_is_taken_between_staging_and_adopting(tmp_path: Path, seed: int) -> None:
    fill(tmp_path, FakeModel(), texts(np.random.default_rng(seed), 40))
    opened: list[Database] = []

    def meanwhile() -> None:
        if not opened:
            opened.append(Database(tmp_path))
            opened[0].announce("http://there")

    report = again(tmp_path, OtherModel(before=meanwhile))
    assert report.status == "staged" and report.holder is not None and report.holder.url == "http://there"
    opened[0].close()
    report = again(tmp_path)  # nobody is there any more: without --finish too
    assert (report.status, report.embedded) == ("adopted", 0)


def test_a_change_just_before_the_folder_is_taken(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, FakeModel(), texts(np.random.default_rng(seed), 40))
    genuine = reindexing._holding

    def late(folder: Path) -> AbstractContextManager[None]:
        with Database(folder) as database:
            put(database.get("c"), "d3", "changed at the last moment")
        return genuine(folder)

    monkeypatch.setattr(reindexing, "_holding", late)
    report = again(tmp_path)
    assert (report.status, report.embedded) == ("adopted", 41)
    assert finds(tmp_path, "d3", "changed at the last moment")


CHILD = """
import os, signal, sys
from pathlib import Path
from app import reindex as reindexing
from app.index import restage
from tests import test_reindex as here

folder, moment, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
model = here.OtherModel()
if moment == "forward":
    model.before = lambda: die() if model.count >= number else None
else:
    genuine, restage.PAGE = restage.adopt, 16
    def adopt(source, target, progress):
        def watched(done, total):
            if moment == "page" and done >= number: die()
            progress(done, total)
        print("adopting", flush=True)
        if moment == "committed": restage.shutil.rmtree = die
        if moment == "tidying": restage._remove = die
        return genuine(source, target, watched)
    restage.adopt = adopt
here.again(folder, model)
print("done", flush=True)
"""


def child(folder: Path, moment: str, number: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), moment, str(number)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    documents = texts(rng, 120)
    fill(tmp_path / "old", FakeModel(), documents)
    done = 0
    for number in (30, 50):
        process = child(tmp_path / "old", "forward", number)
        assert process.wait() == -signal.SIGKILL
        done += number  # at least so many are kept
    model = OtherModel()
    report = again(tmp_path / "old", model)
    assert report.status == "adopted" and report.embedded == model.count <= 120 - done
    fill(tmp_path / "new", OtherModel(), documents)
    assert read(tmp_path / "old") == read(tmp_path / "new")


def test_a_kill_while_adopting_leaves_the_old_or_the_new(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    documents = texts(rng, 60)
    fill(tmp_path / "old", FakeModel(), documents)
    fill(tmp_path / "new", OtherModel(), documents)
    old, new = read(tmp_path / "old"), read(tmp_path / "new")
    saved = tmp_path / "saved.sqlite3"
    saved.write_bytes((tmp_path / "old" / FILE_NAME).read_bytes())
    moments = [("page", 16), ("page", 60), ("committed", 0), ("tidying", 0)]
    seen = set()
    for moment, number in [*moments, *[("random", 0)] * 6]:
        process = child(tmp_path / "old", moment, number)
        assert process.stdout is not None and process.stdout.readline() == "adopting\n"
        if moment == "random":
            time.sleep(rng.random() * 0.04)
            process.kill()
        process.wait()
        found = read(tmp_path / "old")
        assert found in (old, new)
        seen.add(found == new)
        if moment != "random":
            assert (found == new) == (moment in ("committed", "tidying")) and process.returncode < 0
        report = again(tmp_path / "old")
        assert report.status == ("current" if found == new else "adopted") and report.embedded == 0
        assert read(tmp_path / "old") == new
        assert not list((tmp_path / "old" / restage.STAGING).glob("*.sqlite3*"))
        (tmp_path / "old" / FILE_NAME).write_bytes(saved.read_bytes())
    assert seen == {True, False}


def test_a_disk_that_is_full_keeps_what_was_embedded(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = texts(np.random.default_rng(seed), 100)
    fill(tmp_path, FakeModel(), documents)
    old, genuine = read(tmp_path), restage._opened

    def small(pages: int, name: str) -> Callable[[Path], sqlite3.Connection]:
        def opened(path: Path) -> sqlite3.Connection:
            connection = genuine(path)
            if path.parent.name == name:
                connection.execute(f"PRAGMA max_page_count = {pages}")  # no other way to fill a disk here
            return connection

        return opened

    model = OtherModel(card=replace(OTHER, hidden_size=300, colbert_dim=200))
    monkeypatch.setattr(restage, "_opened", small(100, restage.STAGING))
    with pytest.raises(StorageFull, match="what was embedded before is kept"):
        again(tmp_path, model)
    kept = model.count
    monkeypatch.setattr(restage, "_opened", small(1, tmp_path.name))  # not one page more than there are
    with pytest.raises(StorageFull, match="nothing was changed"):
        again(tmp_path, model)
    assert 0 < kept < 100 <= model.count < 110  # what was in the pass that was not kept came twice
    monkeypatch.undo()
    assert read(tmp_path) == old
    report = again(tmp_path, model)
    assert (report.status, report.embedded) == ("adopted", 0)


def test_documents_that_cannot_be_embedded_are_named_and_nothing_is_adopted(
    tmp_path: Path, seed: int
) -> None:
    fill(
        tmp_path, FakeModel(), [*texts(np.random.default_rng(seed), 80), {"id": "bad", "text": "a poison b"}]
    )
    old = read(tmp_path)
    model = OtherModel(infinite={token_id("poison")})
    report = again(tmp_path, model)
    assert (report.status, report.embedded) == ("refused", 80)
    assert [one.document_id for one in report.refused] == ["bad"] and "dense" in str(report.refused[0])
    assert read(tmp_path) == old
    with Database(tmp_path) as database:
        database.get("c").delete(["bad"])
    report = again(tmp_path, model)
    assert (report.status, report.embedded, report.documents) == ("adopted", 0, 80)


def never() -> FakeModel:
    raise AssertionError("no model is needed to see what is wrong")


def test_what_is_not_there(tmp_path: Path) -> None:
    for finish in (False, True):
        with pytest.raises(StorageUnavailable, match="no data folder"):
            reindex(settings(tmp_path / "none"), "c", never, finish=finish)
    assert not (tmp_path / "none").exists()
    fill(tmp_path, FakeModel(), [])
    with pytest.raises(CollectionNotFound):
        reindex(settings(tmp_path), "nobody", never)
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(StorageDamaged, match="update Trivec"):
        reindex(settings(tmp_path), "c", never)


def test_an_empty_collection_and_one_that_is_dropped_meanwhile(tmp_path: Path) -> None:
    fill(tmp_path, FakeModel(), [])
    assert again(tmp_path).status == "adopted"
    assert read(tmp_path)["of"] == (OTHER.fingerprint, WIDTH, COLBERT)
    fill(tmp_path / "b", FakeModel(), texts(np.random.default_rng(0), 9))
    with Database(tmp_path / "b") as database:

        def drop() -> None:
            if "c" in [one.name for one in database.list()]:
                database.drop("c")

        with pytest.raises(CollectionNotFound):
            again(tmp_path / "b", OtherModel(before=drop))
    assert list((tmp_path / "b" / restage.STAGING).glob("*.sqlite3"))
    again(tmp_path / "b", name="other")  # which takes what is of no use with it
    assert not list((tmp_path / "b" / restage.STAGING).glob("*.sqlite3*"))


def test_staged_embeddings_that_do_not_fit_are_not_mixed(tmp_path: Path) -> None:
    fill(tmp_path, FakeModel(), texts(np.random.default_rng(1), 20))
    with Database(tmp_path):
        assert again(tmp_path).status == "staged"
        with pytest.raises(StorageUnavailable, match="begun with other settings"):
            reindex(settings(tmp_path).model_copy(update={"passage_max_length": 41}), "c", OtherModel)
        with pytest.raises(StorageUnavailable, match="begun with other settings"):
            again(tmp_path, OtherModel(card=replace(OTHER, precision="int8")))
    # A third model has a file of its own.
    assert again(tmp_path, OtherModel(card=replace(OTHER, fingerprint="0c" * 32))).embedded == 20
    (file,) = (tmp_path / restage.STAGING).glob("*.sqlite3")
    for damage in ("scratched", "stranger"):
        if damage == "scratched":
            file.write_bytes(b"not a database" * 1000)
        else:
            file.unlink()
            with closing(sqlite3.connect(file)) as connection:
                connection.execute("CREATE TABLE t (x)")
        with pytest.raises(StorageDamaged, match="remove it"):
            again(tmp_path)
    file.unlink()
    assert again(tmp_path).embedded == 20


def test_one_at_a_time(tmp_path: Path) -> None:
    fill(tmp_path, FakeModel(), texts(np.random.default_rng(2), 20))

    def second() -> None:
        model.before = lambda: None
        with pytest.raises(StorageUnavailable, match=f"process {os.getpid()} is reindexing"):
            reindex(settings(tmp_path), "c", never)

    model = OtherModel(before=second)
    assert again(tmp_path, model).status == "adopted" and model.count == 20


@pytest.mark.parametrize("served", [False, True])
def test_a_folder_of_an_older_format(tmp_path: Path, served: bool) -> None:
    """Brought up to date where nobody serves it; else its server has to be a newer one first."""
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection, connection:
        for statement in MIGRATIONS[0]:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
        chosen = '{"dense_index": "exact", "colbert": "float16", "fusion": {}}'
        connection.execute(
            "INSERT INTO collections VALUES (1, 'c', ?, ?, 24, 16, '', 1)", (chosen, CARD.fingerprint)
        )
        connection.execute(
            "INSERT INTO documents VALUES (1, 1, 'd', 1, 4, 0, 3, 2, NULL, NULL, NULL, '{}', 'a b')"
        )
        connection.execute("INSERT INTO vectors VALUES (1, NULL, NULL, NULL, NULL, NULL)")
    if served:
        lock = FolderLock(tmp_path)
        with pytest.raises(StorageUnavailable, match="restart that server"):
            reindex(settings(tmp_path), "c", never)
        lock.release()
    assert again(tmp_path, finish=served).embedded == 1
    assert read(tmp_path)["documents"]["d"][1] == 4
