"""Documents to rows and back: what the tables of `storage.py` hold, and the statements that reach it.

Every function works inside the caller's transaction. Legend: D hidden size, C ColBERT dimension.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from app.index.errors import CollectionNotFound, DocumentInvalid
from app.index.facts import Fact, Keys, facts
from app.index.filters import is_unicode
from app.index.values import CollectionInfo, CollectionStats, Document, StoredDocument
from model.embedding import OUTPUTS, Embedding, FloatArray, LexicalWeights

MAX_ID_BYTES = 512
PAGE = 500
"""Keys of one statement."""

_STORED = "doc_id, text, metadata, tokens, truncated, seq, dense_bytes, sparse_bytes, colbert_bytes"


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """A document that has passed every check, encoded as it will be stored."""

    doc_id: str
    text: str
    metadata: str
    facts: set[Fact]
    embedding: Embedding
    """As it will be read again: float32, sparse and dense as given."""
    colbert: bytes | None


def encode(document: Document, info: CollectionInfo) -> Record:
    """Check a document against a collection; DocumentInvalid names the part that does not fit."""
    check_id(document.id)
    if not isinstance(document.text, str) or not is_unicode(document.text):
        raise DocumentInvalid(document.id, "text", "a string without lone surrogates is expected")
    try:
        found = facts(document.metadata)
        metadata = json.dumps(dict(document.metadata), ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise DocumentInvalid(document.id, "metadata", str(error)) from error
    embedding = document.embedding
    if not embedding.outputs:
        raise DocumentInvalid(document.id, "embedding", "at least one of dense, sparse and colbert is needed")
    if (fault := misfit(embedding, info)) is not None:
        raise DocumentInvalid(document.id, *fault)
    colbert = None
    if embedding.colbert is not None:
        # The largest float16 is 65504; `misfit` cannot know that it will be one.
        with np.errstate(over="ignore"):
            stored = embedding.colbert.astype(_colbert_dtype(info))
        if not np.isfinite(stored).all():
            raise DocumentInvalid(document.id, "colbert", f"a value is too large for {info.settings.colbert}")
        colbert = stored.tobytes()
    return Record(document.id, document.text, metadata, found, embedding, colbert)


def check_id(document_id: object) -> None:
    """DocumentInvalid unless it is a non-empty string of at most 512 bytes of UTF-8."""
    if not isinstance(document_id, str) or not document_id or not is_unicode(document_id):
        raise DocumentInvalid(document_id, "id", "a non-empty string without lone surrogates is expected")
    if (size := len(document_id.encode())) > MAX_ID_BYTES:
        raise DocumentInvalid(document_id, "id", f"{size} bytes of UTF-8, the limit is {MAX_ID_BYTES}")


def misfit(embedding: Embedding, info: CollectionInfo) -> tuple[str, str] | None:
    """The first part of an embedding that does not fit a collection, and why."""
    shapes = (("dense", 1, info.hidden_size), ("colbert", 2, info.colbert_dim))
    for part, rank, width in shapes:
        vectors = getattr(embedding, part)
        if vectors is None:
            continue
        if vectors.ndim != rank or vectors.shape[-1] != width or not vectors.size:
            wanted = f"[{width}]" if rank == 1 else f"[rows, {width}]"
            return part, f"shape {list(vectors.shape)}, this collection holds {wanted}"
        if not _bounded(vectors):
            return part, "a value is NaN, infinite or too large to multiply"
    if embedding.sparse is not None and not _bounded(embedding.sparse.values):
        return "sparse", "a value is NaN, infinite or too large to multiply"
    if embedding.tokens < 0:
        return "tokens", f"{embedding.tokens} is negative"
    return None


def _bounded(vectors: FloatArray) -> bool:
    """Whether each row's squared length is a finite float32: then so is every product of two rows."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.einsum("...i,...i->...", vectors, vectors, dtype=np.float32)).all())


def advance(connection: sqlite3.Connection, collection: int, name: str, steps: int) -> int:
    """Take the collection's next `steps` sequence numbers and give the first."""
    rows = connection.execute(
        "UPDATE collections SET last_seq = last_seq + ? WHERE id = ? RETURNING last_seq", (steps, collection)
    ).fetchall()
    if not rows:
        raise CollectionNotFound(name)
    return int(rows[0][0]) - steps + 1


def put(connection: sqlite3.Connection, collection: int, record: Record, seq: int) -> tuple[int, bool]:
    """Insert or wholly replace one document; its key, and whether it is new."""
    one = record.embedding
    dense = None if one.dense is None else np.asarray(one.dense, "<f4").tobytes()
    indices = None if one.sparse is None else np.asarray(one.sparse.indices, "<i4").tobytes()
    values = None if one.sparse is None else np.asarray(one.sparse.values, "<f4").tobytes()
    row = (
        seq,
        one.tokens,
        int(one.truncated),
        len(record.text.encode()),
        len(record.metadata.encode()),
        None if dense is None else len(dense),
        None if indices is None or values is None else len(indices) + len(values),
        None if record.colbert is None else len(record.colbert),
        record.metadata,
        record.text,
        collection,
        record.doc_id,
    )
    found = connection.execute(
        "SELECT key FROM documents WHERE collection = ? AND doc_id = ?", (collection, record.doc_id)
    ).fetchall()
    if found:
        key = int(found[0][0])
        connection.execute(
            "UPDATE documents SET seq = ?, tokens = ?, truncated = ?, text_bytes = ?, metadata_bytes = ?, "
            "dense_bytes = ?, sparse_bytes = ?, colbert_bytes = ?, metadata = ?, text = ? "
            "WHERE collection = ? AND doc_id = ?",
            row,
        )
        connection.execute("DELETE FROM facts WHERE document = ?", (key,))
    else:
        key = int(
            connection.execute(
                "INSERT INTO documents (seq, tokens, truncated, text_bytes, metadata_bytes, dense_bytes, "
                "sparse_bytes, colbert_bytes, metadata, text, collection, doc_id) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            ).lastrowid
            or 0
        )
    rows = None if one.colbert is None else len(one.colbert)
    connection.execute(
        "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?, ?, ?)",
        (key, dense, indices, values, rows, record.colbert),
    )
    connection.executemany(
        "INSERT INTO facts VALUES (?, ?, ?, ?, ?)",
        ((collection, key, path, kind, value) for path, kind, value in record.facts),
    )
    return key, not found


def remove(connection: sqlite3.Connection, keys: Keys) -> None:
    """Delete documents; their vectors and facts go with them."""
    connection.executemany("DELETE FROM documents WHERE key = ?", ((int(key),) for key in keys))


def keys_of(connection: sqlite3.Connection, collection: int, ids: Iterable[str]) -> Keys:
    """The keys of those ids that exist."""
    found: set[int] = set()
    for one in filter(is_unicode, ids):
        sql = "SELECT key FROM documents WHERE collection = ? AND doc_id = ?"
        found.update(row[0] for row in connection.execute(sql, (collection, one)))
    return np.array(sorted(found), np.int64)


def all_keys(connection: sqlite3.Connection, collection: int) -> Keys:
    """The keys of all documents of a collection, ascending."""
    rows = connection.execute("SELECT key FROM documents WHERE collection = ?", (collection,)).fetchall()
    return np.sort(np.fromiter((row[0] for row in rows), np.int64, len(rows)))


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


def documents_by_key(connection: sqlite3.Connection, keys: Sequence[int]) -> dict[int, StoredDocument]:
    """Documents by their keys; those that are gone are left out."""
    sql = f"SELECT {_STORED}, key FROM documents WHERE key IN ({','.join('?' * len(keys))})"
    return {int(row[-1]): _stored(row[:-1]) for row in connection.execute(sql, tuple(keys)).fetchall()}


def vectors_by_key(
    connection: sqlite3.Connection, keys: Keys, info: CollectionInfo, *, colbert: bool = True
) -> dict[int, tuple[str, Embedding]]:
    """Ids and stored vectors of at most PAGE keys; ColBERT stays as stored (maybe float16), or unread."""
    last = "v.colbert" if colbert else "NULL"
    marks = ",".join("?" * len(keys))
    sql = (
        "SELECT d.key, d.doc_id, d.tokens, d.truncated, v.dense, v.sparse_indices, v.sparse_values, "
        f"{last} FROM documents d JOIN vectors v ON v.document = d.key WHERE d.key IN ({marks})"
    )
    rows = connection.execute(sql, [int(key) for key in keys])
    return {int(row[0]): (row[1], _embedding(row[2:], info)) for row in rows}


def stream(
    connection: sqlite3.Connection, collection: int
) -> Iterator[tuple[int, FloatArray | None, LexicalWeights | None]]:
    """Keys with dense and lexical vectors of a whole collection, ascending, a page at a time in memory."""
    sql = (
        "SELECT document, dense, sparse_indices, sparse_values FROM vectors WHERE document IN "
        "(SELECT key FROM documents WHERE collection = ?) ORDER BY document"
    )
    for key, dense, indices, values in connection.execute(sql, (collection,)):
        yield int(key), _floats(dense), _lexical(indices, values)


def stats(connection: sqlite3.Connection, collection: int, name: str) -> CollectionStats:
    """Counts and sizes, from an index of their own."""
    last = connection.execute("SELECT last_seq FROM collections WHERE id = ?", (collection,)).fetchall()
    if not last:
        raise CollectionNotFound(name)
    sums = connection.execute(
        "SELECT count(*), total(text_bytes), total(metadata_bytes), total(dense_bytes), total(sparse_bytes), "
        "total(colbert_bytes) FROM documents WHERE collection = ?",
        (collection,),
    ).fetchone()
    count, text, metadata, dense, sparse, colbert = (int(one) for one in sums)
    return CollectionStats(count, int(last[0][0]), text, metadata, dense, sparse, colbert)


def _stored(row: Sequence[object]) -> StoredDocument:
    doc_id, text, metadata, tokens, truncated, seq, *sizes = row
    outputs = frozenset(name for name, size in zip(OUTPUTS, sizes, strict=True) if size is not None)
    assert isinstance(tokens, int) and isinstance(seq, int)  # the columns are NOT NULL INTEGER
    return StoredDocument(
        str(doc_id), str(text), json.loads(str(metadata)), tokens, bool(truncated), seq, outputs
    )


def _embedding(row: Sequence[object], info: CollectionInfo) -> Embedding:
    tokens, truncated, dense, indices, values, colbert = row
    rows = None
    if isinstance(colbert, bytes):
        rows = np.frombuffer(colbert, _colbert_dtype(info)).reshape(-1, info.colbert_dim)
    assert isinstance(tokens, int)
    return Embedding(tokens, bool(truncated), _floats(dense), _lexical(indices, values), rows)


def _floats(blob: object) -> FloatArray | None:
    return np.frombuffer(blob, "<f4") if isinstance(blob, bytes) else None


def _lexical(indices: object, values: object) -> LexicalWeights | None:
    if not isinstance(indices, bytes) or not isinstance(values, bytes):
        return None
    return LexicalWeights(np.frombuffer(indices, "<i4"), np.frombuffer(values, "<f4"))


def _colbert_dtype(info: CollectionInfo) -> str:
    return {"float16": "<f2", "float32": "<f4"}[info.settings.colbert]
