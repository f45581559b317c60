"""A copy of a data folder's truth while a server writes to it, and a data folder made of such a copy.

A backup is one SQLite file of one moment: it holds every change that was acknowledged before it began, and
no half of any. Derived structures are not in it; they are rebuilt from it. Both commands write aside, sync
and rename, so that what bears the name asked for is whole.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from app.index import digests
from app.index.digests import Damaged
from app.index.errors import StorageDamaged, StorageUnavailable
from app.index.owner import FolderLock
from app.index.storage import APPLICATION_ID, FILE_NAME, MIGRATIONS, translated


@dataclass(frozen=True, slots=True)
class BackupReport:
    """What a backup holds."""

    file: Path
    bytes: int
    collections: int
    documents: int
    damaged: tuple[Damaged, ...] = ()
    """Documents that are not what was written, in the folder already; all others are whole."""


def backup(folder: Path, target: Path) -> BackupReport:
    """Write what a data folder holds now to a new file; a server may own the folder and go on writing.

    Raises StorageUnavailable where there is nothing to copy, the target is there already or cannot be
    written; StorageFull where the disk has no room; StorageDamaged where the folder's file is damaged.
    """
    source = folder / FILE_NAME
    if not source.is_file():
        raise StorageUnavailable(f"{folder}: holds no {FILE_NAME}, so it is no data folder of Trivec")
    with _aside(target) as work, translated():
        # Not mode=ro: a reader of a write-ahead log takes part in its locks, and so writes to them.
        with closing(sqlite3.connect(source, isolation_level=None, timeout=10)) as connection:
            _check_ours(connection, source)
            connection.execute("VACUUM INTO ?", (str(work),))
        return _checked(work, target)


def restore(file: Path, folder: Path) -> BackupReport:
    """Make a data folder of a backup. The folder must hold no data yet, and nobody may serve it.

    Raises DataFolderInUse, StorageUnavailable where the folder holds data or cannot be written,
    StorageDamaged where the file is no whole backup.
    """
    if not file.is_file():
        raise StorageUnavailable(f"{file}: there is no such file")
    lock = FolderLock(folder)
    try:
        with _aside(folder / FILE_NAME) as work, translated():
            try:
                shutil.copyfile(file, work)
            except OSError as error:
                raise StorageUnavailable(f"{folder}: cannot copy {file}: {error.strerror}") from error
            return _checked(work, folder / FILE_NAME)
    finally:
        lock.release()


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A path beside the target that becomes the target when the block ends, and goes when it raises."""
    if target.exists():
        raise StorageUnavailable(f"{target}: is there already; nothing is overwritten, choose another place")
    work = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield work
        _sync(work)
        # A link fails where a rename would replace what another process has put there meanwhile.
        os.link(work, target)
        _sync(target.parent)
    except OSError as error:
        raise StorageUnavailable(f"{target}: cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):  # where there was no folder to write to, there is nothing to remove
            work.unlink(missing_ok=True)


def _checked(work: Path, named: Path) -> BackupReport:
    """Read the copy through, page by page, and count what it holds."""
    with closing(sqlite3.connect(f"{work.absolute().as_uri()}?immutable=1", uri=True)) as connection:
        _check_ours(connection, named)
        if (found := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise StorageDamaged(f"{named}: the copy is damaged: {found}")
        collections, documents = (
            int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
            for table in ("collections", "documents")
        )
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        damaged = tuple(digests.check(connection)) if version == len(MIGRATIONS) else ()
    return BackupReport(named, work.stat().st_size, collections, documents, damaged)


def _check_ours(connection: sqlite3.Connection, file: Path) -> None:
    application, version = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("application_id", "user_version")
    )
    if application != APPLICATION_ID:
        raise StorageDamaged(f"{file}: is a database of another program, or empty")
    if version > len(MIGRATIONS):
        raise StorageDamaged(
            f"{file}: has format version {version}, this Trivec reads up to {len(MIGRATIONS)}: update Trivec"
        )


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
