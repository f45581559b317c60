"""What `postings.py` and its kernels share: numbers of the format, and arrays that belong together.

Legend as in `posting_kernels.py`. Nothing here needs a compiler.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.embedding import FloatArray

Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]
Doubles = NDArray[np.float64]
Longs = NDArray[np.int64]
Shorts = NDArray[np.uint16]

RANGE_BITS = 16
RANGE = 1 << RANGE_BITS
"""Rows of a range: a row within it is two bytes, and its accumulators stay in a core's second cache."""

BOUND_BITS = 16
HIGHEST = (1 << BOUND_BITS) - 1
"""Bounds end here; what is more is kept at it and always survives."""

STEP_BITS = 4
STEPS = 1 << (BOUND_BITS - STEP_BITS)
"""The threshold moves in steps of 16 units; a histogram of that many counters finds it."""


class Lists(NamedTuple):
    """Posting lists without their codes; the fields are those of `Postings`."""

    starts: Longs
    first_runs: Longs
    run_ranges: Shorts
    run_starts: NDArray[np.uint32]
    run_maxima: FloatArray
    row_parts: Shorts
    weights: FloatArray


class Cursors(NamedTuple):
    """How far each term's lists are counted or written. Shapes: [T]."""

    ends: Longs
    """Where its next posting goes."""
    run_ends: Longs
    """Where its next run goes."""
    last: Longs
    """The range of its last posting, -1 at first."""


class Runs(NamedTuple):
    """A query's runs, range by range, within one in ascending order of terms."""

    firsts: Longs
    """Range r's runs are those from firsts[r] to firsts[r + 1]. Shape: [R + 1]."""
    begins: Longs
    """Where the run's postings begin. Shape: [E], as the rest."""
    ends: Longs
    query: Doubles
    """The query's weight of the run's term."""
    maxima: Doubles
    """The most that a posting of the run adds to a score."""


class Norms(NamedTuple):
    """The norms of BM25's impacts. Shapes: [N]."""

    before: Doubles
    """Those that each row's impacts were made with."""
    now: Doubles
    """Those that they shall have."""
    most: float
    """What impacts stay below."""
