"""A collection's embeddings by another model: staged in a file beside the database, then adopted at once.

A process that does not own the data folder may stage, for it only reads the database; adopting needs the
folder's lock. A staged row bears the stamp of the version whose text was embedded, so whatever changes
meanwhile is known, and staging that was killed goes on where it was. Nothing here computes embeddings.

Legend: n documents, D hidden size, C ColBERT dimension.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.index import catalogue, fetch, records
from app.index.digests import damaged, digest, of_document
from app.index.errors import (
    CollectionNotFound,
    DataFolderInUse,
    StorageDamaged,
    StorageFault,
    StorageFull,
    StorageUnavailable,
)
from app.index.facts import Keys
from app.index.owner import FolderLock
from app.index.storage import APPLICATION_ID, BUSY_TIMEOUT_MS, FILE_NAME, MIGRATIONS, Storage, translated
from app.index.values import CollectionInfo, Document
from model.embedding import Embedding, LexicalWeights

STAGING = "reindex"
"""The folder of staged embeddings beside the database. It may be removed while no reindexing runs."""
SEGMENTS = "segments"
STAGING_ID = 0x54525653  # "TRVS"
STAGING_VERSION = 3
PAGE = 500
"""Documents that are adopted with one statement for each table."""

_NAME = re.compile(r"([0-9]+)-([0-9A-Za-z]+)\.sqlite3")
_SCHEMA = (
    """
    CREATE TABLE embeddings (
        document INTEGER PRIMARY KEY,
        stamp INTEGER NOT NULL,
        tokens INTEGER NOT NULL,
        truncated INTEGER NOT NULL,
        dense BLOB,
        sparse_indices BLOB,
        sparse_values BLOB,
        terms BLOB,
        counts BLOB,
        length INTEGER,
        codes BLOB,
        tokens_of_row BLOB,
        vectors_digest INTEGER NOT NULL,
        codes_digest INTEGER NOT NULL
    )
    """,
    # Which versions are staged is read from here, without passing over the vectors.
    "CREATE INDEX versions ON embeddings (document, stamp)",
    "CREATE TABLE recipe (json TEXT NOT NULL)",
)
_CURRENT = (
    "FROM staged.embeddings e JOIN documents d ON d.key = e.document AND d.stamp = e.stamp "
    "WHERE d.collection = :collection AND e.document BETWEEN :first AND :last"
)
# In this order: the last one gives the documents new stamps.
_ADOPT = (
    "DELETE FROM token_vectors WHERE document IN (SELECT key FROM documents INDEXED BY versions "
    "WHERE collection = :collection AND key BETWEEN :first AND :last)",
    f"INSERT INTO token_vectors (document, codes, tokens_of_row, digest) "
    f"SELECT e.document, e.codes, e.tokens_of_row, e.codes_digest {_CURRENT} "
    "AND e.codes IS NOT NULL ORDER BY e.document",
    "INSERT OR REPLACE INTO vectors (document, dense, sparse_indices, sparse_values, terms, counts, digest) "
    "SELECT e.document, e.dense, e.sparse_indices, e.sparse_values, e.terms, e.counts, e.vectors_digest "
    f"{_CURRENT} ORDER BY e.document",
    "UPDATE documents SET tokens = e.tokens, truncated = e.truncated, dense_bytes = length(e.dense), "
    "sparse_bytes = length(e.sparse_indices) + length(e.sparse_values), colbert_bytes = length(e.codes), "
    "terms_bytes = length(e.terms) + length(e.counts), length = e.length, "
    "stamp = random() & 0x7fffffffffffffff "
    "FROM staged.embeddings e WHERE e.document = documents.key AND e.stamp = documents.stamp "
    "AND documents.collection = :collection AND documents.key BETWEEN :first AND :last",
)

Progress = Callable[[int, int], None]
"""Documents done, documents in all."""
Row = tuple[int | bytes | None, ...]
"""As the columns of `embeddings`."""


@dataclass(frozen=True, slots=True)
class Text:
    """The present version of a document, as far as a model needs it."""

    key: int
    stamp: int
    doc_id: str
    text: str


class Source:
    """A collection as it is now, whoever owns the folder; every method sees a moment of its own.

    `owned` says that the caller holds the folder's lock. Raises StorageUnavailable where the folder holds
    no data or an older Trivec serves it, StorageDamaged, CollectionNotFound.
    """

    def __init__(self, folder: Path, name: str, *, owned: bool = False) -> None:
        check_folder(folder)
        self.folder = folder
        with translated():
            self._connection = _opened(folder / FILE_NAME)
            try:
                _check_format(self._connection, folder, owned=owned)
                self._connection.execute("PRAGMA query_only = ON")
                everything = {info.name: (key, info) for key, info in catalogue.everything(self._connection)}
            except BaseException:
                self._connection.close()
                raise
        if name not in everything:
            self._connection.close()
            raise CollectionNotFound(name)
        self.key, self.info = everything[name]
        self.collections = {key: info.fingerprint for key, info in everything.values()}
        """Fingerprints by the keys of all collections."""

    def versions(self) -> tuple[Keys, Keys]:
        """Keys and stamps of all documents, ascending; CollectionNotFound once it was dropped."""
        with translated():
            # One transaction: a collection that is dropped in between must not look empty.
            self._connection.execute("BEGIN")
            try:
                rows = self._connection.execute(
                    "SELECT count(*) FROM collections WHERE id = ?", (self.key,)
                ).fetchone()
                found = fetch.versions(self._connection, self.key)
            finally:
                self._connection.execute("ROLLBACK")
        if not rows[0]:
            raise CollectionNotFound(self.info.name)
        return found

    def texts(self, keys: Sequence[int]) -> list[Text]:
        """What those of the documents hold that exist, in ascending order of key."""
        marks = ",".join("?" * len(keys))
        sql = (
            "SELECT key, stamp, doc_id, text, metadata, digest "
            f"FROM documents WHERE key IN ({marks}) ORDER BY key"
        )
        with translated():
            rows = self._connection.execute(sql, tuple(keys)).fetchall()
        for key, _, doc_id, text, metadata, sealed in rows:
            if sealed != of_document(key, doc_id, metadata, text):
                raise damaged(key, "text")
        return [Text(*row[:4]) for row in rows]

    def close(self) -> None:
        """Let the database go."""
        self._connection.close()


class Staging:
    """The embeddings that are staged for one collection and one model: the open file."""

    def __init__(self, folder: Path, key: int, target: CollectionInfo, recipe: Mapping[str, object]) -> None:
        """`target` is the collection as it will be; `recipe` says what else decides the vectors.

        Raises StorageUnavailable where the file was begun with another recipe.
        """
        self.path = staging_path(folder, key, target.fingerprint)
        self._target = target
        said = {**recipe, "fingerprint": target.fingerprint}
        with _staged(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = _opened(self.path)
            try:
                self._begin(json.dumps(said, sort_keys=True))
            except BaseException:
                self._connection.close()
                raise

    def versions(self) -> tuple[Keys, Keys]:
        """Keys and stamps of what is staged, ascending."""
        with _staged(self.path):
            rows = self._connection.execute(
                "SELECT document, stamp FROM embeddings INDEXED BY versions ORDER BY document"
            ).fetchall()
        pairs = np.array(rows, np.int64).reshape(-1, 2)
        return pairs[:, 0].copy(), pairs[:, 1].copy()

    def row(self, text: Text, embedding: Embedding, terms: LexicalWeights | None) -> Row:
        """A document's embedding as an upsert would store it; DocumentInvalid where it cannot be."""
        record = records.encode(Document(text.doc_id, text.text, embedding, terms=terms), self._target)
        parts = records.vector_parts(embedding, record.terms)
        return (
            text.key,
            text.stamp,
            embedding.tokens,
            int(embedding.truncated),
            *parts,
            record.length,
            record.codes,
            record.tokens_of_row,
            digest(text.key, *parts),
            digest(text.key, record.codes, record.tokens_of_row),
        )

    def put(self, rows: Sequence[Row]) -> None:
        """Keep these rows: a process that is killed afterwards has them, StorageFull keeps none."""
        with _staged(self.path), _transaction(self._connection, "BEGIN"):
            self._connection.executemany(
                f"INSERT OR REPLACE INTO embeddings VALUES ({', '.join('?' * 14)})", rows
            )

    def close(self) -> None:
        """Close the file; what is staged stays."""
        self._connection.close()

    def _begin(self, recipe: str) -> None:
        connection = self._connection
        application, version, tables = (
            int(connection.execute(sql).fetchone()[0])
            for sql in (
                "PRAGMA application_id",
                "PRAGMA user_version",
                "SELECT count(*) FROM sqlite_master",
            )
        )
        if (tables or version) and (application, version) != (STAGING_ID, STAGING_VERSION):
            raise StorageDamaged(f"{self.path}: holds no embeddings of this version of Trivec; remove it")
        connection.execute("PRAGMA journal_mode = WAL")
        # No sync for each batch: what a power failure takes is embedded again, and adopting is synced.
        connection.execute("PRAGMA synchronous = NORMAL")
        if not version:
            with _transaction(connection, "BEGIN IMMEDIATE"):
                for statement in _SCHEMA:
                    connection.execute(statement)
                connection.execute("INSERT INTO recipe VALUES (?)", (recipe,))
                connection.execute(f"PRAGMA application_id = {STAGING_ID}")
                connection.execute(f"PRAGMA user_version = {STAGING_VERSION}")
        (found,) = connection.execute("SELECT json FROM recipe").fetchone()
        if found != recipe:
            raise StorageUnavailable(
                f"{self.path} was begun with other settings: {found}, now {recipe}; "
                "use those again, or remove the file to begin anew"
            )


def check_folder(folder: Path) -> None:
    """StorageUnavailable unless the folder holds a database."""
    if not (folder / FILE_NAME).is_file():
        raise StorageUnavailable(f"{folder}: holds no {FILE_NAME}, so it is no data folder of Trivec")


def staging_path(folder: Path, key: int, fingerprint: str) -> Path:
    """Where the embeddings by a model are staged for a collection."""
    return folder / STAGING / f"{key}-{fingerprint[:16]}.sqlite3"


def missing(source: Source, staging: Staging) -> tuple[Keys, Keys]:
    """Keys and stamps of the documents whose present version is not staged, ascending."""
    keys, stamps = source.versions()
    staged, known = staging.versions()
    if not staged.size:
        return keys, stamps
    at = np.minimum(np.searchsorted(staged, keys), len(staged) - 1)
    lacking = (staged[at] != keys) | (known[at] != stamps)
    return keys[lacking], stamps[lacking]


def adopt(source: Source, target: CollectionInfo, progress: Progress) -> int:
    """Make the staged embeddings the collection's, all or none; how many documents it has.

    The caller holds the folder's lock and has closed the staging file. A process that is killed leaves the
    collection of the old model or that of the new one. Sequence numbers stay: no text has changed.
    Raises StorageUnavailable where a document's present version is not staged, StorageFull.
    """
    folder, key = source.folder, source.key
    path = staging_path(folder, key, target.fingerprint)
    with _adopting(path), translated():
        connection = _opened(folder / FILE_NAME)
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("ATTACH ? AS staged", (str(path),))
            with _transaction(connection, "BEGIN IMMEDIATE"):
                count = _adopted(connection, key, target, progress)
        finally:
            connection.close()
    # Segments hold the old vectors. Were they left, their stamps would say so at the next start.
    shutil.rmtree(folder / SEGMENTS / str(key), ignore_errors=True)
    _remove(path)
    return count


def tidy(source: Source) -> None:
    """Remove what is staged for collections that are no more, or that are of that model already."""
    of = {key: fingerprint[:16] for key, fingerprint in source.collections.items()}
    for path in (source.folder / STAGING).glob("*.sqlite3"):
        name = _NAME.fullmatch(path.name)
        if name is not None and of.get(int(name[1])) in (None, name[2]):
            _remove(path)


def _adopted(connection: sqlite3.Connection, key: int, target: CollectionInfo, progress: Progress) -> int:
    keys = fetch.all_keys(connection, key).tolist()
    for begin in range(0, len(keys), PAGE):
        page = keys[begin : begin + PAGE]
        span = {"collection": key, "first": page[0], "last": page[-1]}
        *_, last = [connection.execute(statement, span).rowcount for statement in _ADOPT]
        if last != len(page):
            raise StorageUnavailable("documents have changed since they were embedded; run the command again")
        progress(begin + len(page), len(keys))
    parts = ("dense_bytes", "sparse_bytes", "colbert_bytes", "terms_bytes", "length")
    sums = ", ".join(f"coalesce(sum({part}), 0)" for part in parts)
    changed = connection.execute(
        "UPDATE collections SET fingerprint = ?, hidden_size = ?, colbert_dim = ?, "
        f"({', '.join(parts)}) = (SELECT {sums} FROM documents WHERE collection = ?) "
        "WHERE id = ?",
        (target.fingerprint, target.hidden_size, target.colbert_dim, key, key),
    ).rowcount
    if not changed:
        raise CollectionNotFound(target.name)
    return len(keys)


def _opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    return connection


def _check_format(connection: sqlite3.Connection, folder: Path, *, owned: bool) -> None:
    """Bring an older format up to date, as a server would at its start; refuse what is not ours or newer."""
    application, version = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("application_id", "user_version")
    )
    if application == APPLICATION_ID and version == len(MIGRATIONS):
        return
    if owned:
        Storage(folder).close()
        return
    try:
        lock = FolderLock(folder)
    except DataFolderInUse as error:
        raise StorageUnavailable(
            f"{folder}: {FILE_NAME} has format version {version} and another version of Trivec serves it: "
            "restart that server with this version first"
        ) from error
    try:
        Storage(folder).close()
    finally:
        lock.release()


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Iterator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # SQLite has itself rolled back after some errors
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _staged(path: Path) -> Iterator[None]:
    """Faults of the staging file under its own name, with what to do about them."""
    try:
        with translated():
            yield
    except StorageFull as error:
        raise StorageFull(
            f"no space left for {path}; what was embedded before is kept: make room and run the command again"
        ) from error
    except StorageFault as error:
        if not isinstance(error.__cause__, sqlite3.Error):
            raise
        raise type(error)(f"{path} cannot be used ({error.__cause__}); remove it to begin anew") from error
    except OSError as error:
        raise StorageUnavailable(f"{path.parent} cannot be used: {error.strerror}") from error


@contextmanager
def _adopting(path: Path) -> Iterator[None]:
    try:
        yield
    except StorageFull as error:
        size = path.stat().st_size / 1e9
        raise StorageFull(
            f"no space left to adopt {path}: for a while it takes about its size ({size:.1f} GB) again; "
            "nothing was changed, what was embedded is kept: make room and run the command again"
        ) from error


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        with suppress(OSError):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
