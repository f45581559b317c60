"""One SQLite file that is the truth: every other structure of the index can be rebuilt from it.

This file opens it, brings its format up to date and hands out transactions; what is in the rows is
`records.py`'s affair. Writers take turns, readers see a snapshot and wait for nobody (WAL). A
transaction that has ended without an error is on the disk: synchronous=FULL syncs every commit.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from app.index import digests
from app.index.errors import StorageDamaged, StorageFault, StorageFull, StorageUnavailable

FILE_NAME = "trivec.sqlite3"
APPLICATION_ID = 0x54525643  # "TRVC", so that another program's database is not taken for ours
BUSY_TIMEOUT_MS = 10_000
READER_CACHE_KIB = 8192
"""Pages that a reader keeps: the inner pages of a large table's tree, at least."""
IDLE_READERS = 16
"""Connections kept for the next reader; more are opened while more read at once."""

_PARTS = ("text", "metadata", "dense", "sparse", "colbert")

# The statements that lead from format version n to n + 1. Never edit one that was released: add another.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE collections (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            name TEXT NOT NULL UNIQUE,
            settings TEXT NOT NULL,
            fingerprint TEXT NOT NULL,
            hidden_size INTEGER NOT NULL,
            colbert_dim INTEGER NOT NULL,
            created TEXT NOT NULL,
            last_seq INTEGER NOT NULL DEFAULT 0
        )
        """,
        # AUTOINCREMENT: a deleted document's key never comes back, so that a search that still holds
        # the key finds nothing instead of another document.
        """
        CREATE TABLE documents (
            key INTEGER PRIMARY KEY AUTOINCREMENT,
            collection INTEGER NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
            doc_id TEXT NOT NULL,
            seq INTEGER NOT NULL,
            tokens INTEGER NOT NULL,
            truncated INTEGER NOT NULL,
            text_bytes INTEGER NOT NULL,
            metadata_bytes INTEGER NOT NULL,
            dense_bytes INTEGER,
            sparse_bytes INTEGER,
            colbert_bytes INTEGER,
            metadata TEXT NOT NULL,
            text TEXT NOT NULL,
            UNIQUE (collection, doc_id)
        )
        """,
        # Sizes are summed from this index alone, without visiting the documents.
        """
        CREATE INDEX sizes ON documents (
            collection, text_bytes, metadata_bytes, dense_bytes, sparse_bytes, colbert_bytes
        )
        """,
        # A table of their own: what reads texts does not page through vectors. Little endian; dense and
        # sparse float32 and int32, colbert as the collection's settings say; NULL is an absent output.
        """
        CREATE TABLE vectors (
            document INTEGER PRIMARY KEY REFERENCES documents (key) ON DELETE CASCADE,
            dense BLOB,
            sparse_indices BLOB,
            sparse_values BLOB,
            colbert_rows INTEGER,
            colbert BLOB
        )
        """,
        # `value` has no type on purpose: an affinity would turn "1" into 1.
        """
        CREATE TABLE facts (
            collection INTEGER NOT NULL,
            document INTEGER NOT NULL REFERENCES documents (key) ON DELETE CASCADE,
            path TEXT NOT NULL,
            kind TEXT NOT NULL,
            value NOT NULL
        )
        """,
        "CREATE INDEX facts_by_value ON facts (collection, path, kind, value, document)",
        "CREATE INDEX facts_by_document ON facts (document)",
    ),
    (
        # What a version of a document is known by in derived files: drawn at random with each change, so
        # that a file can never be taken for current, not even beside an older copy of this database.
        "ALTER TABLE documents ADD COLUMN stamp INTEGER NOT NULL DEFAULT 0",
        "UPDATE documents SET stamp = random() & 0x7fffffffffffffff",
        "CREATE INDEX versions ON documents (collection, key, stamp)",
        # Sums are kept, not counted: the index that they were read from cost a write for each document.
        *(
            f"ALTER TABLE collections ADD COLUMN {name} INTEGER NOT NULL DEFAULT 0"
            for name in ("count", *(f"{part}_bytes" for part in _PARTS))
        ),
        """
        UPDATE collections
        SET (count, text_bytes, metadata_bytes, dense_bytes, sparse_bytes, colbert_bytes) = (
            SELECT count(*), coalesce(sum(text_bytes), 0), coalesce(sum(metadata_bytes), 0),
                   coalesce(sum(dense_bytes), 0), coalesce(sum(sparse_bytes), 0),
                   coalesce(sum(colbert_bytes), 0)
            FROM documents WHERE collection = collections.id
        )
        """,
        "DROP INDEX sizes",
        # Token vectors are large: what reads the other vectors of a whole collection does not pass over them.
        """
        CREATE TABLE token_vectors (
            document INTEGER PRIMARY KEY REFERENCES documents (key) ON DELETE CASCADE,
            codes BLOB NOT NULL,
            tokens_of_row BLOB
        )
        """,
        "INSERT INTO token_vectors SELECT document, colbert, NULL FROM vectors WHERE colbert IS NOT NULL",
        "ALTER TABLE vectors DROP COLUMN colbert_rows",
        "ALTER TABLE vectors DROP COLUMN colbert",
        # One tree instead of a table and its index.
        """
        CREATE TABLE facts_in_order (
            collection INTEGER NOT NULL,
            path TEXT NOT NULL,
            kind TEXT NOT NULL,
            value NOT NULL,
            document INTEGER NOT NULL REFERENCES documents (key) ON DELETE CASCADE,
            PRIMARY KEY (collection, path, kind, value, document)
        ) WITHOUT ROWID
        """,
        "INSERT OR IGNORE INTO facts_in_order SELECT collection, path, kind, value, document FROM facts",
        "DROP TABLE facts",
        "ALTER TABLE facts_in_order RENAME TO facts",
        "CREATE INDEX facts_by_document ON facts (document)",
    ),
    (
        # What the rows hold is checked when they are read (`digests.py`).
        *(
            f"ALTER TABLE {table} ADD COLUMN digest INTEGER NOT NULL DEFAULT 0"
            for table in ("documents", "vectors", "token_vectors")
        ),
        # For BM25, in collections that have it: token ids int32 and their counts uint16, little endian; a
        # document's `length` is the sum of its counts.
        *(f"ALTER TABLE vectors ADD COLUMN {name} BLOB" for name in ("terms", "counts")),
        *(f"ALTER TABLE documents ADD COLUMN {name} INTEGER" for name in ("terms_bytes", "length")),
        *(
            f"ALTER TABLE collections ADD COLUMN {name} INTEGER NOT NULL DEFAULT 0"
            for name in ("terms_bytes", "length")
        ),
        "UPDATE documents SET digest = "
        "digest(key, CAST(doc_id AS BLOB), CAST(metadata AS BLOB), CAST(text AS BLOB))",
        "UPDATE vectors SET digest = digest(document, dense, sparse_indices, sparse_values, terms, counts)",
        "UPDATE token_vectors SET digest = digest(document, codes, tokens_of_row)",
    ),
)


class Storage:
    """The open file: one connection that writes, a pool of connections that read. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._write_lock = threading.Lock()
        self._pool_lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        with translated():
            self._writer = self._connect()
            try:
                _migrate(self._writer)
                self._writer.execute("PRAGMA synchronous = FULL")
            except BaseException:
                self._writer.close()
                raise

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction, alone: durable when the block has ended, undone when it raises."""
        with self._write_lock, translated():
            if self._closed:
                raise StorageUnavailable("the database is closed")
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                # SQLite has itself rolled back after some errors, a full disk among them.
                with suppress(sqlite3.Error):
                    self._writer.execute("ROLLBACK")
                raise

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A snapshot: all that the block reads is of one moment, whatever is written meanwhile."""
        with translated():
            connection = self._take()
            try:
                connection.execute("BEGIN")
                yield connection
            finally:
                self._give_back(connection)

    def close(self) -> None:
        """Wait for the writer and close; readers at work finish and close then."""
        with self._write_lock, self._pool_lock:
            if self._closed:
                return
            self._closed = True
            for connection in (*self._idle, self._writer):
                with suppress(sqlite3.Error):
                    connection.close()
            self._idle.clear()

    def _take(self) -> sqlite3.Connection:
        with self._pool_lock:
            if self._closed:
                raise StorageUnavailable("the database is closed")
            if self._idle:
                return self._idle.pop()
        connection = self._connect()
        connection.execute("PRAGMA query_only = ON")
        connection.execute(f"PRAGMA cache_size = -{READER_CACHE_KIB}")
        return connection

    def _give_back(self, connection: sqlite3.Connection) -> None:
        healthy = True
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            healthy = False
        with self._pool_lock:
            if healthy and not self._closed and len(self._idle) < IDLE_READERS:
                self._idle.append(connection)
                return
        connection.close()

    def _connect(self) -> sqlite3.Connection:
        # isolation_level=None: Python opens no transaction of its own, those here are explicit.
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            connection.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            connection.close()
            raise
        return connection


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring the file to the newest format; a stranger's file or a newer one is left untouched."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        raise StorageDamaged(
            f"{FILE_NAME} has format version {version}, this Trivec reads up to {len(MIGRATIONS)}: "
            "update Trivec, or restore a backup of the older version"
        )
    application = int(connection.execute("PRAGMA application_id").fetchone()[0])
    tables = int(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    if (version or tables) and application != APPLICATION_ID:
        raise StorageDamaged(f"{FILE_NAME} is a database of another program; choose another data folder")
    connection.execute("PRAGMA journal_mode = WAL")
    if version == len(MIGRATIONS):
        return
    digests.install(connection)
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


@contextmanager
def translated() -> Iterator[None]:
    """SQLite's errors as the index's own."""
    try:
        yield
    except sqlite3.Error as error:
        raise _fault(error) from error


def _fault(error: sqlite3.Error) -> StorageFault:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the primary code
    if code == sqlite3.SQLITE_FULL:
        return StorageFull(f"no space left for {FILE_NAME}; nothing was changed")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StorageDamaged(f"{FILE_NAME} is not a database or is damaged ({error}); restore a backup")
    if str(error).startswith("Could not decode to UTF-8"):
        # SQLite quotes the text, and a document's text is nobody's but its owner's.
        return StorageDamaged(f"{FILE_NAME}: a stored text is no UTF-8; restore a backup")
    return StorageUnavailable(f"{FILE_NAME} cannot be used: {error}")
