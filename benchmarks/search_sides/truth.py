"""What the right answers are: every document's scores by brute force, from M3's equations in NumPy.

The corpus is walked through once, a batch at a time; only the scores stay. Legend: Q queries, N documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.search_sides.protocol import FILTERS, Ask, Condition
from benchmarks.synthetic import Batch, Corpus, Floats, Query

WEIGHTS = {"dense": 0.4, "lexical": 0.2, "colbert": 0.4}
"""Of the hybrid score: those of the model card, which are Trivec's default."""
STEP = 500


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """Shapes: `dense`, `lexical`, `colbert` [Q, N]; `allowed` [N] by the filter's name."""

    dense: Floats
    lexical: Floats
    colbert: Floats | None
    allowed: dict[str, NDArray[np.bool_]]

    @property
    def queries(self) -> int:
        """How many queries it knows: the first of all."""
        return len(self.dense)

    def best(self, ask: Ask) -> list[list[int]] | None:
        """The right documents of each query, best first; None where token rows were not looked at."""
        scores = self._scores(ask)
        if scores is None:
            return None
        if ask.filter is not None:
            scores = np.where(self.allowed[ask.filter], scores, -np.inf)
        if ask.mode == "lexical":
            scores = np.where(scores > 0, scores, -np.inf)  # no shared term is no hit
        order = np.argsort(-scores, axis=1, kind="stable")[:, : ask.k]
        return [
            [int(number) for number in row if np.isfinite(scores[place, number])]
            for place, row in enumerate(order)
        ]

    def _scores(self, ask: Ask) -> Floats | None:
        if ask.mode in ("dense", "lexical"):
            return self.dense if ask.mode == "dense" else self.lexical
        if self.colbert is None or ask.mode == "colbert":
            return self.colbert
        parts = {"dense": self.dense, "lexical": self.lexical, "colbert": self.colbert}
        blend: Floats = np.sum([WEIGHTS[name] * part for name, part in parts.items()], axis=0)
        return blend


def find(corpus: Corpus, queries: Sequence[Query], *, colbert: bool) -> Truth:
    """All scores of those queries."""
    dense = np.empty((len(queries), corpus.documents), np.float32)
    lexical = np.zeros_like(dense)
    maxsim = np.empty_like(dense) if colbert else None
    allowed = {name: np.zeros(corpus.documents, np.bool_) for name in FILTERS}
    vectors = np.stack([query.dense for query in queries])
    rows = np.concatenate([query.rows for query in queries])
    for batch in corpus.batches(STEP):
        here = slice(batch.first, batch.first + len(batch))
        dense[:, here] = vectors @ batch.dense.T
        lexical[:, here] = lexical_scores(batch, queries, corpus.vocabulary)
        for name, condition in FILTERS.items():
            allowed[name][here] = [holds(condition, one[condition.field]) for one in batch.metadata]
        if maxsim is not None:
            for place in range(len(batch)):
                similar = rows @ corpus.token_rows(batch, place).T  # [Q x 32, R]
                maxsim[:, batch.first + place] = similar.max(axis=1).reshape(len(queries), -1).mean(axis=1)
    return Truth(dense, lexical, maxsim, allowed)


def lexical_scores(batch: Batch, queries: Sequence[Query], vocabulary: int) -> Floats:
    """Sums of products of shared terms. Shape: [Q, documents of the batch]."""
    wanted = np.zeros(vocabulary, np.bool_)
    for query in queries:
        wanted[query.terms] = True
    shared = np.flatnonzero(wanted[batch.terms])
    of = np.repeat(np.arange(len(batch)), np.diff(batch.starts))[shared]
    terms, weights = batch.terms[shared], batch.weights[shared].astype(np.float64)
    found = np.empty((len(queries), len(batch)), np.float32)
    asked = np.zeros(vocabulary)
    for place, query in enumerate(queries):
        asked[query.terms] = query.weights
        found[place] = np.bincount(of, weights * asked[terms], minlength=len(batch))
        asked[query.terms] = 0
    return found


def holds(condition: Condition, value: str | int | bool) -> bool:
    """Whether a value fulfils a condition."""
    if condition.operator == "=":
        return value == condition.value
    return isinstance(value, int) and isinstance(condition.value, int) and value >= condition.value
