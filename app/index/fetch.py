"""The statements that read a collection's rows. Each works inside the caller's transaction.

Legend: n documents, D hidden size.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from app.index.digests import Report, damaged, digest, of_document, raised
from app.index.errors import CollectionNotFound, StorageDamaged
from app.index.facts import Keys
from app.index.filters import is_unicode
from app.index.values import CollectionStats, StoredDocument
from model.embedding import OUTPUTS, FloatArray, LexicalWeights

PAGE = 500
"""Keys of one statement."""

_STORED = (
    "key, digest, doc_id, text, metadata, tokens, truncated, seq, dense_bytes, sparse_bytes, colbert_bytes"
)
_PARTS = "v.dense, v.sparse_indices, v.sparse_values, v.terms, v.counts"
"""Of a row of `vectors`, in the order in which its digest takes them."""


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """Stored vectors, as the bytes that they are; None where a document lacks the output. [n] each."""

    keys: Keys
    dense: list[bytes | None]
    indices: list[bytes | None]
    values: list[bytes | None]
    terms: list[bytes | None]
    """For BM25: term ids, and how often each stands in the text."""
    counts: list[bytes | None]
    codes: list[bytes | None]
    """Token vectors, or all None where they were not asked for."""
    tokens_of_row: list[bytes | None]
    """Where token vectors are pooled: how many tokens each has, uint16."""


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


def documents_by_key(
    connection: sqlite3.Connection, keys: Keys, report: Report = raised
) -> dict[int, StoredDocument]:
    """Documents by their keys; those that are gone or damaged are left out."""
    found: dict[int, StoredDocument] = {}
    for page in _pages(keys):
        sql = f"SELECT {_STORED} FROM documents WHERE key IN ({','.join('?' * len(page))})"
        for row in connection.execute(sql, page):
            try:
                found[int(row[0])] = _stored(row)
            except StorageDamaged as error:
                report(error)
    return found


def ids_by_key(connection: sqlite3.Connection, keys: Keys) -> dict[int, str]:
    """Documents' ids by their keys; those that are gone are left out."""
    found: dict[int, str] = {}
    for page in _pages(keys):
        marks = ",".join("?" * len(page))
        sql = f"SELECT key, doc_id FROM documents WHERE key IN ({marks})"
        found.update(connection.execute(sql, page).fetchall())
    return found


def vectors(connection: sqlite3.Connection, keys: Keys, *, colbert: bool, report: Report = raised) -> Vectors:
    """The stored vectors of those keys that exist and are not damaged, in ascending order of key."""
    found = Vectors(keys, [], [], [], [], [], [], [])
    present: list[int] = []
    last, join = _token_vectors("v.document", wanted=colbert)
    for page in _pages(np.sort(keys)):
        sql = (
            f"SELECT v.document, v.digest, {_PARTS}, {last} "
            f"FROM vectors v {join} WHERE v.document IN ({','.join('?' * len(page))}) ORDER BY v.document"
        )
        for row in connection.execute(sql, page):
            key, _, dense, indices, values, terms, counts, _, codes, tokens_of_row = row
            if fault := _fault(key, row[1:7], row[7:]):  # each digest with what it is of
                report(fault)
                continue
            present.append(key)
            found.dense.append(dense)
            found.indices.append(indices)
            found.values.append(values)
            found.terms.append(terms)
            found.counts.append(counts)
            found.codes.append(codes)
            found.tokens_of_row.append(tokens_of_row)
    return replace(found, keys=np.array(present, np.int64))


def stream(
    connection: sqlite3.Connection, keys: Keys, *, colbert: bool, report: Report = raised
) -> Iterator[tuple[int, int, Sequence[bytes | None], bytes | None]]:
    """Key, stamp, parts and codes of documents, ascending, a page at a time.

    The parts are dense vector, lexical ids and weights, BM25's terms and counts. A damaged document has none.
    """
    last, join = _token_vectors("d.key", wanted=colbert)
    for page in _pages(np.sort(keys)):
        sql = (
            f"SELECT d.key, d.stamp, v.digest, {_PARTS}, {last} "
            f"FROM documents d JOIN vectors v ON v.document = d.key {join} "
            f"WHERE d.key IN ({','.join('?' * len(page))}) ORDER BY d.key"
        )
        for key, stamp, sealed, *parts, codes_sealed, codes, tokens_of_row in connection.execute(
            sql, page
        ).fetchall():
            if fault := _fault(key, (sealed, *parts), (codes_sealed, codes, tokens_of_row)):
                report(fault)
                parts, codes = [None] * len(parts), None
            yield key, stamp, parts, codes


def stats(connection: sqlite3.Connection, collection: int, name: str) -> CollectionStats:
    """Counts and sizes, kept with the collection."""
    rows = connection.execute(
        "SELECT count, last_seq, text_bytes, metadata_bytes, dense_bytes, sparse_bytes, colbert_bytes, "
        "terms_bytes, length FROM collections WHERE id = ?",
        (collection,),
    ).fetchall()
    if not rows:
        raise CollectionNotFound(name)
    return CollectionStats(*map(int, rows[0]))


def lengths(connection: sqlite3.Connection, collection: int) -> tuple[int, int]:
    """How many documents there are, and their lengths in tokens together; kept for BM25 only."""
    rows = connection.execute("SELECT count, length FROM collections WHERE id = ?", (collection,)).fetchall()
    return (int(rows[0][0]), int(rows[0][1])) if rows else (0, 0)


def floats(blob: bytes | None) -> FloatArray | None:
    """A dense vector as it is stored. Shape: [D]."""
    return None if blob is None else np.frombuffer(blob, "<f4")


def lexical(indices: bytes | None, values: bytes | None) -> LexicalWeights | None:
    """Lexical weights as they are stored."""
    if indices is None or values is None:
        return None
    return LexicalWeights(np.frombuffer(indices, "<i4"), np.frombuffer(values, "<f4"))


def counted(terms: bytes | None, counts: bytes | None) -> LexicalWeights | None:
    """BM25's terms as they are stored."""
    if terms is None or counts is None:
        return None
    return LexicalWeights(np.frombuffer(terms, "<i4"), np.frombuffer(counts, "<u2").astype(np.float32))


def _stored(row: Sequence[object]) -> StoredDocument:
    key, sealed, doc_id, text, metadata, tokens, truncated, seq, *sizes = row
    assert isinstance(key, int)
    if sealed != of_document(key, str(doc_id), str(metadata), str(text)):
        raise damaged(key, "text")
    outputs = frozenset(name for name, size in zip(OUTPUTS, sizes, strict=True) if size is not None)
    assert isinstance(tokens, int) and isinstance(seq, int)  # the columns are NOT NULL INTEGER
    try:
        facts = json.loads(str(metadata))
    except ValueError as error:
        raise StorageDamaged("stored metadata is no JSON; restore a backup") from error
    return StoredDocument(str(doc_id), str(text), facts, tokens, bool(truncated), seq, outputs)


def _token_vectors(document: str, *, wanted: bool) -> tuple[str, str]:
    """Columns and join of token vectors, or columns without them."""
    if not wanted:
        return "NULL, NULL, NULL", ""
    return "t.digest, t.codes, t.tokens_of_row", f"LEFT JOIN token_vectors t ON t.document = {document}"


def _fault(
    key: int,
    vectors: tuple[int, *tuple[bytes | None, ...]],
    codes: tuple[int | None, *tuple[bytes | None, ...]],
) -> StorageDamaged | None:
    """What is wrong with rows of `vectors` and `token_vectors`, each its digest and then its parts."""
    if vectors[0] != digest(key, *vectors[1:]):
        return damaged(key, "vectors")
    if codes[0] is not None and codes[0] != digest(key, *codes[1:]):
        return damaged(key, "token vectors")
    return None


def _pages(keys: Keys) -> Iterator[list[int]]:
    values = keys.tolist()
    for first in range(0, len(values), PAGE):
        yield values[first : first + PAGE]
