"""The statements that read a collection's rows. Each works inside the caller's transaction.

Legend: n documents, D hidden size.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from app.index.errors import CollectionNotFound, StorageDamaged
from app.index.facts import Keys
from app.index.filters import is_unicode
from app.index.values import CollectionStats, StoredDocument
from model.embedding import OUTPUTS, FloatArray, LexicalWeights

PAGE = 500
"""Keys of one statement."""

_STORED = "doc_id, text, metadata, tokens, truncated, seq, dense_bytes, sparse_bytes, colbert_bytes"


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """Stored vectors, as the bytes that they are; None where a document lacks the output. [n] each."""

    keys: Keys
    dense: list[bytes | None]
    indices: list[bytes | None]
    values: list[bytes | None]
    codes: list[bytes | None]
    """Token vectors, or all None where they were not asked for."""


def all_keys(connection: sqlite3.Connection, collection: int) -> Keys:
    """The keys of all documents of a collection, ascending."""
    return versions(connection, collection)[0]


def versions(connection: sqlite3.Connection, collection: int) -> tuple[Keys, Keys]:
    """Keys and stamps of all documents, in ascending order of key."""
    rows = connection.execute(
        "SELECT key, stamp FROM documents INDEXED BY versions WHERE collection = ? ORDER BY key",
        (collection,),
    ).fetchall()
    pairs = np.array(rows, np.int64).reshape(-1, 2)
    return pairs[:, 0].copy(), pairs[:, 1].copy()


def document(connection: sqlite3.Connection, collection: int, doc_id: str) -> StoredDocument | None:
    """One document by its id."""
    if not is_unicode(doc_id):
        return None
    sql = f"SELECT {_STORED} FROM documents WHERE collection = ? AND doc_id = ?"
    rows = connection.execute(sql, (collection, doc_id)).fetchall()
    return _stored(rows[0]) if rows else None


def documents(
    connection: sqlite3.Connection, collection: int, after: str, limit: int
) -> list[StoredDocument]:
    """The next documents in the order of their ids."""
    sql = f"SELECT {_STORED} FROM documents WHERE collection = ? AND doc_id > ? ORDER BY doc_id LIMIT ?"
    return [_stored(row) for row in connection.execute(sql, (collection, after, limit)).fetchall()]


def documents_by_key(connection: sqlite3.Connection, keys: Keys) -> dict[int, StoredDocument]:
    """Documents by their keys; those that are gone are left out."""
    found: dict[int, StoredDocument] = {}
    for page in _pages(keys):
        sql = f"SELECT {_STORED}, key FROM documents WHERE key IN ({','.join('?' * len(page))})"
        found.update({int(row[-1]): _stored(row[:-1]) for row in connection.execute(sql, page)})
    return found


def ids_by_key(connection: sqlite3.Connection, keys: Keys) -> dict[int, str]:
    """Documents' ids by their keys; those that are gone are left out."""
    found: dict[int, str] = {}
    for page in _pages(keys):
        marks = ",".join("?" * len(page))
        sql = f"SELECT key, doc_id FROM documents WHERE key IN ({marks})"
        found.update(connection.execute(sql, page).fetchall())
    return found


def vectors(connection: sqlite3.Connection, keys: Keys, *, colbert: bool) -> Vectors:
    """The stored vectors of those keys that exist, in ascending order of key."""
    found = Vectors(keys, [], [], [], [])
    present: list[int] = []
    last, join = "NULL", ""
    if colbert:
        last, join = "t.codes", "LEFT JOIN token_vectors t ON t.document = v.document"
    for page in _pages(np.sort(keys)):
        sql = (
            f"SELECT v.document, v.dense, v.sparse_indices, v.sparse_values, {last} FROM vectors v {join} "
            f"WHERE v.document IN ({','.join('?' * len(page))}) ORDER BY v.document"
        )
        for key, dense, indices, values, codes in connection.execute(sql, page):
            present.append(key)
            found.dense.append(dense)
            found.indices.append(indices)
            found.values.append(values)
            found.codes.append(codes)
    return Vectors(np.array(present, np.int64), found.dense, found.indices, found.values, found.codes)


def tokens_of_rows(connection: sqlite3.Connection, keys: Keys) -> dict[int, bytes]:
    """Of documents with pooled token vectors, how many tokens each row has, as uint16."""
    found: dict[int, bytes] = {}
    for page in _pages(keys):
        marks = ",".join("?" * len(page))
        sql = (
            "SELECT document, tokens_of_row FROM token_vectors "
            f"WHERE document IN ({marks}) AND tokens_of_row IS NOT NULL"
        )
        found.update(connection.execute(sql, page).fetchall())
    return found


def stream(
    connection: sqlite3.Connection, keys: Keys, *, colbert: bool
) -> Iterator[tuple[int, int, bytes | None, bytes | None, bytes | None, bytes | None]]:
    """Key, stamp, dense vector, terms, weights and codes of documents, ascending, a page at a time."""
    last, join = ("t.codes", "LEFT JOIN token_vectors t ON t.document = d.key") if colbert else ("NULL", "")
    for page in _pages(np.sort(keys)):
        sql = (
            f"SELECT d.key, d.stamp, v.dense, v.sparse_indices, v.sparse_values, {last} FROM documents d "
            f"JOIN vectors v ON v.document = d.key {join} "
            f"WHERE d.key IN ({','.join('?' * len(page))}) ORDER BY d.key"
        )
        yield from connection.execute(sql, page).fetchall()


def stats(connection: sqlite3.Connection, collection: int, name: str) -> CollectionStats:
    """Counts and sizes, kept with the collection."""
    rows = connection.execute(
        "SELECT count, last_seq, text_bytes, metadata_bytes, dense_bytes, sparse_bytes, colbert_bytes "
        "FROM collections WHERE id = ?",
        (collection,),
    ).fetchall()
    if not rows:
        raise CollectionNotFound(name)
    return CollectionStats(*map(int, rows[0]))


def floats(blob: bytes | None) -> FloatArray | None:
    """A dense vector as it is stored. Shape: [D]."""
    return None if blob is None else np.frombuffer(blob, "<f4")


def lexical(indices: bytes | None, values: bytes | None) -> LexicalWeights | None:
    """Lexical weights as they are stored."""
    if indices is None or values is None:
        return None
    return LexicalWeights(np.frombuffer(indices, "<i4"), np.frombuffer(values, "<f4"))


def _stored(row: Sequence[object]) -> StoredDocument:
    doc_id, text, metadata, tokens, truncated, seq, *sizes = row
    outputs = frozenset(name for name, size in zip(OUTPUTS, sizes, strict=True) if size is not None)
    assert isinstance(tokens, int) and isinstance(seq, int)  # the columns are NOT NULL INTEGER
    try:
        facts = json.loads(str(metadata))
    except ValueError as error:
        raise StorageDamaged("stored metadata is no JSON; restore a backup") from error
    return StoredDocument(str(doc_id), str(text), facts, tokens, bool(truncated), seq, outputs)


def _pages(keys: Keys) -> Iterator[list[int]]:
    values = keys.tolist()
    for first in range(0, len(values), PAGE):
        yield values[first : first + PAGE]
