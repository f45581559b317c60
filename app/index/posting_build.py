"""Posting lists written as machine code: from documents, or from the lists of several segments.

BM25's impacts are w = most * tf / (tf + norm) of a row's norm, which a merge may have to change.

Legend as in `posting_kernels.py`. What is counted first is written then, each run in its place.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from app.index.compiled import inlined, kernel
from app.index.posting_kernels import end_of
from app.index.posting_types import RANGE, RANGE_BITS, Bytes, Cursors, Doubles, Lists, Longs
from model.embedding import FloatArray, IntArray


@inlined
def _place(terms: IntArray, table: IntArray, term: Any) -> Any:
    """Where `term`, which is there, stands in `terms`."""
    if len(table):
        return np.int64(table[term])
    low, high = np.int64(0), np.int64(len(terms) - 1)
    while low < high:
        middle = (low + high) >> 1
        if terms[middle] < term:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def documents_are_sound(offsets: Longs, terms: IntArray, weights: FloatArray) -> bool:
    """Whether each document's terms ascend from 0 or more, and all weights are positive and finite."""
    for row in range(len(offsets) - 1):
        before = np.int64(-1)
        for at in range(offsets[row], offsets[row + 1]):
            if terms[at] <= before or not (0 < weights[at] < np.inf):
                return False
            before = np.int64(terms[at])
    return True


@inlined
def _count(cursors: Any, term: Any, row: Any) -> None:
    cursors.ends[term] += 1
    if cursors.last[term] != row >> RANGE_BITS:
        cursors.last[term] = row >> RANGE_BITS
        cursors.run_ends[term] += 1


@inlined
def _write(lists: Any, cursors: Any, term: Any, row: Any, weight: Any) -> None:
    """Append a posting to its term's list; a term's rows come in ascending order."""
    at = cursors.ends[term]
    cursors.ends[term] = at + 1
    lists.row_parts[at] = row & (RANGE - 1)
    lists.weights[at] = weight
    run = cursors.run_ends[term]
    if cursors.last[term] != row >> RANGE_BITS:
        cursors.last[term] = row >> RANGE_BITS
        cursors.run_ends[term] = run + 1
        lists.run_ranges[run] = row >> RANGE_BITS
        lists.run_starts[run] = at - lists.starts[term]
        lists.run_maxima[run] = weight
    else:
        lists.run_maxima[run - 1] = max(lists.run_maxima[run - 1], weight)


@kernel
def count_documents(
    offsets: Longs, document_terms: IntArray, terms: IntArray, table: IntArray, cursors: Cursors
) -> None:
    """Move the cursors, all at 0, past each term's postings and runs."""
    for row in range(len(offsets) - 1):
        for at in range(offsets[row], offsets[row + 1]):
            _count(cursors, _place(terms, table, document_terms[at]), row)


@kernel
def write_documents(
    offsets: Longs,
    document_terms: IntArray,
    document_weights: FloatArray,
    terms: IntArray,
    table: IntArray,
    lists: Lists,
    cursors: Cursors,
) -> None:
    """Write the postings of documents; the cursors begin where each term's lists do."""
    for row in range(len(offsets) - 1):
        for at in range(offsets[row], offsets[row + 1]):
            _write(lists, cursors, _place(terms, table, document_terms[at]), row, document_weights[at])


@kernel
def count_part(part: Lists, places: Longs, new_rows: Longs, cursors: Cursors) -> bool:
    """As `count_documents`, for the living postings of a segment; False if rows or weights make no sense.

    `places` [T] says where the segment's terms stand in the result, `new_rows` [N] which rows its rows
    become, -1 if none.
    """
    for theirs in range(len(places)):
        before = np.int64(-1)
        for run in range(part.first_runs[theirs], part.first_runs[theirs + 1]):
            base = np.int64(part.run_ranges[run]) << RANGE_BITS
            begin = part.starts[theirs] + np.int64(part.run_starts[run])
            for at in range(begin, end_of(part, theirs, run)):
                old = base + np.int64(part.row_parts[at])
                if old <= before or old >= len(new_rows) or not (0 < part.weights[at] < np.inf):
                    return False
                before = old
                if new_rows[old] >= 0:
                    _count(cursors, places[theirs], new_rows[old])
    return True


@kernel
def write_part(part: Lists, places: Longs, new_rows: Longs, lists: Lists, cursors: Cursors) -> None:
    """As `write_documents`, for a segment that `count_part` has found sound."""
    for theirs in range(len(places)):
        for run in range(part.first_runs[theirs], part.first_runs[theirs + 1]):
            base = np.int64(part.run_ranges[run]) << RANGE_BITS
            begin = part.starts[theirs] + np.int64(part.run_starts[run])
            for at in range(begin, end_of(part, theirs, run)):
                row = new_rows[base + np.int64(part.row_parts[at])]
                if row >= 0:
                    _write(lists, cursors, places[theirs], row, part.weights[at])


@kernel
def renorm(lists: Lists, before: Doubles, now: Doubles, most: float) -> bool:
    """Change impacts as `Norms` says; False where one makes no sense. w * before / (most - w) is tf."""
    for term in range(len(lists.starts) - 1):
        for run in range(lists.first_runs[term], lists.first_runs[term + 1]):
            base = np.int64(lists.run_ranges[run]) << RANGE_BITS
            maximum = np.float32(0)
            for at in range(lists.starts[term] + np.int64(lists.run_starts[run]), end_of(lists, term, run)):
                row = base + np.int64(lists.row_parts[at])
                weight = np.float64(lists.weights[at])
                if not (0 < weight < most):
                    return False
                share = weight * before[row]
                changed = np.float32(most * share / (share + (most - weight) * now[row]))
                lists.weights[at] = changed
                maximum = max(maximum, changed)
            lists.run_maxima[run] = maximum
    return True


@kernel
def write_codes(lists: Lists, codes: Bytes) -> None:
    """The smallest code of 1 to 255 with weight <= maximum of the run * code / 255, for every posting."""
    for term in range(len(lists.starts) - 1):
        for run in range(lists.first_runs[term], lists.first_runs[term + 1]):
            maximum = np.float64(lists.run_maxima[run])
            for at in range(lists.starts[term] + np.int64(lists.run_starts[run]), end_of(lists, term, run)):
                codes[at] = np.uint8(np.ceil(np.float64(lists.weights[at]) * 255.0 / maximum))
