"""kill -9 while documents are written: what was acknowledged is there, what was deleted stays away."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.crash.checks import Entry, check_killed, process
from tests.crash.writer import State


def _killed(folder: Path, seed: int, first_version: int, delay_s: float) -> list[Entry]:
    """What the writer said before it was killed, `delay_s` after its first acknowledgement."""
    with process("-m", "tests.crash.writer", str(folder), str(seed), str(first_version)) as child:
        assert child.stdout is not None
        try:
            lines = [child.stdout.readline()]
            while lines[-1] and json.loads(lines[-1])["do"] != "acknowledged":
                lines.append(child.stdout.readline())
            time.sleep(delay_s)
        finally:
            child.send_signal(signal.SIGKILL)
        lines += child.stdout.readlines()
    assert child.returncode == -signal.SIGKILL
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _survive(folder: Path, rounds: int, seed: int) -> None:
    rng = random.Random(seed)
    state: State = {}
    done: dict[str, int] = {}
    for round_ in range(rounds):
        entries = _killed(folder, rng.randrange(2**32), round_ * 1_000_000, rng.uniform(0, 0.5))
        state = check_killed(folder, state, entries, np.random.default_rng(rng.randrange(2**32)))
        for entry in entries:
            done[entry["do"]] = done.get(entry["do"], 0) + 1
    print(f"{rounds} kills: {done}")
    assert {"put", "drop", "drop where", "backed up"} <= set(done)


def test_kill(tmp_path: Path, seed: int) -> None:
    _survive(tmp_path, 10, seed)


@pytest.mark.slow
def test_kill_often(tmp_path: Path, seed: int) -> None:
    _survive(tmp_path, 200, seed)
