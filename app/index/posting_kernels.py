"""The loops of `postings.py` as machine code: sifting ranges of rows, exact scores.

Nothing is decided here: which ranges a thread takes, the unit of the bounds and what becomes of survivors is
`postings.py`. No kernel checks a bound; what is read from a file has been checked there.

Legend: P postings, T distinct terms, U runs (a run is what one term has in one range of `RANGE` rows), E runs
of a query's terms, N rows, R ranges, W threads. A *bound* is an upper bound of a score in whole units.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.index.compiled import inlined, kernel
from app.index.posting_types import (
    HIGHEST,
    RANGE,
    RANGE_BITS,
    STEP_BITS,
    STEPS,
    Bools,
    Bytes,
    Doubles,
    Lists,
    Longs,
    Runs,
    Shorts,
)
from model.embedding import FloatArray, IntArray

LOOKUP = 32
"""A row looked up in a run costs about as much as so many postings of it scanned."""

BLOCK = 128
"""Sums that are looked at together. A trap: of 64, LLVM unrolls the loop and takes ten times as long."""


@inlined
def end_of(lists: Any, term: Any, run: Any) -> Any:
    """Where the postings of a term's run end."""
    if run + 1 < lists.first_runs[term + 1]:
        return lists.starts[term] + np.int64(lists.run_starts[run + 1])
    return lists.starts[term + 1]


@kernel
def query_runs(lists: Lists, places: Longs, query: Doubles, ranges: int) -> Runs:
    """The runs of the terms at `places` [n], ascending, to which the query gives the weights `query` [n]."""
    firsts = np.zeros(ranges + 1, np.int64)
    for term in places:
        for run in range(lists.first_runs[term], lists.first_runs[term + 1]):
            firsts[np.int64(lists.run_ranges[run]) + 1] += 1
    for here in range(ranges):
        firsts[here + 1] += firsts[here]
    begins, ends = np.empty(firsts[-1], np.int64), np.empty(firsts[-1], np.int64)
    weights, maxima = np.empty(firsts[-1], np.float64), np.empty(firsts[-1], np.float64)
    cursors = firsts.copy()
    for mine in range(len(places)):
        term = places[mine]
        for run in range(lists.first_runs[term], lists.first_runs[term + 1]):
            at = cursors[lists.run_ranges[run]]
            cursors[lists.run_ranges[run]] = at + 1
            begins[at] = lists.starts[term] + np.int64(lists.run_starts[run])
            ends[at] = end_of(lists, term, run)
            weights[at] = query[mine]
            maxima[at] = query[mine] * np.float64(lists.run_maxima[run])
    return Runs(firsts, begins, ends, weights, maxima)


@inlined
def _find(rows: Any, row: Any) -> Any:
    """Where `row` stands in an ascending run, -1 if nowhere: a guess by proportion, then doubling steps."""
    length = np.int64(len(rows))
    guess = min((np.int64(row) * length) >> RANGE_BITS, length - 1)
    step = np.int64(1)
    if rows[guess] < row:
        low = guess + 1
        high = min(low + step, length)
        while high < length and rows[high - 1] < row:
            low = high
            step <<= 1
            high = min(low + step, length)
    else:
        high = guess + 1
        low = max(guess - step, np.int64(0))
        while low > 0 and rows[low] > row:
            high = low
            step <<= 1
            low = max(high - step, np.int64(0))
    while low < high:
        middle = (low + high) >> 1
        if rows[middle] < row:
            low = middle + 1
        else:
            high = middle
    return low if low < length and rows[low] == row else np.int64(-1)


@kernel
def living_rows(lists: Lists, places: Longs, living: Bools, dead: Longs) -> Longs:
    """How many rows that live each of the terms at `places` [n] has. Shape: [n].

    `living` [N]; `dead` are the rows without that flag, ascending: few are looked up, many are not.
    """
    found = np.zeros(len(places), np.int64)
    for mine in range(len(places)):
        term = places[mine]
        for run in range(lists.first_runs[term], lists.first_runs[term + 1]):
            base = np.int64(lists.run_ranges[run]) << RANGE_BITS
            begin, end = lists.starts[term] + np.int64(lists.run_starts[run]), end_of(lists, term, run)
            rows = lists.row_parts[begin:end]
            first, last = np.searchsorted(dead, base), np.searchsorted(dead, base + RANGE)
            if (last - first) * LOOKUP < end - begin:
                found[mine] += end - begin
                for at in range(first, last):
                    found[mine] -= _find(rows, np.uint16(dead[at] - base)) >= 0
            else:
                for at in range(len(rows)):
                    row = base + np.int64(rows[at])
                    found[mine] += row < len(living) and living[row]
    return found


@kernel
def exact_scores(wanted: Longs, runs: Runs, row_parts: Shorts, weights: FloatArray) -> Doubles:
    """The scores of ascending rows, summed in float64 by ascending term. Shapes: [n] -> [n]."""
    scores = np.zeros(len(wanted), np.float64)
    begin = 0
    while begin < len(wanted):
        here = wanted[begin] >> RANGE_BITS
        end = begin + 1
        while end < len(wanted) and wanted[end] >> RANGE_BITS == here:
            end += 1
        for entry in range(runs.firsts[here], runs.firsts[here + 1]):
            run = row_parts[runs.begins[entry] : runs.ends[entry]]
            for at in range(begin, end):
                place = _find(run, np.uint16(wanted[at] & (RANGE - 1)))
                if place >= 0:
                    scores[at] += runs.query[entry] * np.float64(weights[runs.begins[entry] + place])
        begin = end
    return scores


@kernel
def reached(histograms: NDArray[np.int32], step: int, count: int) -> tuple[int, int]:
    """The highest step at or above which `count` rows are known to lie, and how many lie above it.

    At least `step`, as it once was reached. Other threads may be writing to their histograms: theirs only
    grow, so what is read too early is too low, never too high.
    """
    above = 0
    for at in range(STEPS - 1, step, -1):
        here = 0
        for thread in range(len(histograms)):
            here += histograms[thread, at]
        if above + here >= count:
            return at, above
        above += here
    return step, above


@kernel
def sift(
    ranges: Longs,
    total: int,
    runs: Runs,
    factors: Longs,
    row_parts: Shorts,
    codes: Bytes,
    usable: Bools,
    count: int,
    least: int,
    most: int,
    histograms: NDArray[np.int32],
    own: int,
) -> tuple[Longs, IntArray]:
    """Usable rows of some ranges that may be among the best `count`, with their bounds.

    MaxScore, range by range: Turtle and Flood, "Query Evaluation: Strategies and Optimizations", 1995.

    `factors` [E]: a posting's bound is (code * factor >> 16) + 1 units. `usable` [N], or [0] for all. `least`
    is what a bound must reach to matter (1 or more), `most` what the threshold must not pass. `histograms`
    [W, STEPS] counts the lower bounds of rows found, of which thread `own` writes its own only.
    """
    sums = np.zeros(RANGE, np.uint16)
    candidates = np.empty(RANGE + 1, np.int32)
    kept_rows, kept_bounds = np.empty(4096, np.int64), np.empty(4096, np.int32)
    kept = 0
    step, above = 0, 0
    for here in ranges:
        first, terms = runs.firsts[here], runs.firsts[here + 1] - runs.firsts[here]
        if terms == 0:
            continue
        base = here << RANGE_BITS
        width = min(RANGE, total - base)
        if len(histograms) > 1:
            step, above = reached(histograms, step, count)
        threshold = max(least, min(step << STEP_BITS, most))
        order = np.argsort(-factors[first : first + terms]) + first
        # What the terms from the i-th on can add at most, and by how much bounds exceed scores at most.
        rest, slack = np.zeros(terms + 1, np.int64), 0
        for i in range(terms - 1, -1, -1):
            rest[i] = rest[i + 1] + ((255 * factors[order[i]]) >> 16) + 1
            slack += (factors[order[i]] >> 16) + 3
        if rest[0] < threshold:
            continue
        # A row that has none of the essential terms stays below the threshold.
        essential, postings = 0, 0
        while rest[essential] >= threshold:
            postings += runs.ends[order[essential]] - runs.begins[order[essential]]
            essential += 1
        open_rows = width
        if len(usable):
            open_rows = np.count_nonzero(usable[base : base + width])
        found = 0
        if open_rows * terms * LOOKUP < postings:
            # So few rows may be returned that each is looked up in every list.
            essential = 0
            for row in range(width):
                if usable[base + row]:
                    candidates[found] = row
                    found += 1
        else:
            for i in range(essential):
                run = slice(runs.begins[order[i]], runs.ends[order[i]])
                _add(sums, row_parts[run], codes[run], factors[order[i]])
            found = _at_least(
                sums, threshold - rest[essential], width, usable[base : base + width], candidates
            )
        for i in range(essential, terms):
            if found == 0:
                break
            run = slice(runs.begins[order[i]], runs.ends[order[i]])
            if found * LOOKUP < run.stop - run.start:
                _add_found(sums, row_parts[run], codes[run], factors[order[i]], candidates[:found])
            else:
                _add(sums, row_parts[run], codes[run], factors[order[i]])
            still = 0
            for at in range(found):
                candidates[still] = candidates[at]
                still += np.int64(sums[candidates[at]]) + rest[i + 1] >= threshold
            found = still
        for at in range(found):
            lower = (np.int64(sums[candidates[at]]) - slack) >> STEP_BITS
            if lower > step:
                histograms[own, lower] += 1
                above += 1
                while above >= count:
                    step += 1
                    for thread in range(len(histograms)):
                        above -= histograms[thread, step]
        threshold = max(least, min(step << STEP_BITS, most))
        if kept + found > len(kept_rows):
            still = 0
            for at in range(kept):
                kept_rows[still], kept_bounds[still] = kept_rows[at], kept_bounds[at]
                still += kept_bounds[at] >= threshold
            kept = still
            if kept + found > len(kept_rows):
                more = np.empty(2 * (kept + found), np.int64)
                more[:kept] = kept_rows[:kept]
                more_bounds = np.empty(2 * (kept + found), np.int32)
                more_bounds[:kept] = kept_bounds[:kept]
                kept_rows, kept_bounds = more, more_bounds
        for at in range(found):
            bound = np.int64(sums[candidates[at]])
            if bound >= threshold:
                kept_rows[kept], kept_bounds[kept] = base + candidates[at], bound
                kept += 1
        sums[:] = 0
    return kept_rows[:kept], kept_bounds[:kept]


@inlined
def _more(total: Any, code: Any, factor: Any) -> Any:
    """A sum of bounds and that of one more posting; it stops at `HIGHEST`."""
    return min(np.int64(total) + ((np.int64(code) * factor) >> 16) + 1, HIGHEST)


@kernel
def _add(sums: Shorts, rows: Shorts, codes: Bytes, factor: int) -> None:
    """Add a run's bounds to its rows' sums, which stop at `HIGHEST`."""
    for at in range(len(rows)):
        row = rows[at]
        sums[row] = _more(sums[row], codes[at], factor)


@kernel
def _add_found(sums: Shorts, rows: Shorts, codes: Bytes, factor: int, found: IntArray) -> None:
    """`_add` for the rows `found` only."""
    for row in found:
        at = _find(rows, np.uint16(row))
        if at >= 0:
            sums[row] = _more(sums[row], codes[at], factor)


@kernel
def _at_least(sums: Shorts, least: int, width: int, usable: Bools, found: IntArray) -> Any:
    """Write the usable rows whose sum is `least` or more to `found`, clear the others' sums; how many."""
    for row in range(len(usable)):
        sums[row] *= usable[row]
    count = np.uint64(0)
    limit = np.uint16(least)
    for begin in range(0, RANGE, BLOCK):
        block = sums[begin : begin + BLOCK]
        some = False
        for at in range(BLOCK):
            some |= block[at] >= limit
        if some:
            # Written always, counted if it is one: which rows are cannot be foretold, and a branch would be.
            for at in range(min(BLOCK, width - begin)):
                found[count] = begin + at
                count += np.uint64(block[at] >= limit)
    return int(np.int64(count))
