"""What is told of a search by one side or by two: a row of the result, and a line for the reader.

It computes nothing but what `measuring` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks.encode_sides.pairing import spread
from benchmarks.search_sides.measuring import Rounds, digits, recall, summary
from benchmarks.search_sides.protocol import USUAL, Ask, Mode
from benchmarks.search_sides.truth import Truth

MIB = 2**20


def in_mib(reply: Mapping[str, Any]) -> dict[str, float]:
    """The sizes of a reply in MiB."""
    return {f"{name}_mib": digits(reply[name] / MIB) for name in ("rss", "anonymous", "disk")}


def row_of(ask: Ask, rounds: Rounds, truth: Truth | None, order: Mode | None = None) -> dict[str, Any]:
    """What is told of one search by both sides. `order` is the peer's own, where it is another."""
    best = None if truth is None else truth.best(ask)
    row: dict[str, Any] = {
        "mode": ask.mode,
        "top": ask.k,
        "filter": ask.filter,
        "candidates": ask.candidates,
        "queries": len(rounds.queries),
    }
    if rounds.ratios:
        row["times_as_fast"] = spread(rounds.ratios)
    for name, replies in (("base", rounds.base), ("peer", rounds.peer)):
        if not replies:
            continue
        row[name] = summary(replies)
        if best is not None:
            # Of a side's every round the first: it is to give the same each time.
            known = min(len(best), len(rounds.queries))
            row[name][f"recall_at_{ask.k}"] = digits(recall(replies[0]["found"][:known], best[:known]))
            row[name]["recall_queries"] = known
            own = None if truth is None or order is None else truth.best(replace(ask, mode=order))
            if name == "peer" and own is not None and ask.mode == "hybrid":
                row[name]["recall_at_10_of_its_own_order"] = digits(
                    recall(replies[0]["found"][:known], own[:known])
                )
    return row


def filling(loaded: Mapping[str, Any]) -> str:
    """How fast a side was filled, as words."""
    rate = loaded["documents_per_s"]
    return f"{rate:.0f} documents/s" if rate is not None else "kept from before"


def told(row: Mapping[str, Any]) -> str:
    """A row as a line."""
    name = row["mode"] + (f", filter {row['filter']}" if row["filter"] else "")
    if row["top"] != USUAL.k:
        name += f", top {row['top']}"
    if row["candidates"] != USUAL.candidates:
        name += f", {row['candidates'] or 'its own number of'} candidates"
    recalled = f"recall_at_{row['top']}"
    line = f"  {name}:"
    if "times_as_fast" in row:
        ratio = row["times_as_fast"]
        line += f" {ratio['median']:.2f} times as fast ({ratio['q1']:.2f} to {ratio['q3']:.2f});"
    for side in ("base", "peer"):
        if side in row:
            one = row[side]
            line += f" {side} p50 {one['p50_ms']} p99 {one['p99_ms']} ms"
            line += f" recall {one[recalled]}" if recalled in one else ""
            if "recall_at_10_of_its_own_order" in one:
                line += f" (of its own order {one['recall_at_10_of_its_own_order']})"
            line += f" (others' cores {one['cores_taken_by_others']});"
    return line
