"""What a data folder holds at this moment, for whoever watches it: cheap enough to be asked often.

One statement on SQLite whatever the number of collections; the rest is in memory or in the files' entries.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.index.derived import Derived
from app.index.storage import FILE_NAME, Storage

WAL_SUFFIX = "-wal"


@dataclass(frozen=True, slots=True)
class DerivedMeasure:
    """What finds a collection's candidates."""

    recent: int
    """Documents in memory that are in no segment yet."""
    segments: int
    dead_rows: int
    """Rows of segments and of memory whose documents were replaced or deleted since."""
    segment_bytes: int
    """Of the segments' files."""


@dataclass(frozen=True, slots=True)
class CollectionMeasure:
    """One collection; bytes as stored, without SQLite's own overhead."""

    name: str
    count: int
    part_bytes: dict[str, int]
    """By part: text, metadata, dense, sparse, colbert."""
    derived: DerivedMeasure | None
    """None before it was first needed."""
    damaged: int
    """Stored rows met since the start that are not what was written."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A data folder."""

    collections: list[CollectionMeasure]
    database_bytes: int
    wal_bytes: int
    """Of the write-ahead log beside the database."""
    disk_free_bytes: int
    """Left for this user on the folder's disk."""


@dataclass(frozen=True, slots=True, eq=False)
class Measurable:
    """What a collection knows by itself."""

    key: int
    name: str
    derived: Derived | None
    damaged: int


def measured(storage: Storage, folder: Path, collections: Iterable[Measurable]) -> Measure:
    """Measure these collections; one that is gone by now is left out.

    Blocks; raises StorageFault where the database does not answer, OSError where the folder does not.
    """
    with storage.read() as connection:
        rows = connection.execute(
            "SELECT id, count, text_bytes, metadata_bytes, dense_bytes, sparse_bytes, colbert_bytes "
            "FROM collections"
        ).fetchall()
    sums = {int(key): (int(count), sizes) for key, count, *sizes in rows}
    names = ("text", "metadata", "dense", "sparse", "colbert")
    found = []
    for one in collections:
        if one.key in sums:
            count, sizes = sums[one.key]
            parts = dict(zip(names, map(int, sizes), strict=True))
            derived = None if one.derived is None else _derived(one.derived)
            found.append(CollectionMeasure(one.name, count, parts, derived, one.damaged))
    return Measure(
        found,
        _size(folder / FILE_NAME),
        _size(folder / (FILE_NAME + WAL_SUFFIX)),
        shutil.disk_usage(folder).free,
    )


def _derived(state: Derived) -> DerivedMeasure:
    living = int(np.count_nonzero(state.alive))
    return DerivedMeasure(
        recent=living,
        segments=len(state.parts),
        dead_rows=len(state.alive) - living + sum(len(part.rows) - part.living for part in state.parts),
        segment_bytes=sum(_size(part.rows.path) for part in state.parts),
    )


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):  # merged away, or not there yet
        return path.stat().st_size
    return 0
