"""Filters' answers that are kept: equal to SQLite's at every moment, whatever has changed in between."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app.index import allowed, facts
from app.index.allowed import AllowedKeys
from app.index.collection import Document
from app.index.filters import parse
from tests.index_helpers import embedding, made, opened

SOURCES = (
    {"n": 1},
    {"n": True},
    {"n": 1.0},
    {"n": {"$gte": 1}},
    {"$not": {"n": {"$exists": True}}},
    {"n": None},
    {"tags": {"$in": ["a", "b"]}},
    {},
)


def _document(rng: np.random.Generator) -> Document:
    metadata: dict[str, object] = {}
    if rng.random() < 0.8:
        metadata["n"] = [0, 1, 1.0, True, False, None, "1"][rng.integers(7)]
    if rng.random() < 0.5:
        metadata["tags"] = list("abc"[: rng.integers(4)])
    return Document(f"d{rng.integers(30)}", "", embedding(rng), metadata)


@pytest.mark.parametrize(
    ("most", "logged", "cached"), [(2000, 10**5, 2**20), (3, 10, 2**20), (2000, 10**5, 300)]
)
def test_answers_follow_every_change(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch, most: int, logged: int, cached: int
) -> None:
    monkeypatch.setattr(allowed, "MOST_CHANGES", most)
    monkeypatch.setattr(allowed, "MOST_LOGGED", logged)
    monkeypatch.setattr(allowed, "CACHED_BYTES", cached)
    rng = np.random.default_rng(seed)
    with opened(tmp_path) as database:
        where = made(database)
        where.upsert([_document(rng) for _ in range(20)])
        for _ in range(150):
            match rng.integers(4):
                case 0:
                    where.upsert([_document(rng) for _ in range(rng.integers(1, 6))])
                case 1:
                    where.delete([f"d{rng.integers(30)}"])
                case _:
                    condition = parse(SOURCES[rng.integers(len(SOURCES))])
                    with database._storage.read() as connection:
                        kept = where._allowed.select(condition, connection)
                        asked = facts.select(condition, connection, where._key)
                    np.testing.assert_array_equal(kept, asked)


def test_a_snapshot_gets_the_answer_of_its_own_time(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    condition = parse({"n": 1})
    with opened(tmp_path) as database:
        where = made(database)
        where.upsert([Document("a", "", embedding(rng), {"n": 1})])
        with database._storage.read() as older:
            assert len(where._allowed.select(condition, older)) == 1
            where.upsert([Document("b", "", embedding(rng), {"n": 1})])
            with database._storage.read() as newer:
                assert len(where._allowed.select(condition, newer)) == 2
            assert len(where._allowed.select(condition, older)) == 1
        with database._storage.read() as newest:
            assert len(where._allowed.select(condition, newest)) == 2


def test_a_change_that_was_undone_is_no_change(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(seed)
    condition = parse({"n": 1})
    with opened(tmp_path) as database:
        where = made(database)
        where.upsert([Document("a", "", embedding(rng), {"n": 1})])
        with database._storage.read() as connection:
            assert len(where._allowed.select(condition, connection)) == 1
        genuine = AllowedKeys.changed

        def fails(self: AllowedKeys, last_seq: int, keys: np.ndarray) -> None:
            genuine(self, last_seq, keys)
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(AllowedKeys, "changed", fails)
            with pytest.raises(MemoryError):
                where.upsert([Document("a", "", embedding(rng), {"n": 2})])
        where.upsert([Document("b", "", embedding(rng), {"n": 1})])
        with database._storage.read() as connection:
            assert len(where._allowed.select(condition, connection)) == 2
