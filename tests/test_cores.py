"""Threads by default: physical cores, within a container's quota."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.cores import cores


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight CPUs, of which this process may use all."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_every_cpu_counts_where_nothing_is_known(machine: Path) -> None:
    assert cores(machine) == 8


def test_hardware_threads_of_one_core_count_once(machine: Path) -> None:
    for cpu in range(8):
        name = f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        write(machine, name, f"{cpu % 4},{cpu % 4 + 4}\n")
    assert cores(machine) == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("50000 100000\n", 1),
        ("1600000 100000\n", 8),
        ("nonsense\n", 8),
        ("1 0\n", 8),
    ],
)
def test_a_quota_bounds_them(machine: Path, text: str, expected: int) -> None:
    write(machine, "sys/fs/cgroup/cpu.max", text)
    assert cores(machine) == expected


@pytest.mark.parametrize(("quota", "expected"), [("300000", 3), ("-1", 8)])
def test_a_quota_of_older_kernels_does_too(machine: Path, quota: str, expected: int) -> None:
    write(machine, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", quota + "\n")
    write(machine, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert cores(machine) == expected


def test_this_machine_has_some() -> None:
    assert cores() >= 1
