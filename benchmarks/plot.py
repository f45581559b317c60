"""Draw results of `benchmarks.encode` as an SVG: each side's speed, Trivec's base side being 1.

    python -m benchmarks.plot RESULT.json [RESULT.json ...] OUT.svg

A panel for each workload, a row for each side, a bar for each number of texts; the thin line is the range
between the quartiles of the pairs. All results must have the same base.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

BAR, GAP, LEFT, PANEL, TOP = 13, 12, 160, 250, 64
ROOM = 44  # beside the longest bar, for its number
COLOURS = ("#9ecae1", "#4292c6", "#08519c")
INK, FAINT = "#222222", "#bbbbbb"


def relative_speed(row: Mapping[str, Any]) -> tuple[float, float, float]:
    """The peer's speed as a multiple of the base's: median, lower and upper quartile."""
    ratio = row["times_as_fast"]
    return 1 / ratio["median"], 1 / ratio["q3"], 1 / ratio["q1"]


def draw(results: Sequence[Mapping[str, Any]]) -> str:
    """The SVG. Raises ValueError where the results do not compare."""
    if len(bases := {result["base"] for result in results}) != 1:
        raise ValueError(f"results of different bases: {sorted(bases)}")
    rows: dict[str, dict[tuple[str, int], tuple[float, float, float]]] = {}
    for result in results:
        for peer in result["peers"]:
            for cell in peer.get("cells", []):
                rows.setdefault(peer["peer"], {})[cell["workload"], cell["texts"]] = relative_speed(cell)
    keys = list(dict.fromkeys(key for cells in rows.values() for key in cells))
    if not keys:
        raise ValueError("the results have no measured cell")
    workloads = list(dict.fromkeys(workload for workload, _ in keys))
    counts = {name: sorted(count for workload, count in keys if workload == name) for name in workloads}
    largest = max(1.0, *(max(speed) for cells in rows.values() for speed in cells.values()))
    scale = (PANEL - ROOM - 16) / largest
    height = BAR * max(map(len, counts.values())) + GAP
    width, bottom = LEFT + PANEL * len(workloads), TOP + height * len(rows)
    parts = [
        f'<rect width="{width}" height="{bottom + 34}" fill="white"/>',
        _text(12, 24, f"Speed of each side, {bases.pop()} = 1 (longer is faster)", size=15),
    ]
    for column, workload in enumerate(workloads):
        x = LEFT + PANEL * column
        legend = ", ".join(map(str, counts[workload]))
        parts.append(_text(x, TOP - 12, f"{workload}: {legend} texts a call", size=12))
        for row, cells in enumerate(rows.values()):
            for place, count in enumerate(counts[workload]):
                if (workload, count) in cells:
                    y = TOP + height * row + BAR * place
                    colour = COLOURS[place % len(COLOURS)]
                    parts += _bar(x, y, cells[workload, count], scale, colour)
        one = x + scale
        parts.append(_line(one, TOP - 6, one, bottom, FAINT))
        parts.append(_text(one, bottom + 14, "1", size=11, anchor="middle"))
    for row, name in enumerate(rows):
        parts.append(_text(LEFT - 10, TOP + height * row + height / 2, name, size=12, anchor="end"))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 34}" '
        f'width="{width}" height="{bottom + 34}" font-family="sans-serif">'
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def _bar(x: float, y: float, speed: tuple[float, float, float], scale: float, colour: str) -> list[str]:
    value, low, high = (scale * one for one in speed)
    middle = y + (BAR - 2) / 2
    return [
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{value:.1f}" height="{BAR - 2}" fill="{colour}"/>',
        _line(x + low, middle, x + high, middle, INK),
        _text(x + max(value, high) + 5, y + BAR - 4, f"{speed[0]:.2f}", size=11),
    ]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, *, size: int, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{INK}">'
        f"{escape(text)}</text>"
    )


def main() -> None:
    """Read results, write the SVG."""
    *files, out = sys.argv[1:]
    if not files:
        sys.exit(__doc__)
    results = [json.loads(Path(file).read_text(encoding="utf-8")) for file in files]
    Path(out).write_text(draw(results), encoding="utf-8")


if __name__ == "__main__":
    main()
