"""Paired runs: the two sides take turns, and only the ratio of neighbours counts.

A shared machine gives the same program half of its speed an hour later; two runs next to each
other see nearly the same machine. So the ratio of each pair is taken, and the median of those.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pair:
    """Seconds of the two sides, and the machine's matmul GFLOP/s around them (mean of before and after)."""

    base_s: float
    peer_s: float
    peak_gflops: float

    @property
    def ratio(self) -> float:
        """How many times as fast the base is."""
        return self.peer_s / self.base_s


def run_pairs(
    base: Callable[[], float], peer: Callable[[], float], peak: Callable[[], float], pairs: int
) -> list[Pair]:
    """peak, base, peer, peak, base, peer, peak ...: each call returns its seconds or GFLOP/s."""
    found = []
    before = peak()
    for _ in range(pairs):
        base_s, peer_s = base(), peer()
        after = peak()
        found.append(Pair(base_s, peer_s, (before + after) / 2))
        before = after
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, to four digits."""
    if len(values) == 1:
        low = middle = high = values[0]
    else:
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {name: float(f"{value:.4g}") for name, value in (("median", middle), ("q1", low), ("q3", high))}
