"""BM25 over token ids: the formula, and what a query's terms are worth in a collection.

    score = sum over the query's terms of  qtf * idf * tf * (k1 + 1) / (tf + norm)
    norm = k1 * (1 - b + b * length / mean),  idf = ln(1 + (N - df + 0.5) / (df + 0.5))

S. Robertson and H. Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009, with the idf of
Lucene's BM25Similarity, which is never negative. Lucene leaves out the constant k1 + 1: its scores are
these divided by 2.2. Lengths are exact, where Lucene rounds them to a byte.

Legend: N documents of the collection, df of them have a term, tf times in a document, qtf times in the query,
length of a document and mean of all lengths in tokens; n terms of a query, P entries, R rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.embedding import FloatArray, LexicalWeights

K1, B = 1.2, 0.75
"""The usual ones: Lucene's default, and that of the M3 paper's baseline."""
MOST_COUNT = 65_535
"""Counts end here, for two bytes hold them; tf / (tf + norm) changes no more by then."""

Doubles = NDArray[np.float64]
Longs = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """What a collection says of some terms."""

    documents: int
    """N."""
    length: int
    """Of all documents together."""
    frequencies: Longs
    """df of each term. Shape: [n]."""


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A query's terms, ascending, and what they are worth. Shapes: [n]."""

    counts: LexicalWeights
    """qtf."""
    idf: Doubles
    weights: LexicalWeights
    """qtf * idf."""
    mean: float

    @property
    def ceiling(self) -> float:
        """A score that no document reaches, however often it has the terms; 0 where there are none."""
        return (K1 + 1) * float(self.weights.values.sum(dtype=np.float64))

    @property
    def norm(self) -> tuple[float, float]:
        """A document's norm is the first of these and the second for each of its tokens."""
        return K1 * (1 - B), K1 * B / self.mean


@dataclass(frozen=True, slots=True)
class MatchedTerm:
    """A term that query and document share, and what it adds to the score."""

    id: int
    idf: float
    query_count: int
    count: int
    product: float


def mean_length(documents: int, length: int) -> float:
    """Of so many documents of so many tokens together; 1 where there are none, to be divided by."""
    return length / documents if documents and length else 1.0


def asked(terms: LexicalWeights, known: Statistics) -> Asked:
    """A query's counted terms as this collection weighs them."""
    # A change that is under way may be counted in df before it is in N.
    found = np.minimum(known.frequencies, known.documents).astype(np.float64)
    idf = np.log1p((known.documents - found + 0.5) / (found + 0.5))
    counts = capped(terms)
    weights = LexicalWeights(counts.indices, (counts.values * idf).astype(np.float32))
    return Asked(counts, idf, weights, mean_length(known.documents, known.length))


def matched(query: Asked, document: LexicalWeights) -> tuple[MatchedTerm, ...]:
    """The shared terms by ascending id; their products sum to the document's score."""
    ids, ours, theirs = np.intersect1d(
        query.counts.indices, document.indices, assume_unique=True, return_indices=True
    )
    counts = document.values[theirs]
    norm = norms(document.values.sum(dtype=np.float64), query.mean)
    products = query.weights.values[ours] * impacts(counts, norm)
    rows = zip(
        ids.tolist(),
        query.idf[ours].tolist(),
        query.counts.values[ours].astype(int).tolist(),
        counts.astype(int).tolist(),
        products.tolist(),
        strict=True,
    )
    return tuple(MatchedTerm(*row) for row in rows)


def norms(lengths: Longs | Doubles | np.float64, mean: float | Doubles) -> Doubles:
    """k1 * (1 - b + b * length / mean). Shapes: [R] -> [R]."""
    return np.asarray(K1 * (1 - B) + K1 * B / mean * np.asarray(lengths, np.float64))


def impacts(counts: FloatArray, norm: Doubles) -> FloatArray:
    """tf * (k1 + 1) / (tf + norm), of each entry. Shapes: [P], [P] or [] -> [P]."""
    tf = counts.astype(np.float64)
    return (tf * (K1 + 1) / (tf + norm)).astype(np.float32)


def drift(then: float, now: float) -> float:
    """At most how many times an impact is today what it was when the mean length was another."""
    return max(1.0, now / then)


def capped(terms: LexicalWeights) -> LexicalWeights:
    """The counts, none of them more than `MOST_COUNT`."""
    values = np.minimum(terms.values, np.float32(MOST_COUNT)).astype(np.float32)
    return LexicalWeights(np.ascontiguousarray(terms.indices, np.int32), values)


def miscounted(terms: LexicalWeights) -> str | None:
    """What is wrong with counts of terms, or None."""
    if bool(np.any(terms.values != np.floor(terms.values))):
        return "a count is a whole number"
    return None


def no_terms() -> LexicalWeights:
    """Of a text without a token."""
    return LexicalWeights(np.empty(0, np.int32), np.empty(0, np.float32))


def row_lengths(offsets: Longs, counts: FloatArray) -> Longs:
    """The sums of rows' counts, row r's from offsets[r] to offsets[r + 1]. Shapes: [R + 1], [P] -> [R]."""
    sums = np.concatenate([[0.0], np.cumsum(counts, dtype=np.float64)])
    lengths: Longs = (sums[offsets[1:]] - sums[offsets[:-1]]).astype(np.int64)
    return lengths


def entry_impacts(offsets: Longs, counts: FloatArray, lengths: Longs, mean: float) -> FloatArray:
    """The impacts of all rows' counts. Shapes: [R + 1], [P], [R] -> [P]."""
    return impacts(counts, np.repeat(norms(lengths, mean), np.diff(offsets)))
