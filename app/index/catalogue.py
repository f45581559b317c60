"""The table of collections: names, settings and the model that made them."""

from __future__ import annotations

import json
import re
import sqlite3
from dataclasses import asdict
from datetime import UTC, datetime

from app.index.errors import NameInvalid, StorageDamaged
from app.index.values import CollectionInfo, CollectionSettings
from model.scoring import FusionWeights

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

_COLUMNS = "id, name, settings, fingerprint, hidden_size, colbert_dim, created"


def check_name(name: str) -> None:
    """NameInvalid unless the name fits the pattern as a whole (`$` would let a line break through)."""
    if not isinstance(name, str) or NAME.fullmatch(name) is None:
        raise NameInvalid(
            f"{name!r:.80} is not a collection's name: 1 to 64 of a-z, 0-9, _ and -, "
            "the first a letter or a digit"
        )


def everything(connection: sqlite3.Connection) -> list[tuple[int, CollectionInfo]]:
    """All collections in the order of their names, with their internal ids."""
    rows = connection.execute(f"SELECT {_COLUMNS} FROM collections ORDER BY name").fetchall()
    return [(int(row[0]), CollectionInfo(row[1], _settings(row[1], row[2]), *row[3:])) for row in rows]


def add(
    connection: sqlite3.Connection,
    name: str,
    settings: CollectionSettings,
    fingerprint: str,
    hidden_size: int,
    colbert_dim: int,
) -> tuple[int, CollectionInfo]:
    """Insert a collection of a name that is free."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    info = CollectionInfo(name, settings, fingerprint, hidden_size, colbert_dim, created)
    cursor = connection.execute(
        "INSERT INTO collections (name, settings, fingerprint, hidden_size, colbert_dim, created) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        (name, json.dumps(asdict(settings)), fingerprint, hidden_size, colbert_dim, created),
    )
    return int(cursor.lastrowid or 0), info


def delete(connection: sqlite3.Connection, collection: int) -> None:
    """Delete a collection with all that belongs to it."""
    connection.execute("DELETE FROM collections WHERE id = ?", (collection,))


def _settings(name: str, source: str) -> CollectionSettings:
    try:
        fields = json.loads(source)
        return CollectionSettings(**{**fields, "fusion": FusionWeights(**fields["fusion"])})
    except (ValueError, TypeError, KeyError) as error:
        raise StorageDamaged(f"the settings of collection {name!r} cannot be read: {error}") from error
