"""1-bit codes of a segment's rows (RaBitQ, arXiv 2405.12497): upper bounds of their products with a query.

Legend: N rows, D width, P padded width (a multiple of 64), W = P / 64, n chosen rows.

It holds no rows and gives no scores: the caller scores the rows whose bounds are high.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from app.index.deferred import vector_kernels as kernels
from app.index.workers import Workers
from model.embedding import FloatArray

if TYPE_CHECKING:
    from app.index.vector_kernels import Patterns, Places, Words

MARGIN = 2.5
"""Standard deviations of a code's error between an estimate and its upper bound."""

SAMPLE_ROWS = 16_384
"""Rows that say where the centre is."""

ROUNDS = 3
"""Turns of signs and Hadamard transforms in a rotation."""

BLOCK_ROWS = 8192
"""Rows that one task encodes."""

SCAN_ROWS = 4096
"""Neighbouring rows whose codes one thread reads."""

SPARSE = 8
"""Where fewer than one row in this many is usable, only usable rows' codes are read."""

BUFFER = 4
"""Bounds that a thread collects, for each it keeps, before it drops the lowest."""

QUANTUM = 0.335
"""Step of a 16-level quantiser of a normal variable, in standard deviations (Max 1960: least error)."""


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A query, made ready for codes."""

    planes: Words
    """Bit by bit, rotated and rounded. Shape: [4, W]."""
    factors: FloatArray
    """Shape: [3], see `scan`."""
    added: float
    """The product with the centre, which `scan` leaves out of each bound."""
    spread: float
    """Standard deviation of an estimate, for a row of scale 1."""


@dataclass(frozen=True, eq=False)
class Codes:
    """What a scan reads: for each row its signs after centring and rotation, and two factors."""

    codes: Words
    """Shape: [N, W]."""
    scales: FloatArray
    """From a code's agreement with the query to a product. Shape: [N]."""
    along: FloatArray
    """Product of a row's residual with the centre. Shape: [N]."""
    centre: FloatArray
    """Shape: [D]."""
    signs: NDArray[np.int8]
    """Of the rotation. Shape: [ROUNDS, P]."""
    error: FloatArray
    """Mean of 1 - cos^2 between a residual and its signs. Shape: [1]."""

    @classmethod
    def of_rows(cls, rows: Patterns, workers: Workers | None) -> Codes:
        """Encode all rows. Shape: [N, D]."""
        count, width = rows.shape
        padded = _padded(width)
        centre = np.zeros(width, np.float64)
        sample = np.linspace(0, count - 1, min(count, SAMPLE_ROWS)).astype(np.int64)
        kernels.add_rows(rows, sample, centre)
        made = cls(
            np.empty((count, padded // 64), np.uint64),
            np.empty(count, np.float32),
            np.empty(count, np.float32),
            (centre / len(sample)).astype(np.float32),
            # Any fixed signs would do; they are stored, so that another generator may come one day.
            (np.random.default_rng(0).integers(0, 2, (ROUNDS, padded)) * 2 - 1).astype(np.int8),
            np.zeros(1, np.float32),
        )
        errors = run([partial(made._encode, rows, block) for block in slices(count, BLOCK_ROWS)], workers)
        made.error[0] = sum(errors) / count
        return made

    def _encode(self, rows: Patterns, block: slice) -> float:
        outputs = self.codes[block], self.scales[block], self.along[block]
        return kernels.encode(rows[block], self.centre, self.signs, *outputs)

    @classmethod
    def of(cls, arrays: dict[str, NDArray[Any]], count: int, width: int) -> Codes:
        """From what `arrays` gave; ValueError where shapes, types or values cannot be a segment's."""
        padded = _padded(width)
        expected: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
            "codes": (np.uint64, (count, padded // 64)),
            "scales": (np.float32, (count,)),
            "along": (np.float32, (count,)),
            "centre": (np.float32, (width,)),
            "signs": (np.int8, (ROUNDS, padded)),
            "error": (np.float32, (1,)),
        }
        if arrays.keys() != expected.keys():
            raise ValueError(f"a dense segment has the arrays {sorted(expected)}, got {sorted(arrays)}")
        for name, (kind, shape) in expected.items():
            array = arrays[name]
            if array.dtype != kind or array.shape != shape or not array.flags.c_contiguous:
                raise ValueError(
                    f"array {name!r} of a dense segment must be {kind.__name__} of shape {shape}, "
                    f"got {array.dtype} of shape {array.shape}"
                )
        numbers = (arrays["scales"], arrays["along"], arrays["centre"], arrays["error"])
        if not all(bool(np.isfinite(array).all()) for array in numbers):
            raise ValueError("the factors of a dense segment must be finite numbers")
        if bool((arrays["scales"] < 0).any()) or not 0 <= float(arrays["error"][0]) <= 1:
            raise ValueError("the factors of a dense segment are out of range")
        if not bool((np.abs(arrays["signs"]) == 1).all()):
            raise ValueError("the signs of a dense segment must be 1 and -1")
        return cls(**arrays)

    def question(self, query: FloatArray) -> Question:
        """A query [D] as `scan` takes it.

        <q, x> = <q, c> + a <c, r> + <q - a c, r>, for the residual r = x - c of a row and any a: the one that
        makes q - a c shortest leaves least to the codes.
        """
        across = float(query @ self.centre)
        square = float(self.centre @ self.centre)
        share = across / square if square > 0 else 0.0
        rotated = np.zeros(self.signs.shape[1], np.float32)
        rotated[: len(query)] = query - np.float32(share) * self.centre
        kernels.rotate(rotated, self.signs)
        length = float(np.linalg.norm(rotated))
        step = QUANTUM * length / len(rotated) ** 0.5 or 1.0
        bits = kernels.QUERY_BITS
        half = 1 << (bits - 1)
        whole = np.clip(np.rint(rotated / step), -half, half - 1).astype(np.int8)  # [P]
        planes = np.stack(
            [np.packbits((whole >> bit) & 1, bitorder="little").view(np.uint64) for bit in range(bits)]
        )
        # The code's own error acts on the whole query; the query's rounding adds its own to it.
        rounding = float(np.linalg.norm(rotated - step * whole))
        spread = (float(self.error[0]) * length**2 + rounding**2) ** 0.5
        offset = MARGIN * spread - step * float(whole.sum(dtype=np.int64))
        return Question(planes, np.array([share, 2 * step, offset], np.float32), across, spread)

    def scanned(
        self,
        question: Question,
        least: float,
        most: int,
        available: int,
        usable: NDArray[np.bool_] | None,
        workers: Workers | None,
    ) -> tuple[Places, FloatArray]:
        """The `most` usable rows with the highest bounds above `least` and their bounds, by ascending row."""
        stored = fixed(self.codes), fixed(self.scales), fixed(self.along)
        given = (*stored, question.planes, question.factors)
        floor = np.float32(least - question.added)
        chosen = None
        if usable is not None and available < len(self.codes) // SPARSE:
            chosen = np.flatnonzero(usable)
        flags = fixed(np.empty(0, np.bool_) if usable is None else usable)
        total = len(self.codes) if chosen is None else available
        edges = np.arange(0, total, SCAN_ROWS)
        blocks = np.stack([edges, np.append(edges[1:], total)], axis=1)
        parts = max(1, min(workers.threads if workers else 1, len(blocks) // 2))
        # Each thread takes blocks from everywhere, so that neighbours which are alike fill nobody's share.
        share = most if parts == 1 else min(most, most // parts + most // 4)

        def task(part: int) -> tuple[Places, FloatArray]:
            bounds, places = np.empty(BUFFER * share, np.float32), np.empty(BUFFER * share, np.int64)
            mine = np.ascontiguousarray(blocks[part::parts])
            if chosen is None:
                used = kernels.scan(*given, mine, flags, floor, share, bounds, places)
            else:
                used = kernels.scan_some(*given, mine, chosen, floor, share, bounds, places)
            return places[:used], bounds[:used]

        found = run([partial(task, part) for part in range(parts)], workers)
        places, bounds = (np.concatenate(column) for column in zip(*found, strict=True))
        if parts > 1:
            # Equal bounds are kept in the order of their rows.
            order = np.argsort(places)
            places, bounds = places[order], bounds[order]
        if len(places) > most:
            keep = kernels.highest(bounds, most)
            places, bounds = places[keep], bounds[keep]
        return places, bounds + np.float32(question.added)


def fixed(array: NDArray[Any]) -> NDArray[Any]:
    """A read-only view. Kernels are compiled for each kind of array: so files and memory share one."""
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view


def _padded(width: int) -> int:
    return -(-width // 64) * 64


def slices(count: int, size: int) -> list[slice]:
    """The rows from 0 to `count`, `size` at a time."""
    return [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]


def run(tasks: Sequence[Callable[[], Any]], workers: Workers | None) -> list[Any]:
    """Results in order, side by side where there are workers."""
    return workers.run(tasks) if workers else [task() for task in tasks]
