"""Scores of documents that lie one after another in memory: exact dense products, lexical sums and BM25.

Legend: n documents, D hidden size, P entries of all documents' lexical weights, q terms of the query.
Sums are taken in float64 and in the order of storage, so equal documents score equal wherever they lie.
NumPy's products are not used: the threads of its BLAS spin after each one, on cores that the model needs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from app.index.compiled import kernel, loose_kernel
from model.embedding import FloatArray, IntArray

Offsets = NDArray[np.int64]


@loose_kernel
def dense_scores(query: FloatArray, matrix: FloatArray) -> FloatArray:
    """Inner products, for finding candidates. Shapes: [D], [n, D] -> [n]."""
    scores = np.empty(matrix.shape[0], np.float32)
    for row in range(matrix.shape[0]):
        total = np.float32(0)
        for at in range(matrix.shape[1]):
            total += matrix[row, at] * query[at]
        scores[row] = total
    return scores


@loose_kernel
def exact_dense_scores(query: FloatArray, matrix: FloatArray) -> FloatArray:
    """Inner products, summed in float64. Shapes: [D], [n, D] -> [n]."""
    scores = np.empty(matrix.shape[0], np.float32)
    for row in range(matrix.shape[0]):
        total = 0.0
        for at in range(matrix.shape[1]):
            total += np.float64(matrix[row, at]) * np.float64(query[at])
        scores[row] = np.float32(total)
    return scores


@kernel
def lexical_scores(
    query_terms: IntArray,
    query_weights: FloatArray,
    offsets: Offsets,
    terms: IntArray,
    weights: FloatArray,
) -> FloatArray:
    """The sum of w_q * w_d over shared terms. Shapes: [q], [q], [n + 1], [P], [P] -> [n].

    Terms ascend within the query and within each document.
    """
    documents = len(offsets) - 1
    scores = np.zeros(documents, np.float32)
    for row in range(documents):
        at, end = offsets[row], offsets[row + 1]
        total = 0.0
        for place in range(len(query_terms)):
            term = query_terms[place]
            while at < end and terms[at] < term:
                at += 1
            if at < end and terms[at] == term:
                total += np.float64(query_weights[place]) * np.float64(weights[at])
        scores[row] = np.float32(total)
    return scores


@kernel
def term_scores(
    query_terms: IntArray,
    query_weights: FloatArray,
    offsets: Offsets,
    terms: IntArray,
    counts: FloatArray,
    most: float,
    norm: float,
    norm_each: float,
) -> FloatArray:
    """BM25: the sum of w_q * tf * most / (tf + norm + norm_each * length) over shared terms.

    Shapes: [q], [q], [n + 1], [P], [P] -> [n]. Terms ascend; a document's length is the sum of its counts.
    """
    documents = len(offsets) - 1
    scores = np.zeros(documents, np.float32)
    for row in range(documents):
        at, end = offsets[row], offsets[row + 1]
        total, own = 0.0, -1.0
        for place in range(len(query_terms)):
            term = query_terms[place]
            while at < end and terms[at] < term:
                at += 1
            if at < end and terms[at] == term:
                if own < 0:  # of the few documents that share a term
                    length = 0.0
                    for entry in range(offsets[row], end):
                        length += np.float64(counts[entry])
                    own = norm + norm_each * length
                count = np.float64(counts[at])
                total += np.float64(query_weights[place]) * count * most / (count + own)
        scores[row] = np.float32(total)
    return scores


@kernel
def term_frequencies(
    query_terms: IntArray, offsets: Offsets, terms: IntArray, alive: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """How many living documents have each term. Shapes: [q], [n + 1], [P], [n] -> [q]. Terms ascend."""
    found = np.zeros(len(query_terms), np.int64)
    for row in range(len(offsets) - 1):
        if not alive[row]:
            continue
        at, end = offsets[row], offsets[row + 1]
        for place in range(len(query_terms)):
            term = query_terms[place]
            while at < end and terms[at] < term:
                at += 1
            found[place] += at < end and terms[at] == term
    return found
