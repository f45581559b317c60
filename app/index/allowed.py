"""Which documents a filter allows: asked of SQLite once, then kept up with the changes since.

An answer is kept with the sequence number of the snapshot that it was true for. A later search looks only
at the documents that have changed in between, one by one, and asks SQLite again where those are many.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections import OrderedDict, deque

import numpy as np

from app.index.facts import Keys, select
from app.index.filters import Filter, matches

MOST_CHANGES = 2000
"""Changed documents that are looked at one by one."""
MOST_LOGGED = 100_000
"""Changes that are remembered."""
CACHED_BYTES = 64 * 2**20
PAGE = 500


class AllowedKeys:
    """The answers of a collection's filters. Thread-safe."""

    def __init__(self, collection: int) -> None:
        self._collection = collection
        self._lock = threading.Lock()
        # By the filter's spelling: 1 and true are equal in Python and not in a filter.
        self._answers: OrderedDict[str, tuple[int, Keys]] = OrderedDict()
        self._bytes = 0
        # Sequence numbers and keys of changes; what came before the first is not known.
        self._changes: deque[tuple[int, Keys]] = deque()
        self._logged = 0
        self._known_since: int | None = None

    def changed(self, last_seq: int, keys: Keys) -> None:
        """Documents that the change up to `last_seq` has written or deleted; called before its commit."""
        with self._lock:
            if self._known_since is None:
                self._known_since = last_seq - len(keys)
            self._changes.append((last_seq, keys))
            self._logged += len(keys)
            while self._logged > MOST_LOGGED:
                self._known_since, gone = self._changes.popleft()
                self._logged -= len(gone)

    def select(self, condition: Filter, connection: sqlite3.Connection) -> Keys:
        """The keys of documents that fulfil a filter in the connection's snapshot, ascending."""
        rows = connection.execute(
            "SELECT last_seq FROM collections WHERE id = ?", (self._collection,)
        ).fetchall()
        now = int(rows[0][0]) if rows else 0
        with self._lock:
            known = self._answers.get(repr(condition))
            changed = None if known is None else self._between(known[0], now)
        if known is None or changed is None:
            keys = select(condition, connection, self._collection)
        else:
            keys = known[1]
            if changed.size:
                unchanged = np.setdiff1d(keys, changed, assume_unique=True)
                keys = np.union1d(unchanged, self._among(changed, condition, connection))
        with self._lock:
            self._keep(repr(condition), now, keys)
        return keys

    def _between(self, first: int, last: int) -> Keys | None:
        """Keys changed after `first` up to `last`; None where they are not all known or too many."""
        if first == last:
            return np.empty(0, np.int64)
        if first > last or self._known_since is None or first < self._known_since:
            return None
        found: list[Keys] = []
        count = 0
        for seq, keys in reversed(self._changes):
            if seq <= first:
                break
            if seq <= last:
                found.append(keys)
                count += len(keys)
                if count > MOST_CHANGES:
                    return None
        return np.unique(np.concatenate([np.empty(0, np.int64), *found]))

    def _among(self, keys: Keys, condition: Filter, connection: sqlite3.Connection) -> Keys:
        """Those of these documents that exist and fulfil the filter."""
        found: list[int] = []
        for first in range(0, len(keys), PAGE):
            page = keys[first : first + PAGE].tolist()
            sql = f"SELECT key, metadata FROM documents WHERE key IN ({','.join('?' * len(page))})"
            found += [
                key for key, source in connection.execute(sql, page) if matches(condition, json.loads(source))
            ]
        return np.array(sorted(found), np.int64)

    def _keep(self, spelling: str, seq: int, keys: Keys) -> None:
        older = self._answers.pop(spelling, None)
        if older is not None:
            self._bytes -= older[1].nbytes
            if older[0] > seq:  # another search has seen more
                seq, keys = older
        self._answers[spelling] = (seq, keys)
        self._bytes += keys.nbytes
        while self._bytes > CACHED_BYTES and self._answers:
            _, (_, gone) = self._answers.popitem(last=False)
            self._bytes -= gone.nbytes
