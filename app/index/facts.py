"""Metadata as typed rows, and a filter's answer over them.

Filters do not read the metadata's JSON: `facts` flattens it into rows when a document is stored.
SQLite's own JSON paths cannot spell a key with a quote in it, turn true into 1 and read numbers less
exactly than Python, and they would visit every document where rows have an index.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from app.index.errors import clipped
from app.index.filters import (
    MAX_DEPTH,
    AnyOf,
    Every,
    Exists,
    Filter,
    Not,
    Range,
    Scalar,
    Some,
    is_unicode,
    unfit_number,
)

MAX_FACTS = 1000
"""Different values in one document's metadata."""
MAX_VALUES = 100_000
"""Values that one document's metadata may repeat: millions would take minutes to look at."""
MAX_PATH_CHARACTERS = 4096
"""Of the keys down to a value: they are stored with each."""

Keys = NDArray[np.int64]
"""Documents' internal keys, ascending and distinct."""
Fact = tuple[str, str, str | int | float]
"""Path, kind, value. Kinds: s(tring), n(umber), b(oolean), z (null), o(bject), l(ist); the last three
hold no value, they say that the path exists."""

_COMPARE = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}


def facts(metadata: Mapping[str, object]) -> set[Fact]:
    """The rows that filters ask about one document; ValueError says what is not JSON or too much.

    A path joins keys with dots, so `{"a.b": 1}` and `{"a": {"b": 1}}` both answer to `a.b`.
    Lists within lists are stored with the document but no filter looks into them.
    """
    if not isinstance(metadata, Mapping):
        raise ValueError(f"a JSON object is expected, not {type(metadata).__name__}")
    collector = _Collector()
    collector.collect(metadata, None, collector.found, 1)
    if len(collector.found) > MAX_FACTS:
        raise ValueError(f"{len(collector.found)} values, the limit is {MAX_FACTS}")
    return collector.found


def select(condition: Filter, connection: sqlite3.Connection, collection: int) -> Keys:
    """The keys of a collection's documents that fulfil a filter, as the connection's transaction sees them.

    One statement a condition, joined as sets here: SQLite's parser has a stack of a hundred entries,
    which a filter of legal depth would overflow if it became one expression.
    """

    def run(sql: str, parameters: tuple[Scalar, ...]) -> Keys:
        rows = connection.execute(sql, (collection, *parameters)).fetchall()
        return np.unique(np.fromiter((row[0] for row in rows), np.int64, len(rows)))

    def everything() -> Keys:
        return run("SELECT key FROM documents WHERE collection = ?", ())

    def answer(part: Filter) -> Keys:
        match part:
            case AnyOf() | Range() | Exists():
                keys = _union([run(*statement) for statement in _statements(part)])
                if isinstance(part, AnyOf) and None in part.values:
                    absent = np.setdiff1d(everything(), answer(Exists(part.path)), assume_unique=True)
                    keys = np.union1d(keys, absent)
                return keys
            case Every(parts):
                # A part that allows nothing settles it; the rest need not be asked.
                keys = answer(parts[0]) if parts else everything()
                for other in parts[1:]:
                    if not keys.size:
                        break
                    keys = np.intersect1d(keys, answer(other), assume_unique=True)
                return keys
            case Some(parts):
                return _union([answer(one) for one in parts])
            case Not(inner):
                return np.setdiff1d(everything(), answer(inner), assume_unique=True)

    return answer(condition)


def _union(sets: list[Keys]) -> Keys:
    return np.unique(np.concatenate(sets)) if sets else np.empty(0, np.int64)


def _statements(condition: AnyOf | Range | Exists) -> Iterator[tuple[str, tuple[Scalar, ...]]]:
    """SQL and its parameters after the collection; what the user wrote is bound, never spliced in."""
    head = "SELECT document FROM facts WHERE collection = ? AND path = ?"
    match condition:
        case Exists(path):
            yield head, (path,)
        case Range(path, operator, bound):
            yield f"{head} AND kind = ? AND value {_COMPARE[operator]} ?", (path, *_kinded(bound))
        case AnyOf(path, values):
            by_kind: dict[str, list[Scalar]] = {}
            for value in values:
                kind, stored = _kinded(value)
                by_kind.setdefault(kind, []).append(stored)
            for kind, wanted in by_kind.items():
                marks = ",".join("?" * len(wanted))
                yield f"{head} AND kind = ? AND value IN ({marks})", (path, kind, *wanted)


class _Collector:
    """Walks metadata and counts what it meets."""

    def __init__(self) -> None:
        self.found: set[Fact] = set()
        self._seen = 0

    def collect(self, value: object, path: str | None, found: set[Fact], depth: int) -> None:
        """Add the facts of one value; `path` is None for the metadata itself."""
        self._count(path, depth)
        if isinstance(value, Mapping):
            if path is not None:
                found.add((path, "o", ""))
            for key, inner in value.items():
                if not isinstance(key, str) or not is_unicode(key):
                    raise ValueError(
                        f"a key must be a string of Unicode characters, not {clipped(repr(key))}"
                    )
                self.collect(inner, key if path is None else f"{path}.{key}", found, depth + 1)
        elif isinstance(value, list | tuple):
            found.add((path or "", "l", ""))
            for one in value:
                # A list in a list is checked, but not found by filters.
                self.collect(one, path, set() if isinstance(one, list | tuple) else found, depth + 1)
        elif value is None or isinstance(value, bool | int | float | str):
            if (reason := unfit_number(value)) is not None:
                raise ValueError(f"{clipped(path or '')}: {reason}")
            if isinstance(value, str) and not is_unicode(value):
                raise ValueError(f"{clipped(path or '')}: a lone surrogate is not a character")
            found.add((path or "", *_kinded(value)))
        else:
            raise ValueError(f"{clipped(path or '')}: {type(value).__name__} is not JSON")

    def _count(self, path: str | None, depth: int) -> None:
        self._seen += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} levels deep")
        if self._seen > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values")
        if path is not None and len(path) > MAX_PATH_CHARACTERS:
            raise ValueError(f"a path of more than {MAX_PATH_CHARACTERS} characters")


def _kinded(value: Scalar) -> tuple[str, str | int | float]:
    if value is None:
        return "z", ""
    if isinstance(value, bool):
        return "b", int(value)
    return ("s" if isinstance(value, str) else "n"), value
