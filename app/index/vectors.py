"""A segment of dense vectors, never changed: the rows with the highest inner products with a query.

Legend: N rows, D width, n chosen rows.

Small segments are scored whole. Beyond, "rabitq" has a 1-bit code for every row (arXiv 2405.12497): a search
reads all codes, takes from each an upper bound of the row's product, and scores the rows with the highest
bounds from their float16 values, until no bound left reaches the last score wanted. Nothing but the codes'
error loses a row, a filter of any density costs nothing, and encoding is one pass. "ivf" and "hnsw" let FAISS
look at a part of the rows only, and score its candidates likewise: quicker, while some queries lose rows.

It does not store, add or delete rows: the caller keeps the files and says which rows are usable.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from app.index.deferred import faiss_index
from app.index.deferred import vector_kernels as kernels
from app.index.rows import best
from app.index.vector_codes import MARGIN, Codes, fixed, run, slices
from app.index.workers import Workers
from model.embedding import FloatArray

if TYPE_CHECKING:
    from app.index.faiss_index import FaissIndex
    from app.index.vector_kernels import Patterns, Places

DenseKind = Literal["auto", "exact", "rabitq", "ivf", "hnsw"]

AUTO_ROWS = 20_000
"""Segments up to this many rows are scanned exactly: that takes about as long."""

EXACT_ROWS = 10_000
"""Up to this many usable rows are scored at once, without a look at codes."""

IVF_ROWS = 4_000_000
"""From so many rows on `auto` reads lists of codes rather than all: an estimate from smaller segments."""

RESCORED_ROWS = 2048
"""At most this many rows (or 8 for each one wanted) are scored from their float16 values after a scan."""

LEAST_MARGIN = 1.5
"""Where the rows scored leave out more than this many deviations of others', the search begins again."""

HARD = 8
"""Then so many times as many rows may be scored."""


@dataclass(frozen=True, eq=False)
class DenseSegment:
    """Rows and perhaps their codes or a FAISS index. Any number of threads search it at once."""

    rows: NDArray[np.float16]
    """Shape: [N, D], usually a map of a file."""
    codes: Codes | None = None
    index: FaissIndex | None = None
    """With neither, every search scores every usable row."""

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.rows.dtype != np.float16 or not self.rows.flags.c_contiguous:
            raise ValueError(
                "the rows of a dense segment must be contiguous float16 in two dimensions, "
                f"got {self.rows.dtype} of shape {self.rows.shape}"
            )

    @classmethod
    def build(
        cls, rows: NDArray[np.float16], kind: DenseKind = "auto", workers: Workers | None = None
    ) -> DenseSegment:
        """Encode rows [N, D], all finite; they are kept where they are.

        What a search would never use is not built, and codes take the place of a FAISS index that loses too
        many rows: `kind` says what was made.
        """
        bare = cls(rows)
        count = len(rows)
        if not rows.size or kind == "exact" or (kind == "auto" and count <= AUTO_ROWS):
            return bare
        if kind == "auto":
            kind = "ivf" if count >= IVF_ROWS else "rabitq"
        if kind != "rabitq":
            if count <= EXACT_ROWS:
                return bare
            index = faiss_index.FaissIndex.build(bare._patterns, kind, workers)
            if index is not None:
                return cls(rows, None, index)
        return cls(rows, Codes.of_rows(bare._patterns, workers))

    @classmethod
    def of(cls, rows: NDArray[np.float16], arrays: dict[str, NDArray[Any]]) -> DenseSegment:
        """From rows and what `arrays` gave; ValueError where they cannot belong together."""
        bare = cls(rows)
        if not arrays:
            return bare
        if not rows.size:
            raise ValueError(f"a dense segment without rows has no arrays, got {sorted(arrays)}")
        if "faiss" in arrays:
            return cls(rows, None, faiss_index.FaissIndex.of(arrays, *rows.shape))
        return cls(rows, Codes.of(arrays, *rows.shape))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything but the rows, to be stored; empty for an exact segment."""
        if self.index is not None:
            return self.index.arrays()
        return {} if self.codes is None else dict(vars(self.codes))

    @property
    def kind(self) -> Literal["exact", "rabitq", "ivf", "hnsw"]:
        """How it is searched."""
        if self.index is not None:
            return self.index.kind
        return "exact" if self.codes is None else "rabitq"

    def search(
        self,
        query: FloatArray,
        count: int,
        usable: NDArray[np.bool_] | None = None,
        workers: Workers | None = None,
    ) -> tuple[Places, FloatArray]:
        """The `count` usable rows with the highest products, best first, equals by ascending row.

        Shapes: [D], [N] -> [n], [n]. Where not all are scored, rows may be missed. Scores are true products.
        """
        query, power = self._checked(query, usable)
        return _grown(*self._search(query, count, usable, workers), power)

    def _search(
        self, query: FloatArray, count: int, usable: NDArray[np.bool_] | None, workers: Workers | None
    ) -> tuple[Places, FloatArray]:
        available = len(self.rows) if usable is None else int(np.count_nonzero(usable))
        most = max(RESCORED_ROWS, 8 * count)
        if available <= max(EXACT_ROWS, most) or count < 1:
            return self._exact(query, count, usable, workers)
        if self.index is not None:
            found = self.index.candidates(query, count, usable)
            if found is not None:
                return best(found, self._scored(query, found, workers), count)
        if self.codes is None:
            return self._exact(query, count, usable, workers)
        question = self.codes.question(query)
        places, bounds = self.codes.scanned(question, -np.inf, most, available, usable, workers)
        if len(places) < 2 * count:
            # Bounds that are no numbers: products as large as float32 can hold.
            return self._exact(query, count, usable, workers)
        # The highest bounds first: their scores say which of the others may still matter.
        ahead = kernels.highest(bounds, 2 * count)
        first = places[ahead]
        scores = self._scored(query, first, workers)
        reached = np.partition(scores, len(first) - count)[len(first) - count]
        last = int(bounds.argmin())
        deviations = (bounds[last] - reached) / max(question.spread * self.codes.scales[places[last]], 1e-30)
        if len(places) == most and deviations > MARGIN - LEAST_MARGIN:
            # Too many rows are too much alike: what was left out may matter, so all that may is looked for.
            places, bounds = self.codes.scanned(
                question, float(reached), HARD * most, available, usable, workers
            )
            ahead = np.isin(places, first)
        then = places[~ahead & (bounds >= reached)]
        scores = np.concatenate([scores, self._scored(query, then, workers)])
        return best(np.concatenate([first, then]), scores, count)

    def exact(
        self,
        query: FloatArray,
        count: int,
        usable: NDArray[np.bool_] | None = None,
        workers: Workers | None = None,
    ) -> tuple[Places, FloatArray]:
        """`search` without codes: every usable row is scored."""
        query, power = self._checked(query, usable)
        return _grown(*self._exact(query, count, usable, workers), power)

    def _exact(
        self, query: FloatArray, count: int, usable: NDArray[np.bool_] | None, workers: Workers | None
    ) -> tuple[Places, FloatArray]:
        if count < 1:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        places = np.arange(len(self.rows)) if usable is None else np.flatnonzero(usable)
        return best(places, self._scored(query, places, workers), count)

    def scores(self, query: FloatArray, places: Places) -> FloatArray:
        """Products with given rows; IndexError where there is no such row. Shapes: [D], [n] -> [n]."""
        query, power = self._checked(query, None)
        places = np.ascontiguousarray(places, np.int64)
        if len(places) and not 0 <= int(places.min()) <= int(places.max()) < len(self.rows):
            raise IndexError(f"rows of a dense segment are numbered from 0 to {len(self.rows) - 1}")
        return np.ldexp(self._scored(query, places, None), power)

    @property
    def _patterns(self) -> Patterns:
        return fixed(self.rows).view(np.uint16)

    def _checked(self, query: FloatArray, usable: NDArray[np.bool_] | None) -> tuple[FloatArray, int]:
        """The query over a power of two that leaves it in the range of float16, and the power."""
        count, width = self.rows.shape
        if query.shape != (width,):
            raise ValueError(f"a query for this segment has shape {(width,)}, got {query.shape}")
        if usable is not None and (usable.shape != (count,) or usable.dtype != np.bool_):
            raise ValueError(
                f"usable rows must be bool of shape {(count,)}, got {usable.dtype} {usable.shape}"
            )
        query = np.ascontiguousarray(query, np.float32)
        if not bool(np.isfinite(query).all()):
            raise ValueError("a query must be finite numbers")
        # Kernels may multiply what is in a query by 2^112 (see `_value` in `vector_kernels.py`).
        power = max(0, int(np.frexp(np.abs(query).max(initial=0))[1]) - 15)
        return np.ldexp(query, -power) if power else query, power

    def _scored(self, query: FloatArray, places: Places, workers: Workers | None) -> FloatArray:
        out = np.empty(len(places), np.float32)
        patterns = self._patterns
        tasks = [
            partial(kernels.inner_products, patterns, places[part], query, out[part])
            for part in _shares(len(places), workers)
        ]
        run(tasks, workers)
        return out


def _grown(places: Places, scores: FloatArray, power: int) -> tuple[Places, FloatArray]:
    """What was found for a query over a power of two; scores beyond float32 are equal."""
    if power:
        with np.errstate(over="ignore"):
            scores = np.ldexp(scores, power)
        places, scores = best(places, scores, len(places))
    return places, scores


def _shares(count: int, workers: Workers | None) -> list[slice]:
    """One part for each thread, where there is enough to share."""
    parts = min(workers.threads if workers else 1, max(1, count // 64))
    return slices(count, max(1, -(-count // parts)))
