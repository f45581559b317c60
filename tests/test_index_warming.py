"""What a warm-up leaves behind: compiled kernels and nothing else."""

from __future__ import annotations

from pathlib import Path

from app.index.collection import WARMING
from app.index.warming import warm_up
from tests.index_helpers import opened


def test_a_warm_up_leaves_no_files(tmp_path: Path) -> None:
    with opened(tmp_path) as database:
        before = sorted(tmp_path.iterdir())
        warm_up(tmp_path, ["2bit", "float16"])
        assert sorted(tmp_path.iterdir()) == before
        assert database.list() == []


def test_what_a_killed_warm_up_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / f"{WARMING}abc"
    left.mkdir()
    (left / "trivec.sqlite3").write_bytes(b"x")
    opened(tmp_path).close()
    assert not left.exists()
