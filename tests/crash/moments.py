"""Processes that kill themselves at a chosen moment, the n-th time that it comes.

`python -m tests.crash.moments TASK MOMENT FOLDER SEED` works on a data folder step by step, without threads,
and says on stdout what it did, as `writer.py` does. It checks nothing itself; `test_moments.py` does.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from app.index import arrays, rebuild, storage, upkeep
from app.index.backup import backup, restore
from app.index.collection import SEGMENTS, Collection, Database
from app.index.filters import parse
from tests.crash.writer import IDS, SEGMENT_ROWS, SETTINGS, SHARDS, Log, document, make_busy
from tests.index_helpers import made, opened

STEPS = 200


class Trap:
    """Kills this process the n-th time that its moment comes; not before it is armed."""

    def __init__(self) -> None:
        self._left = 0

    def arm(self, times: int) -> None:
        """From now on."""
        self._left = times

    def step(self) -> None:
        """The moment has come."""
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def before(trap: Trap, genuine: Callable[..., Any], wanted: Callable[..., bool]) -> Callable[..., Any]:
    """`genuine`, killed before it does anything with wanted arguments."""

    def replacement(*arguments: Any, **named: Any) -> Any:
        if wanted(*arguments):
            trap.step()
        return genuine(*arguments, **named)

    return replacement


def after(trap: Trap, genuine: Callable[..., Any], wanted: Callable[..., bool]) -> Callable[..., Any]:
    """`genuine`, killed when it has done its work."""

    def replacement(*arguments: Any, **named: Any) -> Any:
        result = genuine(*arguments, **named)
        if wanted(*arguments):
            trap.step()
        return result

    return replacement


def _segment(path: Path, *_: object) -> bool:
    return ".segment" in path.name


def _every(*_: object) -> bool:
    return True


def _torn(trap: Trap) -> None:
    """Killed between two arrays of a segment, what was written of them on the disk."""
    genuine = arrays.ArrayWriter.stream

    def stream(writer: arrays.ArrayWriter, *arguments: Any) -> None:
        genuine(writer, *arguments)
        writer._file.flush()
        trap.step()

    arrays.ArrayWriter.stream = stream  # type: ignore[method-assign]


def _committing(trap: Trap, when: Callable[..., Callable[..., Any]]) -> None:
    def wanted(_: object, statement: str, *__: object) -> bool:
        return statement == "COMMIT"

    class Killed(sqlite3.Connection):
        execute = when(trap, sqlite3.Connection.execute, wanted)

    genuine = sqlite3.connect
    storage.sqlite3.connect = partial(genuine, factory=Killed)  # type: ignore[assignment]


def _hook(owner: Any, name: str, when: Any, wanted: Callable[..., bool]) -> Callable[[Trap], None]:
    def install(trap: Trap) -> None:
        setattr(owner, name, when(trap, getattr(owner, name), wanted))

    return install


MOMENTS: dict[str, Callable[[Trap], None]] = {
    "amid a segment": _torn,
    "before a segment bears its name": _hook(Path, "replace", before, _segment),
    "after a segment bears its name": _hook(Path, "replace", after, _segment),
    "before a merged segment is removed": _hook(
        Path, "unlink", before, lambda path, *_: path.suffix == ".segment"
    ),
    "before a commit": lambda trap: _committing(trap, before),
    "after a commit": lambda trap: _committing(trap, after),
    "before a backup bears its name": _hook(os, "link", before, _every),
    "after a backup bears its name": _hook(os, "link", after, _every),
    "amid a drop": _hook(shutil, "rmtree", before, _every),
}


def work(moment: str, folder: Path, seed: int) -> None:
    """Change, seal, merge, back up and drop until the moment has come a few times."""
    trap, rng = Trap(), random.Random(seed)
    MOMENTS[moment](trap)
    with _stepping(folder) as (database, collection):
        trap.arm(rng.randint(2, 6))
        _work(folder, database, collection, rng)


def start(moment: str, folder: Path, seed: int) -> None:
    """Start where all segments are lost, so that they are made anew."""
    trap, rng = Trap(), random.Random(seed)
    with _stepping(folder) as (database, collection):
        _work(folder, database, collection, rng, steps=30)
    shutil.rmtree(folder / "data" / SEGMENTS)
    rebuild.REBUILT_ROWS = SEGMENT_ROWS
    MOMENTS[moment](trap)
    trap.arm(rng.randint(1, 2))
    with _stepping(folder) as (database, _):
        database.load()


def bring_back(moment: str, folder: Path, seed: int) -> None:
    """Restore the backup `folder` / "copy"."""
    trap = Trap()
    MOMENTS[moment](trap)
    trap.arm(1)
    restore(folder / "copy", folder / "restored")


def bring_up_to_date(moment: str, folder: Path, seed: int) -> None:
    """Open a folder of the first format."""
    trap = Trap()
    MOMENTS[moment](trap)
    trap.arm(1)
    opened(folder / "data").close()


@contextmanager
def _stepping(folder: Path) -> Iterator[tuple[Database, Collection]]:
    make_busy()
    upkeep.Upkeep.wake = lambda self: None  # type: ignore[method-assign]
    with opened(folder / "data") as database:
        yield database, made(database, settings=SETTINGS)


def _work(
    folder: Path, database: Database, collection: Collection, rng: random.Random, steps: int = STEPS
) -> None:
    log = Log()
    for step in range(steps):
        match step % 4:
            case 3 if step % 8 == 3:
                ids = [f"d0-{number}" for number in rng.sample(range(IDS), 8)]
                log.say(thread=0, do="drop", ids=ids)
                collection.delete(ids)
            case 3:
                shard = rng.randrange(SHARDS)
                log.say(thread=0, do="drop where", shard=shard)
                collection.delete_where(parse({"thread": 0, "shard": shard}))
            case place:
                numbers = rng.sample(range(IDS), SEGMENT_ROWS)
                items = {f"d0-{number}": 100 * step + place + number for number in numbers}
                log.say(thread=0, do="put", items=items)
                collection.upsert([document(name, version) for name, version in items.items()])
        log.say(thread=0, do="acknowledged")
        collection.seal()
        collection.merge(idle=rng.random() < 0.3)
        if step % 6 == 5:
            log.say(do="backup", file=f"copy{step}")
            backup(folder / "data", folder / "copies" / f"copy{step}")
            log.say(do="backed up", file=f"copy{step}")
        if step % 6 == 2:
            scratch = made(database, "scratch")
            scratch.upsert([document(f"d9-{number}", number) for number in range(SEGMENT_ROWS)])
            scratch.seal()
            database.drop("scratch")


TASKS = {one.__name__: one for one in (work, start, bring_back, bring_up_to_date)}

if __name__ == "__main__":
    TASKS[sys.argv[1]](sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
