"""The statements that change a collection's rows. Each works inside the caller's transaction.

A batch is written with one statement for each table: that is what makes thousands of documents a second.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from app.index.digests import digest, of_document
from app.index.errors import CollectionNotFound
from app.index.facts import Keys
from app.index.filters import is_unicode
from app.index.records import Record, vector_parts

Value = TypeVar("Value", int, str)

PAGE = 500
"""Values listed in one statement."""
SIZES = (
    *("text_bytes", "metadata_bytes", "dense_bytes", "sparse_bytes", "colbert_bytes", "terms_bytes"),
    "length",
)
COLUMNS = (
    *("key", "collection", "doc_id", "seq", "stamp", "tokens", "truncated"),
    *SIZES,
    *("metadata", "text", "digest"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """Where a batch went. Shapes: [n] each, in the order of the records."""

    keys: Keys
    stamps: Keys
    """What each version is known by in derived files."""
    replaced: Keys
    """Those of `keys` that held an older version, ascending."""


def advance(connection: sqlite3.Connection, collection: int, name: str, steps: int) -> int:
    """Take the collection's next `steps` sequence numbers and give the first."""
    rows = connection.execute(
        "UPDATE collections SET last_seq = last_seq + ? WHERE id = ? RETURNING last_seq", (steps, collection)
    ).fetchall()
    if not rows:
        raise CollectionNotFound(name)
    return int(rows[0][0]) - steps + 1


def put(
    connection: sqlite3.Connection, collection: int, records: Sequence[Record], first_seq: int
) -> Written:
    """Insert or wholly replace documents of distinct ids, numbered from `first_seq` on."""
    found = _existing(connection, collection, [one.doc_id for one in records])
    replaced = np.array(sorted(found.values()), np.int64)
    _forget(connection, collection, replaced)
    fresh = _next_key(connection)
    keys = np.empty(len(records), np.int64)
    for place, one in enumerate(records):
        if (known := found.get(one.doc_id)) is None:
            keys[place], fresh = fresh, fresh + 1
        else:
            keys[place] = known
    stamps = np.array([secrets.randbits(63) for _ in records], np.int64)
    rows = [
        _row(collection, record, int(key), int(stamp), first_seq + place)
        for place, (record, key, stamp) in enumerate(zip(records, keys, stamps, strict=True))
    ]
    connection.executemany(
        f"INSERT INTO documents ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))}) "
        f"ON CONFLICT (key) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in COLUMNS[3:])}",
        rows,
    )
    connection.executemany(
        "INSERT OR REPLACE INTO vectors "
        "(document, dense, sparse_indices, sparse_values, terms, counts, digest) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (_vectors(record, int(key)) for record, key in zip(records, keys, strict=True)),
    )
    connection.executemany(
        "INSERT INTO token_vectors (document, codes, tokens_of_row, digest) VALUES (?, ?, ?, ?)",
        (
            (int(key), one.codes, one.tokens_of_row, digest(int(key), one.codes, one.tokens_of_row))
            for one, key in zip(records, keys, strict=True)
            if one.codes is not None
        ),
    )
    connection.executemany(
        "INSERT INTO facts (collection, path, kind, value, document) VALUES (?, ?, ?, ?, ?)",
        (
            (collection, path, kind, value, int(key))
            for record, key in zip(records, keys, strict=True)
            for path, kind, value in record.facts
        ),
    )
    first = COLUMNS.index(SIZES[0])
    sizes = [[row[at] for row in rows] for at in range(first, first + len(SIZES))]
    _count(
        connection, collection, [len(rows), *(sum(int(one or 0) for one in column) for column in sizes)], 1
    )
    return Written(keys, stamps, replaced)


def remove(connection: sqlite3.Connection, collection: int, keys: Keys) -> None:
    """Delete documents; their vectors and facts go with them."""
    for page in _pages(keys.tolist()):
        marks = ",".join("?" * len(page))
        _count(connection, collection, _sums(connection, page), -1)
        connection.execute(f"DELETE FROM documents WHERE key IN ({marks})", page)


def keys_of(connection: sqlite3.Connection, collection: int, ids: Iterable[str]) -> Keys:
    """The keys of those ids that exist, ascending."""
    wanted = list(dict.fromkeys(filter(is_unicode, ids)))
    return np.array(sorted(_existing(connection, collection, wanted).values()), np.int64)


def _existing(connection: sqlite3.Connection, collection: int, ids: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for page in _pages(ids):
        marks = ",".join("?" * len(page))
        sql = f"SELECT doc_id, key FROM documents WHERE collection = ? AND doc_id IN ({marks})"
        found.update(connection.execute(sql, (collection, *page)).fetchall())
    return found


def _forget(connection: sqlite3.Connection, collection: int, keys: Keys) -> None:
    """Take what replaced documents had out of the sums and tables that hold several rows of one."""
    for page in _pages(keys.tolist()):
        marks = ",".join("?" * len(page))
        _count(connection, collection, _sums(connection, page), -1)
        connection.execute(f"DELETE FROM facts WHERE document IN ({marks})", page)
        connection.execute(f"DELETE FROM token_vectors WHERE document IN ({marks})", page)


def _sums(connection: sqlite3.Connection, keys: Sequence[int]) -> list[int]:
    sums = ", ".join(f"coalesce(sum({name}), 0)" for name in SIZES)
    marks = ",".join("?" * len(keys))
    return [
        int(one)
        for one in connection.execute(
            f"SELECT count(*), {sums} FROM documents WHERE key IN ({marks})", tuple(keys)
        ).fetchone()
    ]


def _count(connection: sqlite3.Connection, collection: int, amounts: Sequence[int], sign: int) -> None:
    changes = ", ".join(f"{name} = {name} + ?" for name in ("count", *SIZES))
    values = (*(sign * amount for amount in amounts), collection)
    connection.execute(f"UPDATE collections SET {changes} WHERE id = ?", values)


def _next_key(connection: sqlite3.Connection) -> int:
    """A key that no document ever had: SQLite counts them for AUTOINCREMENT, also those given by hand."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'documents'").fetchone()
    return 1 if row is None else int(row[0]) + 1


def _row(collection: int, record: Record, key: int, stamp: int, seq: int) -> tuple[int | str | None, ...]:
    one = record.embedding
    return (
        key,
        collection,
        record.doc_id,
        seq,
        stamp,
        one.tokens,
        int(one.truncated),
        len(record.text.encode()),
        len(record.metadata.encode()),
        None if one.dense is None else 4 * one.dense.size,
        None if one.sparse is None else 8 * len(one.sparse),
        None if record.codes is None else len(record.codes),
        None if record.terms is None else 6 * len(record.terms),
        record.length,
        record.metadata,
        record.text,
        of_document(key, record.doc_id, record.metadata, record.text),
    )


def _vectors(record: Record, key: int) -> tuple[int | bytes | None, ...]:
    parts = vector_parts(record.embedding, record.terms)
    return (key, *parts, digest(key, *parts))


def _pages(values: Sequence[Value]) -> Iterator[list[Value]]:
    for first in range(0, len(values), PAGE):
        yield list(values[first : first + PAGE])
