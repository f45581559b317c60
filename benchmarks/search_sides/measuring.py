"""Timing in turns: base, peer, base, peer ..., each with the same queries, and what is told of it.

A shared machine gives the same program half of its speed an hour later: only the ratio of neighbouring
rounds counts. It runs nothing itself; sides are functions of query numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.encode_sides.pairing import spread

Run = Callable[[Sequence[int]], dict[str, Any]]
"""Runs those queries: `seconds` and `found` of each, `own_s` and `others_s` of all."""

PROBES = 3


@dataclass(frozen=True, slots=True)
class Rounds:
    """The replies of each side, round by round; `peer` is empty where there is none."""

    queries: tuple[int, ...]
    base: tuple[dict[str, Any], ...]
    peer: tuple[dict[str, Any], ...]

    @property
    def ratios(self) -> list[float]:
        """How many times as fast the base is: the median query of each round. Empty without a peer."""
        if not self.peer:
            return []
        return [
            float(np.median(theirs["seconds"]) / np.median(ours["seconds"]))
            for ours, theirs in zip(self.base, self.peer, strict=True)
        ]


def affordable(seconds: float, queries: int, round_s: float) -> int:
    """How many queries of that length fit into a round; at least PROBES, at most all."""
    return max(min(PROBES, queries), min(queries, int(round_s / max(seconds, 1e-9))))


def in_turns(base: Run, peer: Run | None, queries: int, rounds: int, round_s: float) -> Rounds:
    """Warm both, then let them take turns. Slow sides get fewer queries, both the same.

    A round of both takes about `round_s` seconds at most, where PROBES queries fit.
    """
    sides = [base] if peer is None else [base, peer]
    probes = range(min(PROBES, queries))
    for side in sides:
        side(probes)
    each = sum(float(np.median(side(probes)["seconds"])) for side in sides)
    chosen = range(affordable(each, queries, round_s))
    for side in sides:
        side(chosen)
    found: list[list[dict[str, Any]]] = [[] for _ in sides]
    for _ in range(rounds):
        for replies, side in zip(found, sides, strict=True):
            replies.append(side(chosen))
    return Rounds(tuple(chosen), tuple(found[0]), tuple(found[1]) if peer is not None else ())


def summary(replies: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Milliseconds over all queries of all rounds, and cores used by itself and taken by others meanwhile."""
    seconds = np.concatenate([reply["seconds"] for reply in replies])
    return {
        "p50_ms": digits(1e3 * percentile(seconds, 50)),
        "p99_ms": digits(1e3 * percentile(seconds, 99)),
        "mean_ms": digits(1e3 * float(seconds.mean())),
        "timed_queries": len(seconds),
        "cores_used": spread([reply["own_s"] / sum(reply["seconds"]) for reply in replies])["median"],
        "cores_taken_by_others": spread([reply["others_s"] / sum(reply["seconds"]) for reply in replies])[
            "median"
        ],
    }


def percentile(values: Sequence[float] | np.ndarray, share: float) -> float:
    """The smallest measured value that at least `share` per cent of all do not exceed."""
    ordered = np.sort(np.asarray(values, np.float64))
    return float(ordered[max(0, int(np.ceil(share / 100 * len(ordered))) - 1)])


def recall(found: Sequence[Sequence[int]], true: Sequence[Sequence[int]]) -> float:
    """Mean share of the true documents that were found; queries without any true one do not count."""
    shares = [
        len({*ours} & {*right}) / len({*right}) for ours, right in zip(found, true, strict=True) if right
    ]
    return float(np.mean(shares)) if shares else 1.0


def digits(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")
