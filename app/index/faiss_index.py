"""FAISS indices over a segment's rows: which rows may have the highest inner products with a query.

Legend: N rows, D width, Q sample queries, n candidates.

Two kinds. "ivf": k-means lists of 1-bit codes (RaBitQ, arXiv 2405.12497, in FAISS' FastScan layout), of
which a search reads those with the nearest centres. "hnsw": a graph over 8-bit values (arXiv 1603.09320).
How many lists or graph nodes a search visits is measured when the index is built, against exact products.

It gives candidates only: the caller scores them from the rows themselves. It stores no rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import faiss as _faiss
import numpy as np
from numpy.typing import NDArray

from app.index.vector_kernels import Patterns, Places, inner_products
from app.index.workers import Workers
from model.embedding import FloatArray

faiss: Any = _faiss
"""Its type stubs know neither its Python parameters nor its vectors."""

FaissKind = Literal["ivf", "hnsw"]

GOAL = 0.99
"""Recall of the `DEPTH` best rows that an index must reach on sample queries; else there is none.

Higher than the 0.98 that queries should have: samples are a guess at them.
"""

DEPTH = 100
"""Rows wanted of each sample query."""

SAMPLE_QUERIES = 64
"""Queries that choose how much a search visits."""

NOISE = (0.7, 2.0)
"""Least and most noise in a sample query, for a noise as long as rows are from their centre."""

MIXED = 8
"""Pairs of rows whose differences make a noise: with one pair, queries lie between two groups of rows."""

MOST_LISTS = 4096
"""More than sqrt(N) lists, or more than this, cost more to build than they save in a search."""

TRAINED_ROWS = 64
"""Rows for each list that k-means sees."""

TRAINING_ROUNDS = 8
"""Rounds of k-means."""

NEIGHBOURS = 32
"""Of each node in a graph; twice as many in its lowest layer."""

TRIES = ((200, 512), (400, 1024))
"""How many nodes are looked at to place one in a graph (efConstruction), and at most by a search (efSearch).

The second is tried where the first misses the goal: its building takes twice as long.
"""

LEAST_NODES = 128
"""The first efSearch tried; each next one is twice as many."""

BREADTHS = (1000, 2000, 4000, 8000)
"""How many candidates a search of lists gives, in the order tried."""

CANDIDATE_COST = 32
"""A candidate costs a search as much as this many codes in lists (measured at D = 1024: 0.7 us and 21 ns)."""

CODE_COST = 1 / 12
"""A code in a list costs a search as much as so many exact scores of scattered rows."""

NODE_COST = 32.0
"""A node of a graph costs a search as much as so many exact scores."""

ADDED_ROWS = 32_768
"""Rows that are widened to float32 and added at once."""

BLOCK_ROWS = 8192
"""Rows that one task scores for all sample queries."""


@dataclass(frozen=True, eq=False)
class FaissIndex:
    """A trained and filled index. Any number of threads search it at once, each on its own core only."""

    index: Any
    """An `IndexIVFRaBitQFastScan` or `IndexHNSWSQ` with N rows, ids ascending from 0."""
    effort: int
    """Lists (ivf) or nodes (hnsw) visited for `DEPTH` rows."""
    breadth: int
    """Candidates for `DEPTH` rows."""

    @classmethod
    def build(cls, patterns: Patterns, kind: FaissKind, workers: Workers | None) -> FaissIndex | None:
        """An index of finite rows [N, D], N > 0; None where none reaches the goal on sample queries.

        FAISS uses as many threads as `workers` has.
        """
        rows = patterns.view(np.float16)
        queries = _sample_queries(rows)
        least = _last_scores(patterns, queries, workers)
        with _threads(workers.threads if workers else 1):
            if kind == "ivf":
                return cls._tuned_ivf(_ivf(rows), patterns, queries, least)
            for care, most in TRIES:
                found = cls._tuned_hnsw(_hnsw(rows, care), most, patterns, queries, least)
                if found is not None:
                    return found
        return None

    @classmethod
    def _tuned_ivf(
        cls, index: Any, patterns: Patterns, queries: FloatArray, least: FloatArray
    ) -> FaissIndex | None:
        """With the cheapest number of lists and candidates that reaches the goal."""
        count = len(patterns)
        reached: list[tuple[float, int, int]] = []
        # Up to all lists, the last step perhaps a short one.
        efforts = [1 << turn for turn in range((index.nlist - 1).bit_length())]
        for effort in [*efforts, index.nlist]:
            cost = effort * count / index.nlist
            if reached and min(reached)[0] <= cost:
                break
            # Candidates come best first: fewer of them are the first of more.
            places = cls(index, effort, BREADTHS[-1])._searched(
                queries, effort, min(BREADTHS[-1], count), None
            )
            for breadth in BREADTHS:
                if _recall(patterns, queries, places[:, :breadth], least) >= GOAL:
                    reached.append((cost + CANDIDATE_COST * breadth, effort, breadth))
                    break
        return cls(index, *min(reached)[1:]) if reached else None

    @classmethod
    def _tuned_hnsw(
        cls, index: Any, most: int, patterns: Patterns, queries: FloatArray, least: FloatArray
    ) -> FaissIndex | None:
        nodes = LEAST_NODES
        while nodes <= most:
            found = cls(index, nodes, nodes)
            places = found._searched(queries, nodes, min(nodes, len(patterns)), None)
            if _recall(patterns, queries, places, least) >= GOAL:
                return found
            nodes *= 2
        return None

    @classmethod
    def of(cls, arrays: dict[str, NDArray[Any]], count: int, width: int) -> FaissIndex:
        """From what `arrays` gave; ValueError where it cannot be an index of rows [count, width].

        It trusts that the bytes are those stored: it looks at kinds and sizes, not at each link of a graph.
        """
        if arrays.keys() != {"faiss", "effort"}:
            raise ValueError(f"a FAISS dense segment has the arrays effort and faiss, got {sorted(arrays)}")
        stored, effort = arrays["faiss"], arrays["effort"]
        if stored.dtype != np.uint8 or stored.ndim != 1 or not stored.flags.c_contiguous:
            raise ValueError(f"the index of a dense segment must be bytes, got {stored.dtype} {stored.shape}")
        if (
            effort.dtype != np.int64
            or effort.shape != (2,)
            or not bool(((effort > 0) & (effort < 1 << 31)).all())
        ):
            raise ValueError(f"the effort of a dense segment must be two positive int64, got {effort}")
        try:
            index = faiss.deserialize_index(stored)
        except RuntimeError as error:
            raise ValueError(f"FAISS {faiss.__version__} cannot read a dense segment: {error}") from error
        if (index.ntotal, index.d, index.metric_type) != (count, width, faiss.METRIC_INNER_PRODUCT):
            raise ValueError(
                f"the index of a dense segment must hold inner products of {count} rows of width {width}, "
                f"got metric {index.metric_type}, {index.ntotal} rows of width {index.d}"
            )
        if not index.is_trained or not _whole(index):
            raise ValueError(f"a dense segment cannot search with a {type(index).__name__} like this")
        return cls(index, *effort.tolist())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """To be stored. A copy of the index."""
        return {
            "faiss": faiss.serialize_index(self.index),
            "effort": np.array([self.effort, self.breadth], np.int64),
        }

    @property
    def kind(self) -> FaissKind:
        return "ivf" if isinstance(self.index, faiss.IndexIVF) else "hnsw"

    def candidates(self, query: FloatArray, count: int, usable: NDArray[np.bool_] | None) -> Places | None:
        """Usable rows among which the `count` best should be; None where all should be scored instead.

        Shapes: [D], [N] or None (all usable) -> [n]. None also where too few were found.
        """
        total = self.index.ntotal
        available = total if usable is None else int(np.count_nonzero(usable))
        length = float(np.linalg.norm(query.astype(np.float64)))
        share = max(1.0, count / DEPTH)
        breadth = int(min(self.breadth * share, total))
        if length == 0 or available <= max(count, breadth):
            return None
        if self.kind == "ivf":
            # Rows further down lie in more lists, but lists rise more slowly than rows.
            further = (share * total / available) ** (2 / 3)
            effort = min(int(np.ceil(self.effort * further)), self.index.nlist)
            cost = CODE_COST * effort * total / self.index.nlist
            efforts = sorted({effort, min(8 * effort, self.index.nlist), self.index.nlist})
        else:
            # A graph is walked over unusable rows too.
            effort = int(np.ceil(self.effort * share * total / available))
            cost = NODE_COST * effort
            efforts = [effort]
        if available <= cost:
            return None
        # Length changes no order, while products of large numbers leave float32.
        unit = (query / length).astype(np.float32)[np.newaxis]
        bits = None if usable is None else np.packbits(usable, bitorder="little")
        with _threads(1):
            for effort in efforts:
                found = self._searched(unit, effort, breadth, bits)[0]
                places: Places = found[(found >= 0) & (found < total)]
                if len(places) >= count:
                    return places
        return None

    def _searched(
        self, queries: FloatArray, effort: int, breadth: int, bits: NDArray[np.uint8] | None
    ) -> Places:
        """Rows, those thought best first, and then -1. Shapes: [Q, D], [N / 8] -> [Q, breadth]."""
        selector = None if bits is None else faiss.IDSelectorBitmap(bits)
        if self.kind == "ivf":
            parameters = faiss.IVFRaBitQSearchParameters(sel=selector, nprobe=effort, qb=8)
        else:
            parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=max(effort, breadth))
        _, places = self.index.search(queries, breadth, params=parameters)
        return np.asarray(places, np.int64)


def _ivf(rows: NDArray[np.float16]) -> Any:
    count, width = rows.shape
    lists = max(1, min(round(count**0.5), count // TRAINED_ROWS, MOST_LISTS))
    centres = faiss.IndexFlatIP(width)
    index = faiss.IndexIVFRaBitQFastScan(centres, width, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = TRAINING_ROUNDS
    # FAISS warns of few rows on the standard output.
    index.cp.min_points_per_centroid = 1
    return _filled(index, rows, lists * TRAINED_ROWS)


def _hnsw(rows: NDArray[np.float16], care: int) -> Any:
    metric = faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexHNSWSQ(rows.shape[1], faiss.ScalarQuantizer.QT_8bit, NEIGHBOURS, metric)
    index.hnsw.efConstruction = care
    return _filled(index, rows, MOST_LISTS * TRAINED_ROWS // 4)


def _filled(index: Any, rows: NDArray[np.float16], trained: int) -> Any:
    """The index, trained with some rows and filled with all."""
    count = len(rows)
    sample = np.random.default_rng(0).choice(count, min(count, max(1, trained)), replace=False)
    index.train(rows[np.sort(sample)].astype(np.float32))
    for begin in range(0, count, ADDED_ROWS):
        index.add(rows[begin : begin + ADDED_ROWS].astype(np.float32))
    return index


def _whole(index: Any) -> bool:
    """Whether an index is of a kind made here, and its parts have one size."""
    if isinstance(index, faiss.IndexIVFRaBitQFastScan):
        centres, lists = index.quantizer, index.invlists
        return bool(
            (centres.ntotal, centres.d, lists.nlist) == (index.nlist, index.d, index.nlist)
            and lists.compute_ntotal() == index.ntotal
        )
    if isinstance(index, faiss.IndexHNSWSQ):
        graph, storage = index.hnsw, index.storage
        return bool(
            (storage.ntotal, storage.d, graph.levels.size()) == (index.ntotal, index.d, index.ntotal)
            and graph.offsets.size() == index.ntotal + 1
            and 0 <= graph.entry_point < index.ntotal
        )
    return False


def _sample_queries(rows: NDArray[np.float16]) -> FloatArray:
    """Rows with noise that varies as rows do, made of others' differences. Shapes: [N, D] -> [Q, D], unit."""
    rng = np.random.default_rng(1)
    drawn = rng.integers(len(rows), size=(1 + 2 * MIXED, SAMPLE_QUERIES))
    first, *others = (rows[places].astype(np.float32) for places in drawn)
    noise = sum(others[:MIXED], -sum(others[MIXED:], np.float32(0))) / np.float32((2 * MIXED) ** 0.5)
    queries = first + rng.uniform(*NOISE, (SAMPLE_QUERIES, 1)).astype(np.float32) * noise
    lengths = np.linalg.norm(queries, axis=1, keepdims=True)
    return np.asarray(queries / np.where(lengths > 0, lengths, 1), np.float32)


def _last_scores(patterns: Patterns, queries: FloatArray, workers: Workers | None) -> FloatArray:
    """The score of each query's last row wanted. Shapes: [N, D], [Q, D] -> [Q]."""

    def task(begin: int) -> FloatArray:
        block = patterns[begin : begin + BLOCK_ROWS]
        # All queries for a block, so that a file larger than memory is read once.
        scores = np.empty((len(queries), len(block)), np.float32)
        for query, out in zip(queries, scores, strict=True):
            inner_products(block, np.arange(len(block)), query, out)
        return np.partition(scores, -DEPTH, axis=1)[:, -DEPTH:] if len(block) > DEPTH else scores

    tasks = [partial(task, begin) for begin in range(0, len(patterns), BLOCK_ROWS)]
    scores = np.concatenate(workers.run(tasks) if workers else [task() for task in tasks], axis=1)
    wanted = min(DEPTH, scores.shape[1])
    return np.asarray(np.partition(scores, -wanted, axis=1)[:, -wanted])


def _recall(patterns: Patterns, queries: FloatArray, places: Places, least: FloatArray) -> float:
    """The share of rows wanted that are candidates, or others that score as high. Shapes: [Q, n], [Q]."""
    wanted = min(DEPTH, len(patterns))
    hits = 0
    for query, found, last in zip(queries, places, least, strict=True):
        found = found[found >= 0]
        scores = np.empty(len(found), np.float32)
        inner_products(patterns, found, query, scores)
        hits += min(wanted, int(np.count_nonzero(scores >= last)))
    return hits / (wanted * len(queries))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads for FAISS calls of this thread (OpenMP keeps the number for each thread by itself)."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
