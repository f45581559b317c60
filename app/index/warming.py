"""The compiled kernels, before a request needs them: a tiny collection is filled and searched.

Machine code is kept on disk where that can be written. Compiling takes memory that never goes back to the
system, so another process does that; a server only loads the result, and that once it has a collection.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from app.index import deferred
from app.index.collection import (
    WARMING,
    ColbertKind,
    CollectionSettings,
    Database,
    Document,
    SearchRequest,
)
from app.index.derived import Derived
from app.index.errors import IndexFault
from app.index.filters import parse
from app.index.pooling import pooled
from model.embedding import Embedding, LexicalWeights

DOCUMENTS = 40
FLOATS: ColbertKind = "float16"
CODES: ColbertKind = "2bit"
"""Kinds that stand for the others: those of floats share their kernels, and so do those of codes."""
NICENESS = 10
"""Of the process that compiles: requests go first."""
POLL_S = 0.1
"""Between two looks at whether that process has ended."""
CLOSING_S = 5.0
"""For a kernel that is being compiled or loaded at that moment."""

ROOT = Path(__file__).resolve().parents[2]
"""Where `app` lies, for the other process: the current folder may hold anything."""
COMMAND = """import sys
if sys.argv[1] not in sys.path:
    sys.path.insert(0, sys.argv[1])
from app.index.warming import compile_aside
compile_aside(sys.argv[2:])
"""

_log = logging.getLogger("trivec.index")


def warm_up(folder: Path, kinds: Iterable[ColbertKind] = (FLOATS,)) -> None:
    """Load or compile what collections of these kinds run. OSError where `folder` takes no files."""
    rng = np.random.default_rng(0)
    with (
        tempfile.TemporaryDirectory(prefix=WARMING, dir=folder) as place,
        # One thread: the caller's, which may have said that nothing is to be compiled.
        Database(Path(place), threads=1) as database,
    ):
        for kind in sorted(set(kinds)):
            settings = CollectionSettings("rabitq", kind, colbert_candidates=True, bm25=True)
            collection = database.create(
                kind.lower(), settings, fingerprint="", hidden_size=64, colbert_dim=64
            )
            documents = [
                Document(str(number), "", _embedding(rng), {"number": number}, terms=_counts(number))
                for number in range(DOCUMENTS)
            ]
            collection.upsert(documents[: DOCUMENTS // 2])
            collection.seal(least=1)
            collection.upsert(documents[DOCUMENTS // 2 :])
            collection.delete(["0"])  # from here on living rows have to be counted
            for condition in (None, parse({"number": {"$gt": 5}})):
                one = documents[7]
                request = SearchRequest(
                    one.embedding, top_k=3, candidates=5, filter=condition, terms=one.terms
                )
                collection.search(replace(request, with_embeddings=True))
                collection.search(replace(request, mode="bm25"))
            _scan(collection.load(), documents[7].embedding)
    pooled(rng.standard_normal((8, 64)).astype(np.float32), 2)


def _counts(number: int) -> LexicalWeights:
    return LexicalWeights(np.array([0, 1 + number], np.int32), np.array([1, 2], np.float32))


def _scan(state: Derived, query: Embedding) -> None:
    """What a search runs only where there are many documents."""
    codes = state.parts[0].rows.vectors["dense"].codes
    assert codes is not None and query.dense is not None
    question = codes.question(query.dense)
    one = np.arange(len(codes.codes)) == 0
    for usable, available in ((None, len(one)), (one, 1)):
        _, bounds = codes.scanned(question, -np.inf, len(one), available, usable, None)
    deferred.vector_kernels.highest(bounds, 1)


def import_kernels() -> None:
    """Import Numba and the kernels, which takes some 0.3 s."""
    _ = deferred.kernels.dense_scores, deferred.code_kernels.best_sums, deferred.vector_kernels.scan
    _ = deferred.posting_kernels.sift, deferred.posting_build.write_codes


class Warmer:
    """Has kernels ready behind the scenes, for the collections that there are. Thread-safe.

    Until `start` it does nothing, and whoever needs a kernel before it is ready compiles it himself.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` is the data folder, where something is written for moments only."""
        self._folder = folder
        self._lock = threading.Lock()
        self._compiling = threading.Lock()
        self._started = False
        self._closing = threading.Event()
        self._kinds: set[ColbertKind] = set()
        self._threads: list[threading.Thread] = []

    def start(self, kinds: Iterable[ColbertKind]) -> None:
        """Load the kernels of these collections; where there are none, only have them compiled on disk."""
        with self._lock:
            self._started = True
        if wanted := set(kinds):
            self.want(wanted)
        else:
            with self._lock:
                self._run(self._prepare, {FLOATS, CODES})

    def want(self, kinds: Iterable[ColbertKind]) -> None:
        """Load the kernels of collections of these kinds, unless they are already. Returns at once."""
        with self._lock:
            new = {FLOATS if kind in ("float32", "float16") else CODES for kind in kinds} - self._kinds
            if self._started and new:
                self._kinds |= new
                self._run(self._load, new)

    def close(self) -> None:
        """Begin nothing more, and wait a while for what runs; the other process ends by itself."""
        with self._lock:
            self._closing.set()
        until = time.monotonic() + CLOSING_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _run(self, work: Callable[[set[ColbertKind]], None], kinds: set[ColbertKind]) -> None:
        if not self._closing.is_set():
            thread = threading.Thread(target=work, args=(kinds,), name="trivec-warm-up", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _load(self, kinds: set[ColbertKind]) -> None:
        try:
            if self._loaded(kinds):
                return
            with self._compiling:
                # Whoever had this lock may have compiled them.
                if self._loaded(kinds):
                    return
                if deferred.compiled.is_kept(deferred.kernels.dense_scores):
                    self._compile(kinds)
            # Where that has left anything it is compiled here.
            with (
                suppress(deferred.compiled.NotCompiledError),
                deferred.compiled.refused(self._closing.is_set),
            ):
                warm_up(self._folder, kinds)
        except (OSError, IndexFault) as error:
            _log.warning("kernels are compiled when they are first needed: %s", error)

    def _loaded(self, kinds: set[ColbertKind]) -> bool:
        """Load what is on disk; False where something is not."""
        with suppress(deferred.compiled.NotCompiledError), deferred.compiled.refused():
            warm_up(self._folder, kinds)
            return True
        return False

    def _prepare(self, kinds: set[ColbertKind]) -> None:
        with self._compiling:
            self._compile(kinds)

    def _compile(self, kinds: set[ColbertKind]) -> None:
        """Have another process compile what is not on disk; whether it did is seen by loading."""
        command = [sys.executable, "-P", "-c", COMMAND, str(ROOT), *sorted(kinds)]
        quiet = subprocess.DEVNULL
        if self._closing.is_set():
            return
        try:
            # A Ctrl-C in the terminal is for the server; this process ends with its input.
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, process_group=0
            )
        except OSError:
            return
        while process.poll() is None and not self._closing.wait(POLL_S):
            pass
        if process.stdin is not None:
            process.stdin.close()


def compile_aside(kinds: Iterable[ColbertKind]) -> None:
    """What the other process does, until its standard input ends: the server is gone then, or closes."""
    os.nice(NICENESS)
    ended = threading.Event()

    def watch() -> None:
        # Not through sys.stdin, whose lock this thread would hold when the process ends.
        while os.read(0, 1):
            pass
        ended.set()

    threading.Thread(target=watch, daemon=True).start()
    compiled = deferred.compiled
    # It ends between two kernels: one half written to disk could be taken for whole.
    with suppress(compiled.NotCompiledError, OSError, IndexFault), compiled.refused(ended.is_set):
        if compiled.is_kept(deferred.kernels.dense_scores):
            warm_up(Path(tempfile.gettempdir()), kinds)


def _embedding(rng: np.random.Generator) -> Embedding:
    terms = np.sort(rng.choice(100, 12, replace=False)).astype(np.int32)
    return Embedding(
        tokens=9,
        dense=rng.standard_normal(64).astype(np.float32),
        sparse=LexicalWeights(terms, rng.random(12).astype(np.float32) + np.float32(0.1)),
        colbert=rng.standard_normal((8, 64)).astype(np.float32),
    )
