"""A collection and the database that it lives in: what the rest of Trivec sees of the index.

A change is one transaction; it is durable and found by searches when the call returns. Every method is
thread-safe: changes of a collection take turns, searches and reads wait for none of them.
The values that go in and out are named again here, so that callers need this module only.
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from app.index import catalogue, changes, facts, fetch, records, upkeep
from app.index.allowed import AllowedKeys
from app.index.codes import Kind as ColbertKind
from app.index.derived import Derived, Part
from app.index.digests import Logged, Report, damaged, raised
from app.index.errors import CollectionExists, CollectionNotFound, ModelMismatch, QueryInvalid
from app.index.filters import Filter, is_unicode
from app.index.measure import Measurable, Measure, measured
from app.index.owner import FolderLock
from app.index.rebuild import Progress, discard, layout_of, load, mean_of, new_path, nothing, row_of
from app.index.search import check, search
from app.index.segment import write
from app.index.snapshot import Snapshot
from app.index.storage import Storage
from app.index.timing import Timed, Work, untimed
from app.index.upkeep import Upkeep, merge_plan
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
from app.index.vectors import DenseKind
from app.index.workers import Workers
from model.embedding import Embedding

__all__ = [
    "ColbertKind",
    "Collection",
    "CollectionInfo",
    "CollectionSettings",
    "CollectionStats",
    "Database",
    "DenseKind",
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
SEGMENTS = "segments"
"""The folder of derived files beside the database. It may be removed while nobody serves the data folder."""
WARMING = ".warming-"
"""Folders with this prefix beside the database are for a moment only."""
CLOSING_S = 5.0
"""For what upkeep does at that moment."""


class Database:
    """An open data folder. One process owns it at a time; DataFolderInUse names the one that does.

    `fingerprint` is the model in use: collections of another refuse `search` and `upsert`. None checks
    nothing. `url` is where the owner answers, for others that find the folder taken. `timed` may be set at
    any time: all work from then on is done inside what it gives.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fingerprint: str | None = None,
        url: str | None = None,
        threads: int | None = None,
    ) -> None:
        self.timed: Timed = untimed
        self._fingerprint = fingerprint
        self._lock = threading.Lock()
        self._collections: dict[str, Collection] = {}
        self._segments = folder / SEGMENTS
        self._workers = Workers(threads)
        self._upkeep = Upkeep(self.list)
        self._owner = FolderLock(folder, url)
        try:
            self._storage = Storage(folder)
            try:
                with self._storage.read() as connection:
                    found = catalogue.everything(connection)
                for key, info in found:
                    self._collections[info.name] = self._opened(key, info)
                self._tidy({str(key) for key, _ in found})
            except BaseException:
                self._storage.close()
                raise
        except BaseException:
            self._workers.close()
            self._owner.release()
            raise

    def load(self, progress: Progress = nothing) -> None:
        """Read or make what searches need of every collection; the first search of each would."""
        for collection in self.list():
            collection.load(progress)

    def announce(self, url: str | None) -> None:
        """Tell others where the owner answers, once that is known."""
        self._owner.announce(url)

    def list(self) -> list[Collection]:
        """All collections in the order of their names."""
        with self._lock:
            return [self._collections[name] for name in sorted(self._collections)]

    def measure(self) -> Measure:
        """What the folder holds. Waits for no change, not even for a collection that is being dropped."""
        # Without the lock, which a drop of many documents keeps for long; the copy itself is one step.
        found = list(self._collections.values())
        return measured(self._storage, self._segments.parent, [one.measurable() for one in found])

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
            self._collections[name] = self._opened(key, info)
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
        self._upkeep.close(CLOSING_S)
        self._storage.close()
        self._workers.close()
        self._owner.release()

    def _opened(self, key: int, info: CollectionInfo) -> Collection:
        return Collection(
            self._storage,
            key,
            info,
            fingerprint=self._fingerprint,
            segments=self._segments / str(key),
            workers=self._workers,
            wake=self._upkeep.wake,
            timed=self._timed,
        )

    def _timed(self, work: Work) -> AbstractContextManager[None]:
        return self.timed(work)

    def _tidy(self, known: set[str]) -> None:
        """Remove the derived files of collections that are no more: dropped, or of another database."""
        for folder in self._segments.parent.glob(f"{WARMING}*"):  # a warm-up that was killed
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # of no harm where they cannot be read or removed
            for folder in self._segments.iterdir():
                if folder.name not in known:
                    shutil.rmtree(folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Collection:
    """Documents of one name and one model. Made by `Database` only."""

    def __init__(
        self,
        storage: Storage,
        key: int,
        info: CollectionInfo,
        *,
        fingerprint: str | None,
        segments: Path,
        workers: Workers,
        wake: Callable[[], None],
        timed: Timed,
    ) -> None:
        self.info = info
        self._storage = storage
        self._key = key
        self._fingerprint = fingerprint
        self._segments = segments
        self._workers = workers
        self._wake = wake
        self._timed = timed
        self._dropped = False
        # Changes take turns from reading the derived state to publishing the next one; a search takes
        # whichever is published, without the lock.
        self._change = threading.Lock()
        self._sealing = threading.Lock()
        self._merging = threading.Lock()
        self._derived: Derived | None = None
        self._allowed = AllowedKeys(key)
        self._damage = Logged(info.name)
        self._layout = layout_of(info)

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
        encoded = {one.doc_id: one for one in records.encode_all(documents, self.info, self._workers)}
        if not encoded:
            return []
        found_by = [row_of(self._layout, 0, 0, one.embedding, one.terms) for one in encoded.values()]
        with self._timed("upsert"), self._change:
            self._ready()
            before = self._derived or self._load()
            with self._storage.write() as connection:
                first = changes.advance(connection, self._key, self.name, len(encoded))
                written = changes.put(connection, self._key, list(encoded.values()), first)
                rows = [
                    replace(row, key=int(key), stamp=int(stamp))
                    for key, stamp, row in zip(written.keys, written.stamps, found_by, strict=True)
                ]
                self._allowed.changed(first + len(rows) - 1, written.keys)
                # Before the commit: should memory run out here, nothing has happened.
                mean = mean_of(connection, self._key, self._layout)
                after = before.changed(written.replaced, rows, len(written.replaced) - len(rows), mean)
            self._derived = after
        if len(after.recent) >= upkeep.SEGMENT_ROWS:
            self._wake()
        if len(after.recent) >= upkeep.MOST_RECENT:
            self._seal_or_wait()
        numbers = {doc_id: first + place for place, doc_id in enumerate(encoded)}
        return [numbers[document.id] for document in documents]

    def delete(self, ids: Sequence[str]) -> int:
        """Delete documents by id; how many there were. Ids that are not there are passed over."""
        return self._delete(lambda connection: changes.keys_of(connection, self._key, ids))

    def delete_where(self, condition: Filter) -> int:
        """Delete the documents that a filter allows; how many there were."""
        return self._delete(lambda connection: facts.select(condition, connection, self._key))

    def get(self, doc_id: str) -> StoredDocument | None:
        """One document without its vectors, or None."""
        self._ready()
        with self._storage.read() as connection:
            return fetch.document(connection, self._key, doc_id)

    def embedding(self, doc_id: str) -> Embedding | None:
        """The stored vectors of one document, or None."""
        self._ready()
        with self.view(None, raised) as view:
            keys = changes.keys_of(view.connection, self._key, [doc_id])
            found = view.embeddings(view.documents(keys))
        if not keys.size:
            return None
        if int(keys[0]) not in found:
            raise damaged(int(keys[0]), "document")
        return found[int(keys[0])]

    def search(self, request: SearchRequest) -> list[Hit]:
        """At most `top_k` hits, best first; QueryInvalid where the request does not fit the collection.

        Fewer only where fewer are allowed by the filter, lack the mode's output or, in sparse mode,
        share no token with the query.
        """
        self._ready(vectors=True)
        weights = check(request, self.info)
        with self._timed("search"), self.view(request.filter) as view:
            return search(view, request, weights, self._timed)

    @contextmanager
    def view(self, condition: Filter | None, report: Report | None = None) -> Iterator[Snapshot]:
        """What a search looks at, for as long as the block lasts; damaged documents are logged once."""
        self._ready()
        state = self._derived or self.load()
        with self._storage.read() as connection:
            allowed = None
            if condition is not None:
                with self._timed("filter"):
                    allowed = self._allowed.select(condition, connection)
            yield Snapshot(
                connection, self._key, self.info, state, allowed, self._workers, report or self._damage
            )

    def measurable(self) -> Measurable:
        """What `measured` asks for."""
        return Measurable(self._key, self.info.name, self._derived, self._damage.count)

    def stats(self) -> CollectionStats:
        """Counts and sizes."""
        self._ready()
        with self._storage.read() as connection:
            return fetch.stats(connection, self._key, self.name)

    def documents(self, after: str = "", limit: int = PAGE) -> list[StoredDocument]:
        """The next documents in the order of their ids, after that one."""
        self._ready()
        if not is_unicode(after):
            raise QueryInvalid("after", "a lone surrogate is not a character")
        with self._storage.read() as connection:
            return fetch.documents(connection, self._key, after, limit)

    def ids(self) -> Iterator[str]:
        """Every id in order, a page at a time: documents that come or go meanwhile may be met or not."""
        after = ""
        while page := self.documents(after):
            yield from (document.id for document in page)
            after = page[-1].id

    def load(self, progress: Progress = nothing) -> Derived:
        """Read what searches need from its files, or make it; the first search or change would."""
        with self._change:
            self._ready()
            return self._derived or self._load(progress)

    def seal(self, least: int | None = None) -> bool:
        """Make a segment of the recent documents where there are enough; called by upkeep."""
        least = upkeep.SEGMENT_ROWS if least is None else least
        state = self._derived
        if state is None or len(state.recent) < least:
            return False
        with self._sealing:
            state = self._derived
            if self._dropped or state is None or len(state.recent) < least:
                return False
            with self._timed("seal"):
                self._replace(state, [], sealed=len(state.recent))
        return True

    def merge(self, *, idle: bool) -> bool:
        """Merge the segments that `merge_plan` names; called by upkeep."""
        with self._merging:
            state = self._derived
            if self._dropped or state is None:
                return False
            mean = state.mean if self.info.settings.bm25 else None
            if not (parts := merge_plan(state, idle=idle, mean=mean)):
                return False
            with self._timed("merge"):
                self._replace(state, parts, sealed=0)
        return True

    def drop(self) -> None:
        """Delete everything; called by `Database.drop`."""
        with self._change:
            self._ready()
            with self._storage.write() as connection:
                catalogue.delete(connection, self._key)
            self._dropped = True
            self._derived = None
        shutil.rmtree(self._segments, ignore_errors=True)

    def _replace(self, state: Derived, parts: Sequence[Part], *, sealed: int) -> None:
        """Write the living rows of parts and of the recent rows to one segment, and publish it."""
        old = [part.rows for part in parts]
        sources = state.sources(parts, recent=sealed > 0)
        new = None
        if any(chosen.any() for _, chosen in sources):
            path = new_path(self._segments)
            kind = self.info.settings.dense_index
            new = write(path, sources, self._layout, kind, self._workers, state.mean)
        with self._change:
            if self._derived is None:  # dropped meanwhile
                if new is not None:
                    discard(new.path)
                return
            self._derived = self._derived.replaced(old, sealed, new, [chosen for _, chosen in sources])
        for one in old:
            discard(one.path)

    def _seal_or_wait(self) -> None:
        try:
            self.seal()
        except OSError:
            return  # the documents are stored and found; upkeep says so and tries again

    def _delete(self, choose: Callable[[sqlite3.Connection], facts.Keys]) -> int:
        with self._timed("delete"), self._change:
            self._ready()
            before = self._derived or self._load()
            with self._storage.write() as connection:
                keys = choose(connection)
                if not keys.size:
                    return 0
                first = changes.advance(connection, self._key, self.name, len(keys))
                self._allowed.changed(first + len(keys) - 1, keys)
                changes.remove(connection, self._key, keys)
                after = before.changed(keys, [], len(keys), mean_of(connection, self._key, self._layout))
            self._derived = after
        self._wake()
        return len(keys)

    def _load(self, progress: Progress = nothing) -> Derived:
        with self._storage.read() as connection:
            self._derived = load(
                connection,
                self._key,
                self.info,
                self._layout,
                self._segments,
                self._workers,
                progress,
            )
        self._wake()
        return self._derived

    def _ready(self, *, vectors: bool = False) -> None:
        if self._dropped:
            raise CollectionNotFound(self.name)
        if vectors and self._fingerprint is not None:
            self.check_model(self._fingerprint)
