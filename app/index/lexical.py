"""Lexical candidates: the documents that share tokens with the query, scored exactly over posting lists.

Legend: T distinct terms of the main part, P its postings. Immutable like the dense index. Every posting of
the query's terms is visited; skipping those that cannot reach the top is not done here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.index.facts import Keys
from app.index.rows import Rows, Tail, best
from model.embedding import FloatArray, IntArray, LexicalWeights

MERGE_ROWS = 1024
"""As in the dense index; fewer, because the tail's postings are all looked at by each search."""


@dataclass(frozen=True, slots=True, eq=False)
class Postings:
    """Terms, rows and weights of a part, one entry for each token of each document. Shapes: [P] each."""

    terms: IntArray
    rows: IntArray
    weights: FloatArray

    @classmethod
    def of(cls, documents: Sequence[LexicalWeights], first_row: int = 0) -> Postings:
        """The postings of documents in consecutive rows."""
        lengths = np.fromiter((len(one) for one in documents), np.int64, len(documents))
        rows = np.repeat(np.arange(first_row, first_row + len(documents), dtype=np.int32), lengths)
        terms = np.concatenate([np.empty(0, np.int32), *(one.indices for one in documents)])
        weights = np.concatenate([np.empty(0, np.float32), *(one.values for one in documents)])
        return cls(terms.astype(np.int32, copy=False), rows, weights.astype(np.float32, copy=False))

    @property
    def columns(self) -> tuple[NDArray[np.generic], ...]:
        """As `Tail` takes them."""
        return self.terms, self.rows, self.weights


@dataclass(frozen=True, slots=True, eq=False)
class LexicalIndex:
    """An inverted index over the living lexical weights of a collection."""

    rows: Rows
    terms: IntArray
    """Distinct terms of the main part, ascending. Shape: [T]."""
    starts: NDArray[np.int64]
    """Term t's postings are main[starts[t] : starts[t + 1]]. Shape: [T + 1]."""
    main: Postings
    tail: Tail
    recent: Postings
    """The tail's postings, in the order in which they came."""

    @classmethod
    def build(cls, keys: Keys, postings: Postings) -> LexicalIndex:
        """From all postings at once; rows are places in `keys`, which is ascending."""
        order = np.argsort(postings.terms, kind="stable")
        main = Postings(postings.terms[order], postings.rows[order], postings.weights[order])
        terms, starts = np.unique(main.terms, return_index=True)
        starts = np.append(starts, len(main.terms)).astype(np.int64)
        empty = Postings.of([])
        return cls(Rows.of(keys), terms, starts, main, Tail(empty.columns), empty)

    def changed(self, gone: Keys, keys: Keys, documents: Sequence[LexicalWeights]) -> LexicalIndex:
        """Without the documents `gone`, then with `keys` and their weights."""
        rows = self.rows.changed(gone, keys)
        added = Postings.of(documents, first_row=len(self.rows.keys))
        tail, columns = self.tail.appended(len(self.recent.terms), added.columns)
        recent = Postings(*columns)
        if not rows.due(MERGE_ROWS):
            return LexicalIndex(rows, self.terms, self.starts, self.main, tail, recent)
        # Every living row moves to its place in the order of keys; dead ones lose their postings.
        living = rows.keys[rows.alive]
        place = np.empty(len(rows.keys), np.int32)
        place[rows.alive] = np.argsort(np.argsort(living)).astype(np.int32)
        merged = [np.concatenate(pair) for pair in zip(self.main.columns, recent.columns, strict=True)]
        kept = rows.alive[merged[1]]
        return LexicalIndex.build(
            np.sort(living), Postings(merged[0][kept], place[merged[1][kept]], merged[2][kept])
        )

    def search(
        self, query: LexicalWeights, count: int, allowed: Keys | None = None
    ) -> tuple[Keys, FloatArray]:
        """At most `count` living, allowed documents that share a term; highest first, equals by key."""
        if not count or not len(query) or not self.rows.living:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        rows, products = self._products(query)
        # bincount adds in float64.
        scores = np.bincount(rows, products, minlength=len(self.rows.keys))
        scores[~self.rows.usable(allowed)] = 0
        found = np.flatnonzero(scores > 0)
        return best(self.rows.keys[found], scores[found].astype(np.float32), count)

    def _products(self, query: LexicalWeights) -> tuple[IntArray, NDArray[np.float64]]:
        """A row and w_q * w_d for every posting of the query's terms."""
        _, ours, theirs = np.intersect1d(query.indices, self.terms, assume_unique=True, return_indices=True)
        rows: list[IntArray] = []
        products: list[NDArray[np.float64]] = []
        for mine, term in zip(ours, theirs, strict=True):
            postings = slice(self.starts[term], self.starts[term + 1])
            rows.append(self.main.rows[postings])
            products.append(self.main.weights[postings].astype(np.float64) * float(query.values[mine]))
        if len(self.recent.terms):
            at = np.searchsorted(query.indices, self.recent.terms)
            at[at == len(query)] = 0
            shared = np.flatnonzero(query.indices[at] == self.recent.terms)
            rows.append(self.recent.rows[shared])
            products.append(self.recent.weights[shared].astype(np.float64) * query.values[at[shared]])
        if not rows:
            return np.empty(0, np.int32), np.empty(0, np.float64)
        return np.concatenate(rows), np.concatenate(products)
