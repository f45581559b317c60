"""A data folder's truth read through: SQLite's own structure, and each row against its digest.

It reads what a server, if there is one, has written when it begins, and changes nothing.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from app.index import digests
from app.index.digests import Damaged
from app.index.errors import StorageDamaged, StorageUnavailable
from app.index.storage import APPLICATION_ID, FILE_NAME, MIGRATIONS, translated


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a data folder holds, and which of it is not what was written."""

    documents: int
    damaged: tuple[Damaged, ...]


def verify(folder: Path) -> VerifyReport:
    """Read everything once.

    Raises StorageUnavailable where there is nothing to read or an older Trivec wrote it, StorageDamaged where
    SQLite's own structure is damaged, so that single documents cannot be named.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise StorageUnavailable(f"{folder}: holds no {FILE_NAME}, so it is no data folder of Trivec")
    # Not mode=ro: a reader of a write-ahead log takes part in its locks, and so writes to them.
    with translated(), closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection:
        connection.execute("PRAGMA query_only = ON")
        application, version = (
            int(connection.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("application_id", "user_version")
        )
        if application != APPLICATION_ID:
            raise StorageDamaged(f"{path}: is a database of another program, or empty")
        if version != len(MIGRATIONS):
            raise StorageUnavailable(
                f"{path}: has format version {version}, this Trivec verifies {len(MIGRATIONS)}: "
                "a server of this version brings an older one up to date"
            )
        connection.execute("BEGIN")
        if (found := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise StorageDamaged(f"{path}: is damaged ({found}); restore a backup")
        count = int(connection.execute("SELECT count(*) FROM documents").fetchone()[0])
        return VerifyReport(count, tuple(digests.check(connection)))
