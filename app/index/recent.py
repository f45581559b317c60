"""The documents that came last, in memory: searched exactly until they become a segment.

Legend: n rows, D width of a kind of vectors, P entries of a kind of weights. An immutable view; rows are only
ever added behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from app.index.bm25 import K1, Asked
from app.index.deferred import kernels
from app.index.facts import Keys
from app.index.rows import Tail, best
from model.embedding import FloatArray, IntArray, LexicalWeights

if TYPE_CHECKING:
    from app.index.kernels import Offsets

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Layout:
    """What rows have to be found by: kinds of vectors with their widths, and kinds of weights.

    Those of the kind "bm25" are counts here, which a search weighs by the mean length of its time.
    """

    vectors: Mapping[str, int]
    weights: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One version of a document; a kind that it lacks is absent."""

    key: int
    stamp: int
    vectors: Mapping[str, FloatArray]
    weights: Mapping[str, LexicalWeights]


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """One kind of vectors of all rows."""

    matrix: FloatArray
    """[n, D]; zeros where a row has none."""
    present: Flags


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """One kind of weights of all rows: row r's are terms[offsets[r] : offsets[r + 1]] with their values."""

    offsets: Offsets
    terms: IntArray
    values: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Recent:
    """Rows in the order in which they came."""

    layout: Layout
    keys: Keys
    stamps: Keys
    vectors: Mapping[str, Vectors]
    weights: Mapping[str, Weights]
    _rows: Tail
    _entries: Mapping[str, Tail]

    @classmethod
    def empty(cls, layout: Layout) -> Recent:
        """No rows yet."""
        nothing = np.empty(0, np.int64)
        vectors = {
            name: Vectors(np.empty((0, width), np.float32), np.empty(0, np.bool_))
            for name, width in layout.vectors.items()
        }
        weights = {
            name: Weights(np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))
            for name in layout.weights
        }
        return cls._of(layout, nothing, nothing.copy(), vectors, weights)

    @classmethod
    def _of(
        cls,
        layout: Layout,
        keys: Keys,
        stamps: Keys,
        vectors: Mapping[str, Vectors],
        weights: Mapping[str, Weights],
    ) -> Recent:
        columns = [keys, stamps]
        for name in layout.vectors:
            columns += [vectors[name].matrix, vectors[name].present]  # type: ignore[list-item]
        columns += [weights[name].offsets[1:] for name in layout.weights]
        entries = {name: Tail((weights[name].terms, weights[name].values)) for name in layout.weights}
        return cls(layout, keys, stamps, vectors, weights, Tail(tuple(columns)), entries)

    def __len__(self) -> int:
        return len(self.keys)

    def added(self, rows: Sequence[Row]) -> Recent:
        """These rows behind the others."""
        columns: list[NDArray[Any]] = [
            np.array([row.key for row in rows], np.int64),
            np.array([row.stamp for row in rows], np.int64),
        ]
        for name, width in self.layout.vectors.items():
            columns += _matrix([row.vectors.get(name) for row in rows], width)
        grown: dict[str, tuple[IntArray, FloatArray]] = {}
        entries: dict[str, Tail] = {}
        for name in self.layout.weights:
            given = [row.weights[name] for row in rows if name in row.weights]
            lengths = [len(row.weights[name]) if name in row.weights else 0 for row in rows]
            columns.append(self.weights[name].offsets[-1] + np.cumsum(lengths, dtype=np.int64))
            entries[name], (terms, values) = self._entries[name].appended(
                len(self.weights[name].terms),
                (
                    np.concatenate([np.empty(0, np.int32), *(one.indices for one in given)]),
                    np.concatenate([np.empty(0, np.float32), *(one.values for one in given)]),
                ),
            )
            grown[name] = terms, values
        tail, stored = self._rows.appended(len(self), tuple(columns))
        views = iter(stored)
        keys, stamps = next(views), next(views)
        vectors = {name: Vectors(next(views), next(views)) for name in self.layout.vectors}
        weights = {
            name: Weights(np.concatenate([np.zeros(1, np.int64), next(views)]), *grown[name])
            for name in self.layout.weights
        }
        return Recent(self.layout, keys, stamps, vectors, weights, tail, entries)

    def after(self, count: int) -> Recent:
        """Without the first `count` rows."""
        vectors = {
            name: Vectors(one.matrix[count:].copy(), one.present[count:].copy())
            for name, one in self.vectors.items()
        }
        weights = {}
        for name, one in self.weights.items():
            first = int(one.offsets[count])
            weights[name] = Weights(
                one.offsets[count:] - first, one.terms[first:].copy(), one.values[first:].copy()
            )
        return Recent._of(self.layout, self.keys[count:].copy(), self.stamps[count:].copy(), vectors, weights)

    def rows_of(self, keys: Keys) -> NDArray[np.int64]:
        """The rows, dead ones among them, that hold any of these keys."""
        return np.flatnonzero(np.isin(self.keys, keys))

    def search_vectors(
        self, name: str, query: FloatArray, count: int, usable: Flags
    ) -> tuple[NDArray[np.int64], FloatArray]:
        """At most `count` usable rows with the highest inner products. Shapes: [D], [n] -> rows, scores."""
        vectors = self.vectors[name]
        rows = np.flatnonzero(usable & vectors.present)
        return best(rows, kernels.dense_scores(query, vectors.matrix)[rows], count)

    def search_weights(
        self, name: str, query: LexicalWeights, count: int, usable: Flags
    ) -> tuple[NDArray[np.int64], FloatArray]:
        """At most `count` usable rows that share a term with the query, highest scores first."""
        one = self.weights[name]
        scores = kernels.lexical_scores(query.indices, query.values, one.offsets, one.terms, one.values)
        rows = np.flatnonzero(usable & (scores > 0))
        return best(rows, scores[rows], count)

    def search_terms(
        self, name: str, query: Asked, count: int, usable: Flags
    ) -> tuple[NDArray[np.int64], FloatArray]:
        """At most `count` usable rows that share a term with the query, by BM25, exactly."""
        one, asked = self.weights[name], query.weights
        scores = kernels.term_scores(
            asked.indices, asked.values, one.offsets, one.terms, one.values, K1 + 1, *query.norm
        )
        rows = np.flatnonzero(usable & (scores > 0))
        return best(rows, scores[rows], count)

    def frequencies(self, name: str, terms: IntArray, living: Flags) -> NDArray[np.int64]:
        """How many living rows have each of these ascending terms. Shape: [n]."""
        one = self.weights[name]
        return kernels.term_frequencies(terms, one.offsets, one.terms, living)


def _matrix(vectors: Sequence[FloatArray | None], width: int) -> tuple[FloatArray, Flags]:
    matrix = np.zeros((len(vectors), width), np.float32)
    for place, vector in enumerate(vectors):
        if vector is not None:
            matrix[place] = vector
    return matrix, np.array([vector is not None for vector in vectors], np.bool_)
