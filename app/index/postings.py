"""An immutable segment of posting lists: the rows that score highest against sparse weights, exactly.

It holds rows and weights only. It does not know keys, does not delete (a search is told which rows are
usable) and does not write files: `arrays` are what a file holds, `Postings.of` takes them back, even mapped.

A posting is two bytes of row and one byte of weight, rounded up against the greatest weight that its term has
in its range of 65,536 rows. From these a search derives bounds of all scores in integers, keeps the rows that
may be among the best, and only for them reads the float32 weights, which may lie in a cold file.

Legend: P postings, T distinct terms, U runs (a run is what one term has in one range), N rows, R ranges,
E runs of a query's terms, W threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.index.deferred import posting_build
from app.index.deferred import posting_kernels as kernels
from app.index.posting_types import (
    HIGHEST,
    RANGE,
    RANGE_BITS,
    STEP_BITS,
    STEPS,
    Bools,
    Cursors,
    Lists,
    Longs,
    Norms,
    Runs,
)
from app.index.workers import Workers
from model.embedding import FloatArray, IntArray, LexicalWeights

TABLE_TERMS = 1 << 24
"""Term ids up to here are looked up in a table while building, others by bisection."""

SIDE_BY_SIDE = 100_000
"""Postings of a query that are worth a second thread."""

SMALLEST_UNIT = 2.0**-140
"""Bounds that differ by a unit must differ as float32 too, whose smallest step is 2^-149."""

GREATEST_FACTOR = 2.0**40
"""From here on a bound is at its end for each code, and products still fit 64 bits."""

_TYPES: dict[str, type[np.generic]] = {
    "count": np.int64,
    "terms": np.int32,
    "starts": np.int64,
    "first_runs": np.int64,
    "run_ranges": np.uint16,
    "run_starts": np.uint32,
    "run_maxima": np.float32,
    "row_parts": np.uint16,
    "codes": np.uint8,
    "weights": np.float32,
}


@dataclass(frozen=True, eq=False)
class Postings:
    """Posting lists of N documents in rows 0 to N - 1. Made by `build`, `merged` and `of`; thread-safe."""

    count: Longs
    """N. Shape: [1]."""
    terms: IntArray
    """Distinct terms, ascending. Shape: [T]."""
    starts: Longs
    """Term t's postings are those from starts[t] to starts[t + 1]. Shape: [T + 1]."""
    first_runs: Longs
    """Term t's runs are those from first_runs[t] to first_runs[t + 1]. Shape: [T + 1]."""
    run_ranges: NDArray[np.uint16]
    """The range of each run, ascending for a term. Shape: [U]."""
    run_starts: NDArray[np.uint32]
    """Where it begins, counted from its term's first posting. Shape: [U]."""
    run_maxima: FloatArray
    """Its greatest weight. Shape: [U]."""
    row_parts: NDArray[np.uint16]
    """Row within the range, ascending in a run. Shape: [P]."""
    codes: NDArray[np.uint8]
    """weight <= maximum of the run * code / 255, rounded up. Shape: [P]."""
    weights: FloatArray
    """Read only for the rows that may be returned. Shape: [P]."""

    def __post_init__(self) -> None:
        for name, array in self.arrays().items():
            object.__setattr__(self, name, _frozen(array))

    @classmethod
    def build(cls, offsets: Longs, terms: IntArray, weights: FloatArray) -> Postings:
        """From documents: row r has terms[offsets[r] : offsets[r + 1]], ascending, and as many weights.

        Shapes: [N + 1], [P], [P]. ValueError if terms do not ascend or weights are not positive and finite.
        """
        offsets = np.ascontiguousarray(offsets, np.int64)
        if len(terms) != len(weights) or not _climbs(offsets, 0, len(terms), least=0):
            raise ValueError(f"offsets do not divide {len(terms)} terms and {len(weights)} weights")
        terms, weights = np.ascontiguousarray(terms, np.int32), np.ascontiguousarray(weights, np.float32)
        if not posting_build.documents_are_sound(offsets, terms, weights):
            raise ValueError("a document's terms must ascend, and its weights be positive and finite")
        table = np.empty(0, np.int32)
        if len(terms) and int(terms.max()) < TABLE_TERMS:
            table = np.zeros(int(terms.max()) + 1, np.int32)
            table[terms] = 1
            distinct = np.flatnonzero(table).astype(np.int32)
            table[distinct] = np.arange(len(distinct), dtype=np.int32)
        else:
            distinct = np.unique(terms)
        counted = _counters(len(distinct))
        posting_build.count_documents(offsets, terms, distinct, table, counted)
        lists, cursors = _allocated(counted)
        posting_build.write_documents(offsets, terms, weights, distinct, table, lists, cursors)
        return cls._finished(len(offsets) - 1, distinct, lists)

    @classmethod
    def merged(cls, parts: Sequence[tuple[Postings, Bools]], norms: Norms | None = None) -> Postings:
        """The rows of some segments, one segment after another, only those whose flag is true.

        Weights are taken as they are, or as impacts of BM25 that get other `norms`, of the result's rows.
        Reads each segment's lists twice, in order; besides the result it takes 8 bytes for each row.
        ValueError if a segment's rows do not ascend or its weights make no sense: its file is damaged.
        """
        for part, living in parts:
            _check_flags(living, part.rows)
        terms = np.unique(np.concatenate([np.empty(0, np.int32), *(part.terms for part, _ in parts)]))
        counted = _counters(len(terms))
        for part, places, new_rows in _moves(parts, terms):
            if not posting_build.count_part(part._lists, places, new_rows, counted):
                raise ValueError("posting lists: rows do not ascend, or weights are not positive and finite")
        lists, cursors = _allocated(counted)
        for part, places, new_rows in _moves(parts, terms):
            posting_build.write_part(part._lists, places, new_rows, lists, cursors)
        if norms is not None and not posting_build.renorm(lists, *norms):
            raise ValueError("posting lists: weights are no impacts")
        return cls._finished(sum(int(np.count_nonzero(living)) for _, living in parts), terms, lists)

    @classmethod
    def _finished(cls, rows: int, terms: IntArray, lists: Lists) -> Postings:
        """With codes, and without the terms that nothing was written for."""
        codes = np.empty(len(lists.weights), np.uint8)
        posting_build.write_codes(lists, codes)
        used = lists.starts[:-1] < lists.starts[1:]
        starts, first_runs = (np.append(one[:-1][used], one[-1]) for one in lists[:2])
        return cls(np.array([rows]), terms[used], starts, first_runs, *lists[2:6], codes, lists.weights)

    @property
    def _lists(self) -> Lists:
        return Lists(*(getattr(self, name) for name in Lists._fields))

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Postings:
        """From `arrays`, without a copy and without reading the postings themselves.

        ValueError where shapes, types or the directory do not fit; damage within the postings gives wrong
        results or a ValueError of `merged`, but no reads out of bounds.
        """
        for name, kind in _TYPES.items():
            if name not in arrays:
                raise ValueError(f"posting lists lack {name}")
            array = arrays[name]
            if array.dtype != kind or array.ndim != 1 or not array.flags.c_contiguous:
                raise ValueError(
                    f"posting lists: {name} is {array.dtype} {array.shape}, wanted {kind.__name__} [n]"
                )
        made = cls(*(arrays[name] for name in _TYPES))
        made._check()
        return made

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What a file must hold. Only a few of `weights` are read by a search, the rest by all."""
        return {name: getattr(self, name) for name in _TYPES}

    @property
    def rows(self) -> int:
        """N."""
        return int(self.count[0])

    @property
    def postings(self) -> int:
        """P."""
        return len(self.codes)

    @property
    def nbytes(self) -> int:
        """What searches keep in memory: all but `weights`."""
        return sum(array.nbytes for name, array in self.arrays().items() if name != "weights")

    def search(
        self,
        query: LexicalWeights,
        count: int,
        usable: Bools | None = None,
        workers: Workers | None = None,
        floor: float = 0.0,
    ) -> tuple[Longs, FloatArray]:
        """The `count` usable rows with the highest scores of those that share a term and reach `floor`.

        A score is the sum of w_q * w_d over shared terms (M3, "lexical matching score"; arXiv:2402.03216),
        in float64 by ascending term, rounded to float32. Highest first, equals by ascending row.
        Shapes: `usable` [N], None for all -> [n], [n].
        """
        if usable is not None:
            _check_flags(usable, self.rows)
        runs = self._runs(query)
        if count < 1 or not len(runs.begins):
            return np.empty(0, np.int64), np.empty(0, np.float32)
        found = np.sort(self._sifted(runs, count, usable, workers, floor))
        scores = self._exact(runs, found, workers)
        if floor > 0:
            enough = scores.astype(np.float64) >= floor
            found, scores = found[enough], scores[enough]
        return _best(found, scores, count)

    def scores(self, query: LexicalWeights, rows: Longs) -> FloatArray:
        """The scores of given rows, 0 where no term is shared. Shapes: [n] -> [n]. IndexError beyond N."""
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.rows):
            raise IndexError(f"rows must be 0 to {self.rows - 1}")
        order = np.argsort(rows, kind="stable")
        scores = np.zeros(len(rows), np.float32)
        scores[order] = self._exact(self._runs(query), rows[order].astype(np.int64), None)
        return scores

    def frequencies(self, terms: IntArray, living: Bools | None = None) -> Longs:
        """How many rows have each of these terms: of all, or of those whose flag is true.

        Shapes: [n], `living` [N] -> [n]. Without flags it reads the directory only.
        """
        at, here = self._places(terms)
        found = np.zeros(len(terms), np.int64)
        if living is None:
            found[here] = self.starts[at[here] + 1] - self.starts[at[here]]
            return found
        _check_flags(living, self.rows)
        flags = _frozen(np.ascontiguousarray(living))
        found[here] = kernels.living_rows(self._lists, at[here], flags, np.flatnonzero(~flags))
        return found

    def _places(self, terms: IntArray) -> tuple[Longs, Bools]:
        """Where terms stand in the directory, and which of them do."""
        at = np.searchsorted(self.terms, terms)
        at[at == len(self.terms)] = 0
        return at, self.terms[at] == terms if len(self.terms) else np.zeros(len(terms), np.bool_)

    def _runs(self, query: LexicalWeights) -> Runs:
        at, here = self._places(query.indices)
        ranges = (self.rows + RANGE - 1) >> RANGE_BITS
        return kernels.query_runs(self._lists, at[here], query.values[here].astype(np.float64), ranges)

    def _sifted(
        self, runs: Runs, count: int, usable: Bools | None, workers: Workers | None, floor: float
    ) -> Longs:
        """A few rows, the best `count` among them."""
        totals = np.add.reduceat(np.append(runs.maxima, 0.0), runs.firsts[:-1])
        totals[runs.firsts[:-1] == runs.firsts[1:]] = 0
        # One huge weight makes units coarse for its own range only: where sums pass the end, all survive.
        unit = max(min(totals.max(), 4 * np.median(totals[totals > 0])) / (HIGHEST - 512), SMALLEST_UNIT)
        # A little more than the quotient, for what float64 rounds off.
        factors = runs.maxima * ((1 + 1e-9) * 2**16 / 255 / unit)
        factors = np.minimum(factors, GREATEST_FACTOR).astype(np.int64) + 1
        # Beyond float32's end scores are equal (infinite), so no threshold may tell them apart.
        most = max(1, int(min(HIGHEST, float(np.finfo(np.float32).max) / unit)))
        least = min(most, max(1, int(min(HIGHEST, floor * (1 - 1e-6) / unit)))) if floor > 0 else 1
        threads = 1
        if workers is not None and int(np.sum(runs.ends) - np.sum(runs.begins)) > SIDE_BY_SIDE:
            threads = min(workers.threads, len(totals))
        histograms = np.zeros((threads, STEPS), np.int32)
        ranges = np.argsort(-totals, kind="stable")
        flags = _frozen(np.empty(0, np.bool_) if usable is None else np.ascontiguousarray(usable))
        tasks = [
            partial(
                kernels.sift,
                ranges[thread::threads].copy(),
                self.rows,
                runs,
                factors,
                self.row_parts,
                self.codes,
                flags,
                count,
                least,
                most,
                histograms,
                thread,
            )
            for thread in range(threads)
        ]
        results = [tasks[0]()] if workers is None else workers.run(tasks)
        step, _ = kernels.reached(histograms, 0, count)
        threshold = min(step << STEP_BITS, most)
        return np.concatenate([rows[bounds >= threshold] for rows, bounds in results])

    def _exact(self, runs: Runs, rows: Longs, workers: Workers | None) -> FloatArray:
        """The scores of ascending rows."""
        threads = 1 if workers is None or len(rows) < 500 else workers.threads
        tasks = [
            partial(kernels.exact_scores, some, runs, self.row_parts, self.weights)
            for some in np.array_split(rows, threads)
        ]
        results = [tasks[0]()] if workers is None else workers.run(tasks)
        with np.errstate(over="ignore"):
            return np.concatenate(results).astype(np.float32)

    def _check(self) -> None:
        """ValueError unless every place that the directory names exists."""
        terms, runs, postings = len(self.terms), len(self.run_ranges), self.postings
        if len(self.count) != 1 or not 0 <= self.rows <= RANGE << 16:
            raise ValueError(f"posting lists: not a number of rows: {self.count}")
        if not len(self.row_parts) == len(self.weights) == postings:
            raise ValueError("posting lists: rows, codes and weights differ in number")
        if not len(self.run_starts) == len(self.run_maxima) == runs:
            raise ValueError("posting lists: the columns of runs differ in number")
        if terms and (self.terms[0] < 0 or bool(np.any(self.terms[1:] <= self.terms[:-1]))):
            raise ValueError("posting lists: terms do not ascend")
        for name, starts, end in (("starts", self.starts, postings), ("first_runs", self.first_runs, runs)):
            if len(starts) != terms + 1 or not _climbs(starts, 0, end, least=1):
                raise ValueError(f"posting lists: {name} does not divide {end} entries among {terms} terms")
        if not runs:
            return
        if int(self.run_ranges.max()) >= (self.rows + RANGE - 1 >> RANGE_BITS):
            raise ValueError(f"posting lists: a run lies outside the {self.rows} rows")
        firsts = self.first_runs[:-1]
        within = np.ones(runs, np.bool_)
        within[firsts] = False
        later = np.flatnonzero(within)
        lasts = self.run_starts[self.first_runs[1:] - 1]
        if (
            bool(np.any(self.run_ranges[later] <= self.run_ranges[later - 1]))
            or bool(np.any(self.run_starts[later] <= self.run_starts[later - 1]))
            or bool(np.any(self.run_starts[firsts] != 0))
            or bool(np.any(lasts >= np.diff(self.starts)))
        ):
            raise ValueError("posting lists: the runs of a term do not ascend within it")
        if not bool(np.all(np.isfinite(self.run_maxima) & (self.run_maxima > 0))):
            raise ValueError("posting lists: a run's greatest weight is not positive and finite")


def _counters(terms: int) -> Cursors:
    return Cursors(np.zeros(terms, np.int64), np.zeros(terms, np.int64), np.full(terms, -1, np.int64))


def _allocated(counted: Cursors) -> tuple[Lists, Cursors]:
    """Room for what was counted, and cursors at the beginning of each term's."""
    starts, first_runs = (np.concatenate([[0], np.cumsum(one)]) for one in (counted.ends, counted.run_ends))
    runs, postings = first_runs[-1], starts[-1]
    lists = Lists(
        starts,
        first_runs,
        np.empty(runs, np.uint16),
        np.empty(runs, np.uint32),
        np.empty(runs, np.float32),
        np.empty(postings, np.uint16),
        np.empty(postings, np.float32),
    )
    return lists, Cursors(starts[:-1].copy(), first_runs[:-1].copy(), np.full(len(starts) - 1, -1, np.int64))


def _moves(
    parts: Sequence[tuple[Postings, Bools]], terms: IntArray
) -> Iterator[tuple[Postings, Longs, Longs]]:
    """Each segment with the places of its terms among `terms` and its rows' new ones, -1 for the dead."""
    before = 0
    for part, living in parts:
        new_rows = np.cumsum(living, dtype=np.int64)
        new_rows += before - 1
        new_rows[~living] = -1
        before += int(np.count_nonzero(living))
        yield part, np.searchsorted(terms, part.terms).astype(np.int64), new_rows


def _check_flags(flags: Bools, rows: int) -> None:
    if flags.dtype != np.bool_ or flags.shape != (rows,):
        raise ValueError(f"{flags.dtype} flags {flags.shape} for {rows} rows, wanted bool [{rows}]")


def _climbs(starts: Longs, first: int, last: int, least: int) -> bool:
    """Whether `starts` goes from `first` to `last` in steps of `least` or more."""
    return bool(
        len(starts)
        and starts[0] == first
        and starts[-1] == last
        and np.all(starts[1:] - starts[:-1] >= least)
    )


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    """A view that cannot be written; Numba would compile anew for each mix of arrays that can and cannot."""
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view


def _best(rows: Longs, scores: FloatArray, count: int) -> tuple[Longs, FloatArray]:
    """The `count` highest scores of ascending rows, highest first, equals by ascending row."""
    if len(scores) > count:
        worst = np.partition(scores, len(scores) - count)[len(scores) - count]
        above = scores > worst
        equal = np.flatnonzero(scores == worst)[: count - np.count_nonzero(above)]
        above[equal] = True
        rows, scores = rows[above], scores[above]
    order = np.argsort(-scores, kind="stable")
    return rows[order], scores[order]
