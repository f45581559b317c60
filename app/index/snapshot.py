"""What a search sees of a collection: one read transaction and the derived state beside it.

Candidates come from the derived state, which may be a moment older or newer than the transaction. Nothing
else does: scores, texts and vectors of a hit are read in one transaction, so a document is wholly old or
wholly new, and a candidate that is gone by then is passed over.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from app.index import fetch
from app.index.bm25 import Asked, Statistics
from app.index.codes import codec
from app.index.derived import Derived, Usable
from app.index.digests import Report
from app.index.errors import StorageDamaged
from app.index.facts import Keys
from app.index.muvera import FixedEncoder
from app.index.port import Finder, Found, Scored
from app.index.truth import score
from app.index.values import CollectionInfo, StoredDocument
from app.index.workers import Workers
from model.embedding import Embedding, FloatArray, IntArray, LexicalWeights

_NONE: Found = (np.empty(0, np.int64), np.empty(0, np.float32))


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A `View` of a collection in SQLite."""

    connection: sqlite3.Connection
    collection: int
    info: CollectionInfo
    derived: Derived
    allowed: Keys | None
    """What the filter allows; None is everything."""
    workers: Workers
    report: Report
    """Hears of documents that are left out because they are damaged."""

    @property
    def count(self) -> int:
        """Documents that are allowed."""
        return self.derived.count if self.allowed is None else self.allowed.size

    @cached_property
    def usable(self) -> Usable:
        """The same as rows of the derived state."""
        return self.derived.usable(self.allowed)

    @property
    def finders(self) -> frozenset[Finder]:
        """Legs that can put up candidates."""
        found: set[Finder] = {"dense", "sparse"}
        layout = self.derived.recent.layout
        if "colbert" in layout.vectors:
            found.add("colbert")
        if "bm25" in layout.weights:
            found.add("bm25")
        return frozenset(found)

    def statistics(self, terms: IntArray) -> Statistics:
        """Documents and lengths are the transaction's; df is the derived state's, perhaps a moment older."""
        plain = np.ascontiguousarray(terms, np.int32)
        count, length = fetch.lengths(self.connection, self.collection)
        return Statistics(count, length, self.derived.frequencies("bm25", plain))

    def candidates(
        self, query: Embedding, legs: Sequence[Finder], count: int, asked: Asked | None = None
    ) -> dict[Finder, Found]:
        """The best documents of each leg, side by side."""
        _ = self.usable  # once, before the legs' threads ask for it
        tasks = [self._leg(leg, query, asked, count) for leg in legs]
        return dict(zip(legs, self.workers.run(tasks), strict=True))

    def _leg(self, leg: Finder, query: Embedding, asked: Asked | None, count: int) -> Callable[[], Found]:
        if leg == "bm25":
            return partial(self._bm25, asked, count)
        search = {"dense": self._dense, "sparse": self._sparse, "colbert": self._colbert}[leg]
        return partial(search, query, count)

    def _dense(self, query: Embedding, count: int) -> Found:
        if query.dense is None:
            return _NONE
        return self.derived.search_vectors("dense", query.dense, count, self.usable, self.workers)

    def _colbert(self, query: Embedding, count: int) -> Found:
        if query.colbert is None:
            return _NONE
        encoded = FixedEncoder.of(query.colbert.shape[1]).query(query.colbert)
        return self.derived.search_vectors("colbert", encoded, count, self.usable, self.workers)

    def _sparse(self, query: Embedding, count: int) -> Found:
        if query.sparse is None:
            return _NONE
        weights = LexicalWeights(
            np.ascontiguousarray(query.sparse.indices, np.int32),
            np.ascontiguousarray(query.sparse.values, np.float32),
        )
        return self.derived.search_weights("sparse", weights, count, self.usable, self.workers)

    def _bm25(self, asked: Asked | None, count: int) -> Found:
        if asked is None:
            return _NONE
        return self.derived.search_terms("bm25", asked, count, self.usable, self.workers)

    def keys(self) -> Keys:
        """All keys that are allowed, ascending."""
        return fetch.all_keys(self.connection, self.collection) if self.allowed is None else self.allowed

    def scores(self, keys: Keys, query: Embedding, asked: Asked | None = None) -> Scored:
        """All true scores of those that exist."""
        return score(self.connection, keys, query, asked, self.info, self.workers, self.report)

    def ids(self, keys: Keys) -> Mapping[int, str]:
        """Documents' ids by their keys."""
        return fetch.ids_by_key(self.connection, keys)

    def documents(self, keys: Keys) -> dict[int, StoredDocument]:
        """Documents by their keys."""
        return fetch.documents_by_key(self.connection, keys, self.report)

    def counts(self, keys: Keys) -> dict[int, LexicalWeights]:
        """Stored counts of terms. StorageDamaged where they are none."""
        found = fetch.vectors(self.connection, keys, colbert=False, report=self.report)
        counted: dict[int, LexicalWeights] = {}
        try:
            for key, terms, counts in zip(found.keys.tolist(), found.terms, found.counts, strict=True):
                if (one := fetch.counted(terms, counts)) is not None:
                    counted[key] = one
        except ValueError as error:
            raise StorageDamaged(f"stored terms cannot be read ({error}); restore a backup") from error
        return counted

    def embeddings(self, documents: Mapping[int, StoredDocument]) -> dict[int, Embedding]:
        """Stored vectors; token vectors as their codec gives them back, a pooled one for each of its tokens.

        StorageDamaged where it cannot.
        """
        wanted = np.array(sorted(documents), np.int64)
        found = fetch.vectors(self.connection, wanted, colbert=True, report=self.report)
        codes = codec(self.info.settings.colbert, self.info.colbert_dim)
        embeddings: dict[int, Embedding] = {}
        for place, key in enumerate(found.keys.tolist()):
            blob = found.codes[place]
            try:
                embeddings[key] = Embedding(
                    documents[key].tokens,
                    documents[key].truncated,
                    fetch.floats(found.dense[place]),
                    fetch.lexical(found.indices[place], found.values[place]),
                    None if blob is None else _spread(codes.decode(blob), found.tokens_of_row[place]),
                )
            except ValueError as error:
                raise StorageDamaged(f"stored vectors cannot be read ({error}); restore a backup") from error
        return embeddings


def _spread(rows: FloatArray, tokens_of_row: bytes | None) -> FloatArray:
    """Pooled token vectors, each as often as it has tokens."""
    return rows if tokens_of_row is None else np.repeat(rows, np.frombuffer(tokens_of_row, "<u2"), axis=0)
