"""Digests of stored rows: SQLite checks its own pages' structure, and not what is written in them.

A bit that a disk has turned within a text or a vector is known by these when the row is read. Each digest
is bound to its document's key, so that a row in another's place is known too. XXH3, 64 bits (`xxhash`).
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

from app.index.errors import StorageDamaged

_MASK = (1 << 64) - 1
_log = logging.getLogger("trivec.index")


def digest(key: int, *parts: bytes | None) -> int:
    """A number of 63 bits for a document's key and some of its columns; None is not empty."""
    value = key & _MASK
    for part in parts:
        value = (value + 1) & _MASK if part is None else xxh3_64_intdigest(part, value)
    return xxh3_64_intdigest(b"", value) >> 1


def of_document(key: int, doc_id: str, metadata: str, text: str) -> int:
    """The digest of a row of `documents`."""
    return digest(key, doc_id.encode(), metadata.encode(), text.encode())


def damaged(key: int, part: str) -> StorageDamaged:
    """The error for a row that is not what was written."""
    return StorageDamaged(
        f"the document with key {key} is damaged (its {part}): "
        "`trivec verify` names it: write it again, delete it, or restore a backup"
    )


Report = Callable[[StorageDamaged], None]
"""Hears of a row that is passed over because it is not what was written."""


def raised(error: StorageDamaged) -> None:
    """The report of a reader that cannot do without the row."""
    raise error


class Logged:
    """The report of a reader that can: one bad row must not keep a collection from answering. Thread-safe."""

    def __init__(self, collection: str) -> None:
        self._collection = collection
        self._known: set[str] = set()

    @property
    def count(self) -> int:
        """Rows met so far."""
        return len(self._known)

    def __call__(self, error: StorageDamaged) -> None:
        """Log each row once."""
        if (said := str(error)) not in self._known:
            self._known.add(said)
            _log.error("collection %s: a document is passed over: %s", self._collection, said)


def install(connection: sqlite3.Connection) -> None:
    """Let SQL of this connection compute `digest(key, part, ...)`; texts are given as blobs."""
    connection.create_function("digest", -1, digest, deterministic=True)


@dataclass(frozen=True, slots=True)
class Damaged:
    """A document of which a row is not what was written."""

    collection: str
    id: str
    part: str
    """text, vectors or token vectors."""


_CHECKS = (
    (
        "text",
        "SELECT c.name, CAST(d.doc_id AS BLOB) FROM documents d JOIN collections c ON c.id = d.collection "
        "WHERE d.digest <> "
        "digest(d.key, CAST(d.doc_id AS BLOB), CAST(d.metadata AS BLOB), CAST(d.text AS BLOB))",
    ),
    (
        "vectors",
        "SELECT c.name, CAST(d.doc_id AS BLOB) FROM documents d JOIN collections c ON c.id = d.collection "
        "LEFT JOIN vectors v ON v.document = d.key "
        "WHERE v.digest IS NOT "
        "digest(d.key, v.dense, v.sparse_indices, v.sparse_values, v.terms, v.counts)",
    ),
    (
        "token vectors",
        "SELECT c.name, CAST(d.doc_id AS BLOB) FROM documents d JOIN collections c ON c.id = d.collection "
        "LEFT JOIN token_vectors t ON t.document = d.key "
        "WHERE d.colbert_bytes IS NOT length(t.codes) "
        "OR t.digest IS NOT NULL AND t.digest <> digest(d.key, t.codes, t.tokens_of_row)",
    ),
)


def check(connection: sqlite3.Connection) -> Iterator[Damaged]:
    """Read every row of the database and give those that are not what was written."""
    install(connection)
    for part, sql in _CHECKS:
        for name, doc_id in connection.execute(sql):
            yield Damaged(str(name), bytes(doc_id).decode("utf-8", "replace"), part)
