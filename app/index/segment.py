"""An immutable part of a collection in one mapped file: what finds candidates among many documents.

Legend: n rows. It is derived: a file that is missing, damaged or of another format is made anew from SQLite.
Rows bear the stamp of the version that they hold; whether that version is the document's present one is
for the caller to say (`derived.py`).

Weights of the kind "bm25" are impacts, which depend on the mean length of all documents: on that of the time
when the segment is written, for those that it takes over from older segments are changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.index import arrays, bm25
from app.index.arrays import DerivedDamaged
from app.index.facts import Keys
from app.index.posting_types import Norms
from app.index.postings import Postings
from app.index.recent import Flags, Layout, Recent
from app.index.vectors import DenseKind, DenseSegment
from app.index.workers import Workers
from model.embedding import FloatArray, IntArray, LexicalWeights

FORMAT = 1
BM25 = "bm25"
BLOCK_ROWS = 8192
FLOAT16_MOST = 65504.0


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Rows of documents with what each leg needs of them. Shapes: [n]."""

    path: Path
    keys: Keys
    stamps: Keys
    order: NDArray[np.int64]
    """Rows in ascending order of key."""
    vectors: Mapping[str, DenseSegment]
    present: Mapping[str, Flags]
    """Of kinds that not every row has: those that have it; the others hold zeros."""
    weights: Mapping[str, Postings]
    lengths: NDArray[np.int64] | None = None
    """Where there is BM25: the rows' lengths in tokens."""
    mean: float = 1.0
    """The mean length that the impacts were made with."""

    def __len__(self) -> int:
        return len(self.keys)

    def rows_of(self, keys: Keys) -> NDArray[np.int64]:
        """The rows that hold any of these keys."""
        if not len(self):
            return np.empty(0, np.int64)
        at = np.searchsorted(self.keys, keys, sorter=self.order)
        rows: NDArray[np.int64] = self.order[np.minimum(at, len(self) - 1)]
        held: NDArray[np.int64] = rows[self.keys[rows] == keys]
        return held

    def search_vectors(
        self, name: str, query: FloatArray, count: int, usable: Flags, workers: Workers | None
    ) -> tuple[NDArray[np.int64], FloatArray]:
        """At most `count` usable rows with the highest inner products, as the segment's kind finds them."""
        if name in self.present:
            usable = usable & self.present[name]
        return self.vectors[name].search(query, count, usable, workers)

    def search_weights(
        self, name: str, query: LexicalWeights, count: int, usable: Flags, workers: Workers | None
    ) -> tuple[NDArray[np.int64], FloatArray]:
        """The `count` usable rows with the highest sums of products, exactly."""
        return self.weights[name].search(query, count, usable, workers)

    def frequencies(self, name: str, terms: IntArray, living: Flags | None) -> NDArray[np.int64]:
        """How many rows, or rows that live, have each of these terms. Shape: [n]."""
        return self.weights[name].frequencies(terms, living)


Source = tuple[Recent | Segment, Flags]
"""Rows, and which of them to take."""


def write(
    path: Path,
    sources: Sequence[Source],
    layout: Layout,
    kind: DenseKind,
    workers: Workers,
    mean: float = 1.0,
) -> Segment:
    """A segment of the chosen rows, one source after another, in a new file; OSError from the disk.

    `mean` is all documents' mean length, for BM25.
    """
    facts: dict[str, Any] = {"format": FORMAT, "layout": _said(layout)}
    count = sum(int(np.count_nonzero(chosen)) for _, chosen in sources)
    with arrays.writing(path) as file:
        file.add("keys", _joined(sources, "keys"))
        file.add("stamps", _joined(sources, "stamps"))
        for name, width in layout.vectors.items():
            file.add(f"present.{name}", np.concatenate([_present(rows, name)[at] for rows, at in sources]))
            file.stream(f"rows.{name}", np.dtype("<f2"), (count, width), _half_rows(sources, name))
            built = DenseSegment.build(file.written(f"rows.{name}"), kind, workers)
            for part, array in built.arrays().items():
                file.add(f"vectors.{name}.{part}", array)
        for name in layout.weights:
            norms = None
            if name == BM25:
                lengths = np.concatenate([np.empty(0, np.int64), *(_lengths(*one) for one in sources)])
                file.add("lengths", lengths)
                facts["mean"] = mean
                norms = _norms(sources, lengths, mean)
            merged = Postings.merged([(_postings(rows, name, mean), at) for rows, at in sources], norms)
            for part, array in merged.arrays().items():
                file.add(f"weights.{name}.{part}", array)
        file.finish(facts)
    return _segment(path, *arrays.mapped(path), layout)


def read(path: Path, layout: Layout) -> Segment:
    """A segment from its file; DerivedDamaged where it is not whole or has another layout."""
    return _segment(path, *arrays.read(path), layout)


def _segment(path: Path, facts: dict[str, Any], found: dict[str, NDArray[Any]], layout: Layout) -> Segment:
    if facts.get("format") != FORMAT or facts.get("layout") != _said(layout):
        raise DerivedDamaged(f"{path.name}: is of another format or layout")
    try:
        # Keys and stamps are read by every change: in memory, not in the map.
        keys, stamps = np.array(found["keys"], np.int64), np.array(found["stamps"], np.int64)
        vectors = {
            name: DenseSegment.of(found[f"rows.{name}"], _named(found, f"vectors.{name}."))
            for name in layout.vectors
        }
        present = {name: np.array(found[f"present.{name}"]) for name in layout.vectors}
        weights = {name: Postings.of(_named(found, f"weights.{name}.")) for name in layout.weights}
        mean, tokens = 1.0, None
        if BM25 in layout.weights:
            mean, tokens = float(facts["mean"]), found["lengths"]
            if not 0 < mean < np.inf or tokens.dtype != np.int64:
                raise ValueError("its lengths make no sense")
        lengths = {
            len(stamps),
            len(keys if tokens is None else tokens),
            *(len(one) for one in present.values()),
            *(one.rows for one in weights.values()),
        }
        shapes = all(vectors[name].rows.shape == (len(keys), width) for name, width in layout.vectors.items())
        if lengths != {len(keys)} or not shapes:
            raise ValueError("its arrays do not fit together")
    except (KeyError, TypeError, ValueError) as error:
        raise DerivedDamaged(f"{path.name}: {error}") from error
    partial = {name: flags for name, flags in present.items() if not flags.all()}
    order = np.argsort(keys, kind="stable")
    return Segment(path, keys, stamps, order, vectors, partial, weights, tokens, mean)


def _said(layout: Layout) -> dict[str, Any]:
    return {"vectors": dict(layout.vectors), "weights": list(layout.weights)}


def _named(found: dict[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): one for name, one in found.items() if name.startswith(prefix)}


def _joined(sources: Sequence[Source], name: str) -> Keys:
    return np.concatenate([np.empty(0, np.int64), *(getattr(rows, name)[chosen] for rows, chosen in sources)])


def _present(rows: Recent | Segment, name: str) -> Flags:
    if isinstance(rows, Recent):
        return rows.vectors[name].present
    return rows.present.get(name, np.ones(len(rows), np.bool_))


def _half_rows(sources: Sequence[Source], name: str) -> Iterator[NDArray[np.float16]]:
    """The chosen rows' vectors, a block at a time; candidates are scored anew from what SQLite holds."""
    for rows, chosen in sources:
        vectors = rows.vectors[name].matrix if isinstance(rows, Recent) else rows.vectors[name].rows
        places = np.flatnonzero(chosen)
        for first in range(0, len(places), BLOCK_ROWS):
            block = vectors[places[first : first + BLOCK_ROWS]]
            yield np.clip(block, -FLOAT16_MOST, FLOAT16_MOST).astype(np.float16)


def _postings(rows: Recent | Segment, name: str, mean: float) -> Postings:
    if isinstance(rows, Segment):
        return rows.weights[name]
    one = rows.weights[name]
    values = one.values
    if name == BM25:
        values = bm25.entry_impacts(one.offsets, values, bm25.row_lengths(one.offsets, values), mean)
    return Postings.build(one.offsets, one.terms, values)


def _lengths(rows: Recent | Segment, chosen: Flags) -> NDArray[np.int64]:
    """The chosen rows' lengths in tokens."""
    if isinstance(rows, Segment):
        return np.empty(0, np.int64) if rows.lengths is None else rows.lengths[chosen]
    return bm25.row_lengths(rows.weights[BM25].offsets, rows.weights[BM25].values)[chosen]


def _norms(sources: Sequence[Source], lengths: NDArray[np.int64], mean: float) -> Norms | None:
    """What the rows' impacts were made with and what they shall have; None where that is the same."""
    means = [rows.mean if isinstance(rows, Segment) else mean for rows, _ in sources]
    if all(one == mean for one in means):
        return None
    each = np.repeat(means, [int(np.count_nonzero(chosen)) for _, chosen in sources])
    return Norms(bm25.norms(lengths, each), bm25.norms(lengths, mean), bm25.K1 + 1)
