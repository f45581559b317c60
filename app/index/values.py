"""The values that pass between the index and its callers: frozen, plain, without behaviour.

Legend: D hidden size, C ColBERT dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from app.index.bm25 import MatchedTerm
from app.index.codes import Kind as ColbertKind
from app.index.filters import Filter
from app.index.vectors import DenseKind
from model.embedding import Embedding, LexicalWeights, Output
from model.scoring import FusionWeights

MOST_POOLING = 8

Leg = Literal["dense", "sparse", "colbert", "bm25"]
"""What a document is scored by: the model's outputs, and BM25 over its tokens."""

LEGS: tuple[Leg, ...] = get_args(Leg)

Mode = Literal["hybrid", "dense", "sparse", "colbert", "bm25"]
Fusion = Literal["weighted", "rrf"]


@dataclass(frozen=True, slots=True)
class CollectionSettings:
    """What is chosen when a collection is made and holds for its life."""

    dense_index: DenseKind = "auto"
    """How dense candidates are found among many documents; `auto` chooses by size, `exact` looks at all."""
    colbert: ColbertKind = "float16"
    """How token vectors are stored; fewer bits make the file smaller and the scores less exact."""
    colbert_pooling: int = 1
    """Neighbouring token vectors that are nearly the same are merged until one in so many is left."""
    colbert_candidates: bool = False
    """Whether ColBERT puts up candidates by itself; 4 KB more on disk and 256 bytes in memory a document."""
    bm25: bool = False
    """Whether documents are also found and scored by BM25 over their whole texts' tokens."""
    fusion: FusionWeights = field(default_factory=FusionWeights)
    """The weights of a hybrid search that names none."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("dense_index", self.dense_index, get_args(DenseKind)),
            ("colbert", self.colbert, get_args(ColbertKind)),
        ):
            if value not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, not {value!r}")
        if not 1 <= self.colbert_pooling <= MOST_POOLING:
            raise ValueError(f"colbert_pooling is 1 to {MOST_POOLING}, not {self.colbert_pooling!r}")
        if self.fusion.bm25 and not self.bm25:
            raise ValueError("fusion gives bm25 a weight, and bm25 is off")


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """What a collection is, and which model's vectors it holds."""

    name: str
    settings: CollectionSettings
    fingerprint: str
    hidden_size: int
    colbert_dim: int
    """C; 0 where the checkpoint has no ColBERT head."""
    created: str
    """UTC, ISO 8601."""


@dataclass(frozen=True, slots=True)
class CollectionStats:
    """How much a collection holds; bytes as stored, without SQLite's own overhead."""

    count: int
    last_seq: int
    text_bytes: int
    metadata_bytes: int
    dense_bytes: int
    sparse_bytes: int
    colbert_bytes: int
    terms_bytes: int = 0
    """Token ids with their counts, for BM25."""
    length: int = 0
    """Tokens of all whole texts; counted for BM25 only."""


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """A document to store. Some of the embedding's outputs may be absent, not all of them."""

    id: str
    text: str
    embedding: Embedding
    metadata: Mapping[str, object] = field(default_factory=dict)
    codes: bytes | None = None
    """Token vectors as the collection's codec stores them, in place of `embedding.colbert`; not examined."""
    terms: LexicalWeights | None = None
    """How often each token id stands in the whole text; a collection with BM25 needs it, others ignore it."""


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document as it is stored, without its vectors."""

    id: str
    text: str
    metadata: Mapping[str, object]
    tokens: int
    truncated: bool
    seq: int
    """The collection's sequence number of this document's last change."""
    outputs: frozenset[Output]


@dataclass(frozen=True, slots=True, eq=False)
class SearchRequest:
    """One search. Of `query` only the vectors are read; those of absent outputs are not needed.

    `terms` says how often each token id stands in the query's text: what BM25 searches for.
    """

    query: Embedding
    mode: Mode = "hybrid"
    fusion: Fusion = "weighted"
    weights: FusionWeights | None = None
    """None takes the collection's."""
    top_k: int = 10
    candidates: int | None = None
    """How many documents each leg puts up, at least `top_k`; None begins with 100 and takes more while
    others could still reach the top."""
    filter: Filter | None = None
    exact: bool = False
    """Score every document that the filter allows, not only the legs' candidates."""
    with_embeddings: bool = False
    """Hand out each hit's stored vectors, as an explanation of its score needs them."""
    most_bytes: int | None = None
    """Of the hits' texts, metadata and vectors; HitsTooLarge for more."""
    terms: LexicalWeights | None = None


@dataclass(frozen=True, slots=True)
class LegScores:
    """The true score of each leg; None where the query or the document lacks that output.

    `bm25` is None where the collection has none, or the query came without the terms of a text.
    """

    dense: float | None
    sparse: float | None
    colbert: float | None
    bm25: float | None = None


@dataclass(frozen=True, slots=True)
class LegRanks:
    """The place in each leg among the candidates, from 1; equals share a place, as in sport (1, 2, 2, 4).

    None where the leg has no score, or the lexical or the BM25 score is 0: no shared token is no place.
    """

    dense: int | None
    sparse: int | None
    colbert: int | None
    bm25: int | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """One document found, best first in its list; its score, text and vectors are of one version."""

    id: str
    score: float
    scores: LegScores
    ranks: LegRanks
    text: str
    metadata: Mapping[str, object]
    tokens: int
    truncated: bool
    seq: int
    embedding: Embedding | None = None
    """The stored vectors, where the request asked for them."""
    terms: tuple[MatchedTerm, ...] = ()
    """Where the request asked for vectors: what the BM25 score is the sum of."""
