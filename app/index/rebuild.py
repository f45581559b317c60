"""The derived state of a collection at a start: from its files as far as they are true, the rest from SQLite.

Nothing says which files belong to a collection: a row counts where a document's present version bears its
stamp, so a file may be torn, missing, superseded or of another time, and what it lacks is read again.
"""

from __future__ import annotations

import logging
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np

from app.index import fetch, upkeep
from app.index.arrays import DerivedDamaged
from app.index.bm25 import mean_length
from app.index.codes import codec
from app.index.derived import Derived, Part
from app.index.digests import Logged
from app.index.errors import StorageDamaged
from app.index.facts import Keys
from app.index.muvera import DIMENSIONS, FixedEncoder
from app.index.recent import Layout, Recent, Row
from app.index.segment import Segment, read, write
from app.index.values import CollectionInfo
from app.index.workers import Workers
from model.embedding import Embedding, FloatArray, LexicalWeights

SUFFIX = ".segment"
REBUILT_ROWS = 65_536
"""Documents of a segment that is made at a start."""

Progress = Callable[[str, int, int], None]
"""Collection, documents read again so far, documents to be read again."""

_log = logging.getLogger("trivec.index")


def nothing(collection: str, done: int, total: int) -> None:
    """Progress that is not shown."""


def layout_of(info: CollectionInfo) -> Layout:
    """What a collection's documents are found by."""
    vectors = {"dense": info.hidden_size}
    if info.settings.colbert_candidates and info.colbert_dim:
        vectors["colbert"] = DIMENSIONS
    return Layout(vectors, ("sparse", "bm25") if info.settings.bm25 else ("sparse",))


def row_of(layout: Layout, key: int, stamp: int, embedding: Embedding, terms: LexicalWeights | None) -> Row:
    """A document's version as its collection's layout has it."""
    vectors: dict[str, FloatArray] = {} if embedding.dense is None else {"dense": embedding.dense}
    if "colbert" in layout.vectors and embedding.colbert is not None:
        vectors["colbert"] = FixedEncoder.of(embedding.colbert.shape[1]).document(embedding.colbert)
    weights = {} if embedding.sparse is None else {"sparse": embedding.sparse}
    if "bm25" in layout.weights and terms is not None:
        weights["bm25"] = terms
    return Row(key, stamp, vectors, weights)


def mean_of(connection: sqlite3.Connection, collection: int, layout: Layout) -> float:
    """The mean length of all documents in tokens; 1 where it is not needed."""
    return mean_length(*fetch.lengths(connection, collection)) if "bm25" in layout.weights else 1.0


def new_path(folder: Path) -> Path:
    """A file for a segment, of a name that none had before."""
    return folder / f"{uuid.uuid4().hex}{SUFFIX}"


def load(
    connection: sqlite3.Connection,
    collection: int,
    info: CollectionInfo,
    layout: Layout,
    folder: Path,
    workers: Workers,
    progress: Progress,
) -> Derived:
    """The derived state of what the connection's transaction sees. Files that are of no use are removed."""
    keys, stamps = fetch.versions(connection, collection)
    mean = mean_of(connection, collection, layout)
    claimed = np.zeros(len(keys), np.bool_)
    parts: list[Part] = []
    for segment in _segments(folder, info.name, layout):
        at = np.minimum(np.searchsorted(keys, segment.keys), max(len(keys) - 1, 0))
        alive = np.zeros(len(segment), np.bool_)
        if len(keys):
            alive = (keys[at] == segment.keys) & (stamps[at] == segment.stamps) & ~claimed[at]
        if alive.any():
            claimed[at[alive]] = True
            parts.append(Part.of(segment, alive))
        else:
            discard(segment.path)
    missing = keys[~claimed]
    done = 0
    recent = Recent.empty(layout)
    for page in _pages(missing):
        recent = _read(connection, page, info, recent)
        done += len(page)
        if len(missing) >= upkeep.SEGMENT_ROWS:
            progress(info.name, done, len(missing))
        if len(recent) >= upkeep.SEGMENT_ROWS and (
            part := _sealed(recent, info, new_path(folder), workers, mean)
        ):
            parts.append(part)
            recent = Recent.empty(layout)
    return Derived(tuple(parts), recent, np.ones(len(recent), np.bool_), len(keys), mean)


def discard(path: Path) -> None:
    """Remove a derived file that is of no use; where that may not be done it is passed over next time too."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _segments(folder: Path, name: str, layout: Layout) -> Iterator[Segment]:
    """Those of a folder that are whole, the largest first: a merged one before what it was made of."""
    sizes: dict[Path, int] = {}
    try:
        for path in folder.iterdir():
            with suppress(FileNotFoundError):  # a merge of a database that was closed meanwhile removes it
                if path.is_file():
                    sizes[path] = path.stat().st_size
    except FileNotFoundError:
        return
    except OSError as error:
        _log.warning("collection %s: derived files cannot be read: %s", name, error)
        return
    for path in sizes:
        if path.name.startswith("."):  # being written when a process was killed
            discard(path)
    files = [path for path in sizes if path.suffix == SUFFIX and not path.name.startswith(".")]
    for path in sorted(files, key=lambda one: sizes[one], reverse=True):
        try:
            yield read(path, layout)
        except DerivedDamaged as error:
            _log.warning("collection %s: a derived file is made anew: %s", name, error)
            discard(path)


def _pages(keys: Keys) -> Iterator[Keys]:
    for first in range(0, len(keys), REBUILT_ROWS):
        yield keys[first : first + REBUILT_ROWS]


def _read(connection: sqlite3.Connection, keys: Keys, info: CollectionInfo, recent: Recent) -> Recent:
    rows = (row_of(recent.layout, *one) for one in _stored(connection, keys, info, recent.layout))
    while some := list(islice(rows, upkeep.SEGMENT_ROWS)):
        recent = recent.added(some)
    return recent


def _stored(
    connection: sqlite3.Connection, keys: Keys, info: CollectionInfo, layout: Layout
) -> Iterator[tuple[int, int, Embedding, LexicalWeights | None]]:
    """Key, stamp and what the layout needs of what is stored; StorageDamaged where that makes no sense."""
    codes = codec(info.settings.colbert, info.colbert_dim) if "colbert" in layout.vectors else None
    for key, stamp, (dense, indices, values, *words), blob in fetch.stream(
        connection, keys, colbert=codes is not None, report=Logged(info.name)
    ):
        try:
            rows = None if codes is None or blob is None else codes.decode(blob)
            embedding = Embedding(0, False, fetch.floats(dense), fetch.lexical(indices, values), rows)
            yield key, stamp, embedding, fetch.counted(*words)
        except ValueError as error:
            raise StorageDamaged(f"stored vectors cannot be read ({error}); restore a backup") from error


def _sealed(recent: Recent, info: CollectionInfo, path: Path, workers: Workers, mean: float) -> Part | None:
    """A segment of these rows, or None where the disk does not take it: they stay in memory then."""
    every = np.ones(len(recent), np.bool_)
    try:
        segment = write(path, [(recent, every)], recent.layout, info.settings.dense_index, workers, mean)
    except OSError as error:
        _log.warning("derived files could not be written: %s", error)
        return None
    return Part.of(segment, every)
