"""The side's half of the line protocol: one JSON object a line, requests on stdin, replies on stdout.

    {"load": {"seed", "documents", "group", "folder", "queries", "options"}} -> Loaded, as `load` describes
    {"search": {"ask", "queries": [numbers]}} -> {"seconds": [..], "found": [[numbers]], "own_s", "others_s"}
    {"upsert": {"documents", "batch"}} -> {"seconds"}: documents written again, `batch` in a call
    {"memory": true} -> {"rss", "anonymous", "disk"}: bytes

`seconds` of a search is its call alone: queries are in the library's own form before, ids are read after.
Of ingestion likewise: what is timed is `add` and `finish`, not the making of documents. `own_s` is the core
time of the process and `others_s` what other programs took meanwhile. An error is told as {"error"}.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol

from benchmarks.encode_sides.protocol import PR_SET_PDEATHSIG, busy_s, memory
from benchmarks.synthetic import Batch, Corpus, Floats, Query

Group = Literal["lexical", "dense", "all"]
"""Which outputs the documents are stored with."""
Mode = Literal["lexical", "dense", "hybrid", "colbert"]

LOAD_BATCH = 100
"""Documents of one `add` with token rows, 60 MB of float32; without them, ten times as many."""
DONE = "done"
"""The file that a side's folder has once it is whole: `keep` takes it as it is."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A filter of one field; `operator` is "=" or ">="."""

    field: str
    operator: Literal["=", ">="]
    value: str | int | bool


FILTERS: Mapping[str, Condition] = {
    "lang": Condition("lang", "=", "en"),
    "half": Condition("half", "=", True),
    "year": Condition("year", ">=", 2020),
    "tenant": Condition("tenant", "=", "t007"),
}


@dataclass(frozen=True, slots=True)
class Ask:
    """How to search. `candidates` is what each leg puts up, where a side has such a thing; 0: as it likes."""

    mode: Mode
    k: int = 10
    filter: str | None = None
    candidates: int = 100


USUAL = Ask("hybrid")
"""What is asked where nothing else is said."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a side is made for and where it may keep files. `options` are the side's own."""

    group: Group
    documents: int
    folder: Path
    options: Mapping[str, str]
    width: int = 1024
    vocabulary: int = 250_002


class Side(Protocol):
    """What a side's script builds from a `Place`."""

    @property
    def packages(self) -> Sequence[str]:
        """Distributions whose versions are told."""

    @property
    def threads(self) -> int:
        """How many one search uses at most."""

    @property
    def remarks(self) -> Sequence[str]:
        """What it cannot do, or does otherwise."""

    def pack(self, batch: Batch, rows: Sequence[Floats] | None) -> Any:
        """Documents in the library's own form; not timed. `rows` [R, D] of each, for the group "all"."""

    def add(self, packed: Any) -> None:
        """Store them, or write them again."""

    def finish(self) -> None:
        """Build what is built once everything is stored."""

    def prepare(self, query: Query, ask: Ask) -> Any:
        """A request in the library's own form; not timed."""

    def search(self, request: Any) -> Any:
        """The timed call."""

    def numbers(self, found: Any) -> list[int]:
        """The numbers of the documents found, best first; not timed."""


class Host:
    """A side with its corpus and queries: what each request does."""

    def __init__(self, make: Callable[[Place], Side], request: Mapping[str, Any]) -> None:
        self._corpus = Corpus(request["seed"], request["documents"])
        folder = Path(request["folder"])
        self._place = Place(request["group"], request["documents"], folder, request["options"])
        self._built = not (folder / DONE).exists()
        folder.mkdir(parents=True, exist_ok=True)
        before = time.perf_counter()
        self._side = make(self._place)
        self._opened_s = time.perf_counter() - before
        self._queries = self._corpus.queries(request["queries"])
        self._prepared: dict[Ask, list[Any]] = {}

    def load(self) -> dict[str, Any]:
        """Fill the side, unless its folder is whole already."""
        add_s = finish_s = 0.0
        if self._built:
            size = LOAD_BATCH if self._with_rows else 10 * LOAD_BATCH
            for batch in self._corpus.batches(size):
                add_s += self._add(batch)
            finish_s = timed(self._side.finish)
            (self._place.folder / DONE).touch()
        return {
            "versions": {name: version(name) for name in self._side.packages},
            "threads": self._side.threads,
            "remarks": list(self._side.remarks),
            "built": self._built,
            "open_s": self._opened_s,
            "add_s": add_s,
            "finish_s": finish_s,
            **self.memory(),
        }

    def search(self, ask: Ask, chosen: Sequence[int]) -> dict[str, Any]:
        """Some of the queries, one after another."""
        if ask not in self._prepared:
            self._prepared[ask] = [self._side.prepare(query, ask) for query in self._queries]
        requests = [self._prepared[ask][place] for place in chosen]
        busy, own = busy_s(), time.process_time()
        seconds, found = [], []
        for request in requests:
            began = time.perf_counter()
            found.append(self._side.search(request))
            seconds.append(time.perf_counter() - began)
        own = time.process_time() - own
        return {
            "seconds": seconds,
            "found": [self._side.numbers(one) for one in found],
            "own_s": own,
            "others_s": max(0.0, busy_s() - busy - own),
        }

    def upsert(self, documents: int, batch: int) -> dict[str, float]:
        """Write the first documents again."""
        firsts = range(0, min(documents, self._corpus.documents), batch)
        ends = [min(first + batch, documents, self._corpus.documents) for first in firsts]
        return {
            "seconds": sum(
                self._add(self._corpus.batch(first, end)) for first, end in zip(firsts, ends, strict=True)
            )
        }

    def memory(self) -> dict[str, int]:
        """Resident memory, that of no file, and what lies in the side's folder."""
        files = [file.stat().st_blocks * 512 for file in self._place.folder.rglob("*") if file.is_file()]
        return {"rss": memory("VmRSS"), "anonymous": memory("RssAnon"), "disk": sum(files)}

    @property
    def _with_rows(self) -> bool:
        return self._place.group == "all" and self._place.options.get("rows") != "codes"

    def _add(self, batch: Batch) -> float:
        rows = None
        if self._with_rows:
            rows = [self._corpus.token_rows(batch, place) for place in range(len(batch))]
        packed = self._side.pack(batch, rows)
        return timed(lambda: self._side.add(packed))


def timed(call: Callable[[], None]) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def serve(make: Callable[[Place], Side]) -> None:
    """Answer requests until stdin ends."""
    # A side that is stopped when the benchmark dies would wait for ever.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Libraries print where they like: only replies may reach the pipe.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies:
        os.dup2(2, 1)
        host: Host | None = None
        for line in sys.stdin:
            try:
                host, reply = _answer(make, host, json.loads(line))
            except Exception as error:  # noqa: BLE001 - told to the other half, which stops
                traceback.print_exc()
                reply = {"error": f"{type(error).__name__}: {error}"}
            replies.write(json.dumps(reply) + "\n")
            replies.flush()


def _answer(
    make: Callable[[Place], Side], host: Host | None, request: Mapping[str, Any]
) -> tuple[Host, dict[str, Any]]:
    if "load" in request:
        host = Host(make, request["load"])
        return host, host.load()
    assert host is not None, "a request before load"
    if "search" in request:
        search = request["search"]
        return host, host.search(Ask(**search["ask"]), search["queries"])
    if "upsert" in request:
        return host, dict(host.upsert(**request["upsert"]))
    return host, dict(host.memory())
