"""The port between searching and storing: what a search needs of whoever holds the documents.

`Collection` holds them in SQLite, segments and memory; another store can stand behind the same port. What
must hold of each is written down as tests (tests/contract/test_index_port.py).

Legend: n documents, D hidden size. A key is the store's own number of a document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from app.index.bm25 import Asked, Statistics
from app.index.facts import Keys
from app.index.filters import Filter
from app.index.fusion import Legs
from app.index.values import LEGS, CollectionInfo, CollectionStats, Document, Leg, StoredDocument
from model.embedding import Embedding, FloatArray, IntArray, LexicalWeights

Finder = Leg
"""A leg that can put up candidates by itself."""

Found = tuple[Keys, FloatArray]
"""Keys and scores by which they were found, best first. BM25's is a bound: the true one is no higher."""


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Documents that exist, in ascending order of key, and their true scores. Shapes: [n]."""

    keys: Keys
    legs: Legs

    def joined(self, other: Scored) -> Scored:
        """Both; no document is in both."""
        keys = np.concatenate([self.keys, other.keys])
        order = np.argsort(keys)
        legs = {leg: np.concatenate([self.legs.of(leg), other.legs.of(leg)])[order] for leg in LEGS}
        return Scored(keys[order], Legs(**legs))


class View(Protocol):
    """The documents that a filter allows, as they are at one moment; changes meanwhile are not seen."""

    @property
    def count(self) -> int:
        """How many there are, about: candidates are asked for only where they are fewer."""
        ...

    @property
    def finders(self) -> frozenset[Finder]:
        """The legs that can put up candidates."""
        ...

    def statistics(self, terms: IntArray) -> Statistics:
        """What BM25 must know of these terms: of the whole collection, whatever the filter."""
        ...

    def candidates(
        self, query: Embedding, legs: Sequence[Finder], count: int, asked: Asked | None = None
    ) -> Mapping[Finder, Found]:
        """At least the `count` best documents of each leg, or all that it has.

        Dense may miss a few. BM25's are the best by their bounds, so no other document's true score is
        above the last bound.
        """
        ...

    def keys(self) -> Keys:
        """All of them, ascending."""
        ...

    def scores(self, keys: Keys, query: Embedding, asked: Asked | None = None) -> Scored:
        """All true scores of those that exist; NaN where query or document lacks what a leg needs.

        A store may leave out documents, here and below, that it knows to be damaged.
        """
        ...

    def ids(self, keys: Keys) -> Mapping[int, str]:
        """Documents' ids by their keys."""
        ...

    def documents(self, keys: Keys) -> Mapping[int, StoredDocument]:
        """Documents by their keys."""
        ...

    def embeddings(self, documents: Mapping[int, StoredDocument]) -> Mapping[int, Embedding]:
        """Their stored vectors, as far as the store keeps them exactly."""
        ...

    def counts(self, keys: Keys) -> Mapping[int, LexicalWeights]:
        """How often each term stands in these documents, where BM25 is kept."""
        ...


class Store(Protocol):
    """Documents of one model. A change is durable and seen by every later view when the call returns."""

    @property
    def info(self) -> CollectionInfo:
        """Widths, settings, model."""
        ...

    def upsert(self, documents: Sequence[Document]) -> list[int]:
        """Store or wholly replace; sequence numbers that only ever grow. All or none."""
        ...

    def delete(self, ids: Sequence[str]) -> int:
        """Delete by id; how many there were."""
        ...

    def delete_where(self, condition: Filter) -> int:
        """Delete what a filter allows; how many there were."""
        ...

    def get(self, doc_id: str) -> StoredDocument | None:
        """One document without its vectors."""
        ...

    def stats(self) -> CollectionStats:
        """Counts and sizes."""
        ...

    def view(self, condition: Filter | None) -> AbstractContextManager[View]:
        """What a search looks at."""
        ...
