"""A collection and the database that it lives in: what the rest of Trivec sees of the index.

A change is one transaction; it is durable and found by searches when the call returns. Every method is
thread-safe: changes of a collection take turns, searches and reads wait for none of them.
The values that go in and out are named again here, so that callers need this module only.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from app.index import catalogue, derived, facts, records
from app.index.derived import Derived
from app.index.errors import CollectionExists, CollectionNotFound, ModelMismatch, QueryInvalid
from app.index.filters import Filter, is_unicode
from app.index.owner import FolderLock
from app.index.search import check, plain, search
from app.index.storage import Storage
from app.index.values import (
    CollectionInfo,
    CollectionSettings,
    CollectionStats,
    Document,
    Fusion,
    Hit,
    LegRanks,
    LegScores,
    Mode,
    SearchRequest,
    StoredDocument,
)
from model.embedding import Embedding

__all__ = [
    "Collection",
    "CollectionInfo",
    "CollectionSettings",
    "CollectionStats",
    "Database",
    "Document",
    "Fusion",
    "Hit",
    "LegRanks",
    "LegScores",
    "Mode",
    "SearchRequest",
    "StoredDocument",
]

PAGE = 1000
"""Documents of one page when all are walked through."""


class Database:
    """An open data folder. One process owns it at a time; DataFolderInUse names the one that does.

    `fingerprint` is the model in use: collections of another refuse `search` and `upsert`. None checks
    nothing. `url` is where the owner answers, for others that find the folder taken.
    """

    def __init__(self, folder: Path, *, fingerprint: str | None = None, url: str | None = None) -> None:
        self._fingerprint = fingerprint
        self._lock = threading.Lock()
        self._collections: dict[str, Collection] = {}
        self._owner = FolderLock(folder, url)
        try:
            self._storage = Storage(folder)
            with self._storage.read() as connection:
                for key, info in catalogue.everything(connection):
                    self._collections[info.name] = Collection(self._storage, key, info, fingerprint)
        except BaseException:
            self._owner.release()
            raise

    def announce(self, url: str | None) -> None:
        """Tell others where the owner answers, once that is known."""
        self._owner.announce(url)

    def list(self) -> list[Collection]:
        """All collections in the order of their names."""
        with self._lock:
            return [self._collections[name] for name in sorted(self._collections)]

    def create(
        self,
        name: str,
        settings: CollectionSettings | None = None,
        *,
        fingerprint: str,
        hidden_size: int,
        colbert_dim: int,
    ) -> Collection:
        """A new collection, or the one of that name if settings and model are the same.

        NameInvalid, CollectionExists for other settings, ModelMismatch for another model.
        """
        catalogue.check_name(name)
        settings = settings or CollectionSettings()
        with self._lock:
            existing = self._collections.get(name)
            if existing is not None:
                if existing.info.settings != settings:
                    raise CollectionExists(name)
                existing.check_model(fingerprint)
                return existing
            with self._storage.write() as connection:
                key, info = catalogue.add(connection, name, settings, fingerprint, hidden_size, colbert_dim)
            self._collections[name] = Collection(self._storage, key, info, self._fingerprint)
            return self._collections[name]

    def get(self, name: str) -> Collection:
        """The collection of that name; CollectionNotFound."""
        with self._lock:
            if name not in self._collections:
                raise CollectionNotFound(name)
            return self._collections[name]

    def drop(self, name: str) -> None:
        """Delete a collection and all its documents; CollectionNotFound."""
        with self._lock:
            if name not in self._collections:
                raise CollectionNotFound(name)
            self._collections[name].drop()
            del self._collections[name]

    def close(self) -> None:
        """Wait for the change at work, close the file and give the folder free. May be called twice."""
        self._storage.close()
        self._owner.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Collection:
    """Documents of one name and one model. Made by `Database` only."""

    def __init__(self, storage: Storage, key: int, info: CollectionInfo, fingerprint: str | None) -> None:
        self.info = info
        self._storage = storage
        self._key = key
        self._fingerprint = fingerprint
        self._dropped = False
        # Changes take turns from reading the derived state to publishing the next one; a search takes
        # whichever is published, without the lock.
        self._change = threading.Lock()
        self._derived: Derived | None = None

    @property
    def name(self) -> str:
        """The collection's name."""
        return self.info.name

    def check_model(self, fingerprint: str) -> None:
        """ModelMismatch unless the collection's vectors are of that model."""
        if fingerprint != self.info.fingerprint:
            raise ModelMismatch(self.info.name, self.info.fingerprint, fingerprint)

    def check(self, document: Document) -> None:
        """DocumentInvalid where `upsert` would refuse the document; stores nothing."""
        records.encode(document, self.info)

    def upsert(self, documents: Sequence[Document]) -> list[int]:
        """Store documents, each wholly replacing the one of its id; their sequence numbers, in order.

        All or none: DocumentInvalid names the first that does not fit. Of several with one id the last
        is stored, and all of them get its number.
        """
        self._ready(vectors=True)
        encoded = {one.doc_id: one for one in (records.encode(document, self.info) for document in documents)}
        if not encoded:
            return []
        with self._change:
            self._ready()
            before = self._derived or self._build()
            with self._storage.write() as connection:
                first = records.advance(connection, self._key, self.name, len(encoded))
                numbers = {doc_id: first + place for place, doc_id in enumerate(encoded)}
                stored = [
                    (*records.put(connection, self._key, one, numbers[one.doc_id]), one.embedding)
                    for one in encoded.values()
                ]
                gone = np.array([key for key, new, _ in stored if not new], np.int64)
                # Before the commit: should memory run out here, nothing has happened.
                after = derived.changed(before, gone, [(key, one) for key, _, one in stored])
            self._derived = after
        return [numbers[document.id] for document in documents]

    def delete(self, ids: Sequence[str]) -> int:
        """Delete documents by id; how many there were. Ids that are not there are passed over."""
        return self._delete(lambda connection: records.keys_of(connection, self._key, ids))

    def delete_where(self, condition: Filter) -> int:
        """Delete the documents that a filter allows; how many there were."""
        return self._delete(lambda connection: facts.select(condition, connection, self._key))

    def get(self, doc_id: str) -> StoredDocument | None:
        """One document without its vectors, or None."""
        self._ready()
        with self._storage.read() as connection:
            return records.document(connection, self._key, doc_id)

    def embedding(self, doc_id: str) -> Embedding | None:
        """The stored vectors of one document, or None."""
        self._ready()
        with self._storage.read() as connection:
            keys = records.keys_of(connection, self._key, [doc_id])
            found = records.vectors_by_key(connection, keys, self.info)
            return plain(found[int(keys[0])][1]) if keys.size else None

    def search(self, request: SearchRequest) -> list[Hit]:
        """At most `top_k` hits, best first; QueryInvalid where the request does not fit the collection.

        Fewer only where fewer are allowed by the filter, lack the mode's output or, in sparse mode,
        share no token with the query.
        """
        self._ready(vectors=True)
        weights = check(request, self.info)
        state = self._derived or self.load()
        with self._storage.read() as connection:
            return search(connection, self._key, self.info, state, request, weights)

    def stats(self) -> CollectionStats:
        """Counts and sizes."""
        self._ready()
        with self._storage.read() as connection:
            return records.stats(connection, self._key, self.name)

    def documents(self, after: str = "", limit: int = PAGE) -> list[StoredDocument]:
        """The next documents in the order of their ids, after that one."""
        self._ready()
        if not is_unicode(after):
            raise QueryInvalid("after", "a lone surrogate is not a character")
        with self._storage.read() as connection:
            return records.documents(connection, self._key, after, limit)

    def ids(self) -> Iterator[str]:
        """Every id in order, a page at a time: documents that come or go meanwhile may be met or not."""
        after = ""
        while page := self.documents(after):
            yield from (document.id for document in page)
            after = page[-1].id

    def load(self) -> Derived:
        """Build what searches need in memory, if it is not there; the first search or change would."""
        with self._change:
            self._ready()
            if self._derived is None:
                self._derived = self._build()
            return self._derived

    def drop(self) -> None:
        """Delete everything; called by `Database.drop`."""
        with self._change:
            self._ready()
            with self._storage.write() as connection:
                catalogue.delete(connection, self._key)
            self._dropped = True
            self._derived = None

    def _delete(self, choose: Callable[[sqlite3.Connection], facts.Keys]) -> int:
        with self._change:
            self._ready()
            before = self._derived or self._build()
            with self._storage.write() as connection:
                keys = choose(connection)
                if not keys.size:
                    return 0
                records.advance(connection, self._key, self.name, len(keys))
                records.remove(connection, keys)
                after = derived.changed(before, keys, [])
            self._derived = after
        return len(keys)

    def _build(self) -> Derived:
        with self._storage.read() as connection:
            return derived.build(records.stream(connection, self._key), self.info.hidden_size)

    def _ready(self, *, vectors: bool = False) -> None:
        if self._dropped:
            raise CollectionNotFound(self.name)
        if vectors and self._fingerprint is not None:
            self.check_model(self._fingerprint)
