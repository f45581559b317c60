"""How many threads one forward pass should have here.

Matmuls gain nothing from a second thread on the same core, and threads beyond a container's quota are
stopped in the middle of a product, while the others wait for them. So: the physical cores that this
process may run on, and no more than the quota allows. Linux tells both; elsewhere every core counts.
"""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP_2 = "sys/fs/cgroup/cpu.max"
_CGROUP_1 = ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "sys/fs/cgroup/cpu/cpu.cfs_period_us")


def cores(root: Path = Path("/")) -> int:
    """Threads of one forward pass, at least 1. `root` is the file system that describes the machine."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    physical = {_siblings(root, cpu) for cpu in allowed}
    quota = _quota(root)
    # Rounded up: half a thread too many costs less than a core that nobody uses.
    return max(1, len(physical) if quota is None else min(len(physical), -int(-quota // 1)))


def _siblings(root: Path, cpu: int) -> str:
    """What names the core that a CPU is on: the list of its hardware threads, or itself."""
    file = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    try:
        return file.read_text(encoding="ascii").strip() or str(cpu)
    except OSError:
        return str(cpu)


def _quota(root: Path) -> float | None:
    """Cores' worth of time that the control group of this process may use; None without a limit."""
    try:
        quota, period = (root / _CGROUP_2).read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            quota, period = ((root / name).read_text(encoding="ascii").strip() for name in _CGROUP_1)
        except OSError:
            return None
    if quota in ("max", "-1"):
        return None
    try:
        return float(quota) / float(period)
    except (ValueError, ZeroDivisionError):
        return None
