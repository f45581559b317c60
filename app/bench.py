"""How much of the true best the dense leg finds in a collection of this machine, and how long it takes.

Each query is searched twice, by the leg as a search asks it and by a scan of every row, in turns; recall is
the share of the scan's best scores that the leg reaches. Both read the rows as segments hold them (float16).
Quality against human judgements is no affair of this file: `benchmarks/` measures that.

Legend: n rows, Q queries, D hidden size.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from app.index.collection import Collection, Database
from app.index.derived import Derived
from app.index.recent import Flags, Recent
from app.index.restage import check_folder
from app.index.search import FIRST_CANDIDATES, SPARE
from app.index.segment import Segment
from app.index.workers import Workers
from app.progress import Bars
from model.embedding import FloatArray

DENSE = "dense"
NOISE = 0.5
"""Length of the noise on a document's vector, in lengths of that vector: a cosine of 0.89 with it."""
WARM_UP = 3
"""Queries before the clock runs: they read the rows from disk, and kernels are made for them."""
CUTS = (10, 100)


@dataclass(frozen=True, slots=True)
class RecallReport:
    """What was measured. Times are of the dense leg alone, in milliseconds."""

    collection: str
    documents: int
    segments: int
    rows: dict[str, int]
    """How many are found in which way; `exact` ones are scanned anyway."""
    queries: int
    threads: int
    recall_at_10: float
    recall_at_100: float
    search_ms: float
    """Median."""
    search_p95_ms: float
    exact_ms: float
    exact_p95_ms: float


Queries = Callable[[Collection, Derived], FloatArray]
"""What to ask. Shape: [Q, D]."""


def recall(folder: Path, name: str, queries: Queries, *, progress: bool = True) -> RecallReport:
    """Measure a collection of a data folder that nobody serves.

    Raises CollectionNotFound, DataFolderInUse, StorageFault; ValueError where no document has a dense vector.
    """
    check_folder(folder)
    with Database(folder) as database, Bars() as bars:
        collection = database.get(name)
        state = collection.load(bars)
        if not any(flags.any() for _, flags in _rows(state)):
            raise ValueError(f"collection {name}: no document has a dense vector to be found by")
        workers = Workers()
        try:
            return _measured(collection, state, queries(collection, state), workers, progress)
        finally:
            workers.close()


def noisy_documents(count: int, seed: int = 0) -> Queries:
    """Vectors of so many random documents (all where there are fewer), each with noise of its own."""

    def draw(collection: Collection, state: Derived) -> FloatArray:
        rng = np.random.default_rng(seed)
        pools = [(rows, np.flatnonzero(flags)) for rows, flags in _rows(state)]
        ends = np.cumsum([len(places) for _, places in pools])
        chosen = rng.choice(ends[-1], min(count, ends[-1]), replace=False)
        drawn = np.empty((len(chosen), collection.info.hidden_size), np.float32)
        for at, number in enumerate(chosen):
            pool = int(np.searchsorted(ends, number, "right"))
            rows, places = pools[pool]
            drawn[at] = _matrix(rows)[places[number - ends[pool]]]  # from the end: a negative index
        noise = rng.standard_normal(drawn.shape)
        lengths = np.linalg.norm(drawn, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
        asked: FloatArray = (drawn + NOISE * lengths * noise).astype(np.float32)
        return asked

    return draw


def _measured(
    collection: Collection, state: Derived, queries: FloatArray, workers: Workers, progress: bool
) -> RecallReport:
    count = FIRST_CANDIDATES + SPARE
    sides = (partial(_leg, state, count=count, workers=workers), partial(_exact, state, workers=workers))
    for query, ask in itertools.product(queries[:WARM_UP], sides):
        ask(query)
    times: tuple[list[float], list[float]] = ([], [])
    shares: list[list[float]] = []
    for number, query in enumerate(tqdm(queries, "queries", disable=not progress or None)):
        scores: list[FloatArray] = [np.empty(0, np.float32)] * 2
        for side in (0, 1) if number % 2 else (1, 0):
            began = time.perf_counter()
            scores[side] = sides[side](query)
            times[side].append(1000 * (time.perf_counter() - began))
        shares.append([_share(scores[0], scores[1], cut) for cut in CUTS])
    at_10, at_100 = np.mean(shares, axis=0)
    return RecallReport(
        collection.name,
        state.count,
        len(state.parts),
        _rows_by_kind(state),
        len(queries),
        workers.threads,
        float(at_10),
        float(at_100),
        *(float(np.percentile(side, percentile)) for side in times for percentile in (50, 95)),
    )


def _leg(state: Derived, query: FloatArray, *, count: int, workers: Workers) -> FloatArray:
    """Scores as the dense leg of a search finds them, best first."""
    return state.search_vectors(DENSE, query, count, state.usable(None), workers)[1]


def _exact(state: Derived, query: FloatArray, *, workers: Workers) -> FloatArray:
    """The highest scores of all, best first."""
    count, scores = max(CUTS), [np.empty(0, np.float32)]
    for rows, flags in _rows(state):
        if isinstance(rows, Segment):
            scores.append(rows.vectors[DENSE].exact(query, count, flags, workers)[1])
        else:
            scores.append(rows.search_vectors(DENSE, query, count, flags)[1])
    return -np.sort(-np.concatenate(scores))[:count]


def _share(found: FloatArray, best: FloatArray, cut: int) -> float:
    """The share of the `cut` best that were found. By score: equals may stand for one another."""
    best = best[:cut]
    return float(np.count_nonzero(found[:cut] >= best[-1]) / len(best))


def _rows(state: Derived) -> Iterator[tuple[Segment | Recent, Flags]]:
    """All rows, and which of them are of present documents with a dense vector."""
    for part in state.parts:
        present = part.rows.present.get(DENSE)
        yield part.rows, part.alive if present is None else part.alive & present
    yield state.recent, state.alive & state.recent.vectors[DENSE].present


def _rows_by_kind(state: Derived) -> dict[str, int]:
    found = Counter({"exact": len(state.recent)})
    for part in state.parts:
        found[part.rows.vectors[DENSE].kind] += len(part.rows)
    return {kind: count for kind, count in found.items() if count}


def _matrix(rows: Segment | Recent) -> NDArray[np.floating[Any]]:
    return rows.vectors[DENSE].rows if isinstance(rows, Segment) else rows.vectors[DENSE].matrix
