"""The process that is killed: changes, segments, merges and backups all at once, and a log of what it did.

It says a change on stdout before it begins and again when it has been acknowledged, so whoever killed it
knows each document's version but for one change of each thread, which may have happened as a whole or not.
It checks nothing itself; `checks.py` does. A document's content follows from its version alone.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from app.index import upkeep
from app.index.backup import backup
from app.index.collection import Collection, CollectionSettings, Database, Document
from app.index.filters import parse
from tests.index_helpers import embedding, made, opened, words

THREADS = 2
"""Threads that change documents, each those of its own."""
IDS = 60
"""Of one thread: few, so that most changes replace or delete something."""
SHARDS = 7
SEGMENT_ROWS = 16
SETTINGS = CollectionSettings(colbert="float32", bm25=True)

State = dict[str, int]
"""The version of each document that there is."""


def document(name: str, version: int) -> Document:
    """A version of a document; some lack an output."""
    without = {1: ("colbert",), 2: ("sparse",), 3: ("dense",)}.get(version % 11, ())
    metadata = {"thread": int(name[1]), "shard": version % SHARDS, "version": version}
    rng = np.random.default_rng(version)
    return Document(name, f"text {version}", embedding(rng, without), metadata, terms=words(rng))


def applied(state: State, change: dict[str, Any]) -> State:
    """What a change that was logged makes of a thread's documents."""
    match change["do"]:
        case "put":
            return {**state, **change["items"]}
        case "drop":
            return {name: version for name, version in state.items() if name not in change["ids"]}
        case "drop where":
            return {name: version for name, version in state.items() if version % SHARDS != change["shard"]}
    raise ValueError(change)


def make_busy() -> None:
    """Thresholds so small that segments are made and merged all the time."""
    upkeep.SEGMENT_ROWS = SEGMENT_ROWS
    upkeep.MOST_RECENT = 4 * SEGMENT_ROWS
    upkeep.IDLE_S = 0.02


class Log:
    """Lines of JSON on stdout, whole ones, in the order in which things happened."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def say(self, **entry: Any) -> None:
        """One line."""
        with self._lock:
            sys.stdout.write(json.dumps(entry) + "\n")
            sys.stdout.flush()


def run(folder: Path, seed: int, first_version: int) -> None:
    """Write until killed. `folder` / "data" is the data folder, backups go beside it."""
    make_busy()
    log = Log()
    with opened(folder / "data") as database:
        collection = made(database, settings=SETTINGS)
        threads: list[Callable[[], None]] = [
            lambda thread=thread: _change(  # type: ignore[misc]
                collection, log, thread, random.Random(f"{seed} {thread}"), first_version
            )
            for thread in range(THREADS)
        ]
        threads.append(lambda: _back_up(folder, log, random.Random(seed)))
        threads.append(lambda: _make_and_drop(database))
        for task in threads:
            threading.Thread(target=task, daemon=True).start()
        threading.Event().wait()


def _change(collection: Collection, log: Log, thread: int, rng: random.Random, version: int) -> None:
    names = [f"d{thread}-{number}" for number in range(IDS)]
    # Versions of one thread never meet those of another.
    version = version * THREADS + thread
    while True:
        match rng.choices(["put", "drop", "drop where"], [8, 2, 1])[0]:
            case "put":
                items = {}
                for name in rng.sample(names, rng.choice([1, 3, 8, 20])):
                    items[name] = version
                    version += THREADS
                log.say(thread=thread, do="put", items=items)
                collection.upsert([document(name, number) for name, number in items.items()])
            case "drop":
                ids = rng.sample(names, rng.choice([1, 5]))
                log.say(thread=thread, do="drop", ids=ids)
                collection.delete(ids)
            case _:
                shard = rng.randrange(SHARDS)
                log.say(thread=thread, do="drop where", shard=shard)
                collection.delete_where(parse({"thread": thread, "shard": shard}))
        log.say(thread=thread, do="acknowledged")


def _back_up(folder: Path, log: Log, rng: random.Random) -> None:
    number = 0
    while True:
        time.sleep(rng.uniform(0, 0.1))
        target = f"copy{number}"
        log.say(do="backup", file=target)
        backup(folder / "data", folder / "copies" / target)
        log.say(do="backed up", file=target)
        number += 1


def _make_and_drop(database: Database) -> None:
    """A collection that comes and goes, with files of its own."""
    while True:
        scratch = made(database, "scratch")
        for first in range(0, 3 * SEGMENT_ROWS, 8):
            scratch.upsert([document(f"d9-{number}", number) for number in range(first, first + 8)])
        database.drop("scratch")


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
