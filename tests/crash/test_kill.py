"""kill -9 while documents are written: what was acknowledged is there, what was deleted stays away."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from app.index.collection import Document, SearchRequest
from app.index.storage import FILE_NAME
from tests.index_helpers import embedding, made, opened

BATCH = 5


def _write_for_ever(folder: Path, round_: int) -> None:
    """The process that is killed: says on stdout what has been acknowledged, one line each."""
    with opened(folder) as database:
        collection = made(database)
        step = 0
        while True:
            first = (round_ * 1_000_000 + step) * BATCH
            batch = [_document(first + place) for place in range(BATCH)]
            print(f"try {first}", flush=True)
            collection.upsert(batch)
            print(f"put {first}", flush=True)
            if step % 3 == 2:
                print(f"try-drop {first}", flush=True)
                collection.delete([batch[0].id])
                print(f"dropped {first}", flush=True)
            step += 1


def _document(number: int) -> Document:
    return Document(f"d{number}", f"text {number}", embedding(np.random.default_rng(number)), {"n": number})


def _killed_round(folder: Path, round_: int, delay_s: float) -> list[str]:
    """Lines that the writer got out before it was killed, `delay_s` after its first acknowledgement."""
    command = [
        sys.executable,
        "-c",
        f"from tests.crash.test_kill import _write_for_ever; from pathlib import Path\n"
        f"_write_for_ever(Path({str(folder)!r}), {round_})",
    ]
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, env=environment) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL
    return [line.strip() for line in lines if line.endswith("\n")]


def _check(folder: Path, lines: list[str]) -> None:
    connection = sqlite3.connect(folder / FILE_NAME)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()
    said: dict[str, set[int]] = {"try": set(), "put": set(), "try-drop": set(), "dropped": set()}
    for line in lines:
        word, number = line.split()
        said[word].add(int(number))
    with opened(folder) as database:
        collection = made(database)
        present = {one.id: one for one in collection.documents(limit=1_000_000)}
        assert collection.stats().count == len(present)
        query = embedding(np.random.default_rng(1))
        found = {hit.id for hit in collection.search(SearchRequest(query, exact=True, top_k=1_000_000))}
        assert found == set(present)
        for first in said["try"]:
            ids = [f"d{number}" for number in range(first, first + BATCH)]
            there = [name in present for name in ids]
            if first not in said["put"]:
                assert all(there) or not any(there), f"half a batch: {ids}"
                continue
            if first in said["dropped"]:
                assert not there[0], f"{ids[0]} is back"
            elif first not in said["try-drop"]:
                assert there[0], f"{ids[0]} was acknowledged and is lost"
            assert all(there[1:]), f"one of {ids} was acknowledged and is lost"
        for name in random.sample(sorted(present), min(5, len(present))):
            expected = _document(int(name[1:]))
            hit = collection.search(SearchRequest(expected.embedding, mode="dense", top_k=1))[0]
            assert (hit.id, hit.text) == (expected.id, expected.text)
            assert present[name].metadata == expected.metadata


def _survive(folder: Path, rounds: int, seed: int) -> None:
    rng = random.Random(seed)
    lines: list[str] = []
    for round_ in range(rounds):
        lines += _killed_round(folder, round_, delay_s=rng.uniform(0, 0.25))
        _check(folder, lines)
    assert any(line.startswith("dropped") for line in lines)


def test_kill(tmp_path: Path, seed: int) -> None:
    _survive(tmp_path, 10, seed)


@pytest.mark.slow
def test_kill_often(tmp_path: Path, seed: int) -> None:
    _survive(tmp_path, 100, seed)
