"""Documents as they will be stored: every check, every encoding, before anything is written.

Legend: D hidden size, C ColBERT dimension. What is written is `changes.py`'s affair.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from app.index import bm25
from app.index.codes import codec
from app.index.errors import DocumentInvalid
from app.index.facts import Fact, facts
from app.index.filters import is_unicode
from app.index.pooling import pooled
from app.index.values import CollectionInfo, Document
from app.index.workers import Workers
from model.embedding import Embedding, FloatArray, LexicalWeights

MAX_ID_BYTES = 512


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """A document that has passed every check, encoded as it will be stored."""

    doc_id: str
    text: str
    metadata: str
    facts: set[Fact]
    embedding: Embedding
    """As given; dense and sparse are stored as they are."""
    codes: bytes | None
    """The token vectors as the collection's settings say."""
    tokens_of_row: bytes | None
    """Where they were pooled: how many tokens each has, uint16."""
    terms: LexicalWeights | None
    """Where the collection has BM25: the counts of the text's terms, none more than two bytes hold."""

    @property
    def length(self) -> int | None:
        """The sum of these counts."""
        return None if self.terms is None else int(self.terms.values.sum(dtype=np.float64))


def encode_all(documents: Sequence[Document], info: CollectionInfo, workers: Workers) -> list[Record]:
    """`encode` of each, in order, side by side where they bear token vectors; the first fault is raised."""
    count = workers.threads if any(one.embedding.colbert is not None for one in documents) else 1
    size = max(1, -(-len(documents) // count))

    def some(first: int) -> list[Record]:
        return [encode(one, info) for one in documents[first : first + size]]

    parts = workers.run([partial(some, first) for first in range(0, len(documents), size)])
    return [one for part in parts for one in part]


def encode(document: Document, info: CollectionInfo) -> Record:
    """Check a document against a collection; DocumentInvalid names the part that does not fit."""
    check_id(document.id)
    if not isinstance(document.text, str) or not is_unicode(document.text):
        raise DocumentInvalid(document.id, "text", "a string without lone surrogates is expected")
    try:
        found = facts(document.metadata)
        metadata = json.dumps(dict(document.metadata), ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise DocumentInvalid(document.id, "metadata", str(error)) from error
    embedding = document.embedding
    if not embedding.outputs and document.codes is None:
        raise DocumentInvalid(document.id, "embedding", "at least one of dense, sparse and colbert is needed")
    if (fault := misfit(embedding, info)) is not None:
        raise DocumentInvalid(document.id, *fault)
    try:
        codes, tokens_of_row = token_codes(document.embedding.colbert, info)
        if codes is None and document.codes is not None:
            codes = _given(document.codes, info)
    except ValueError as error:
        raise DocumentInvalid(document.id, "colbert", str(error)) from error
    terms = _terms(document, info)
    return Record(document.id, document.text, metadata, found, embedding, codes, tokens_of_row, terms)


def vector_parts(embedding: Embedding, terms: LexicalWeights | None) -> tuple[bytes | None, ...]:
    """Dense vector, lexical ids and weights, BM25's terms and counts as they are stored.

    Little endian float32, int32, float32, int32, uint16.
    """
    dense, sparse = embedding.dense, embedding.sparse
    return (
        None if dense is None else np.asarray(dense, "<f4").tobytes(),
        None if sparse is None else np.asarray(sparse.indices, "<i4").tobytes(),
        None if sparse is None else np.asarray(sparse.values, "<f4").tobytes(),
        None if terms is None else np.asarray(terms.indices, "<i4").tobytes(),
        None if terms is None else np.asarray(terms.values, "<u2").tobytes(),
    )


def _terms(document: Document, info: CollectionInfo) -> LexicalWeights | None:
    if not info.settings.bm25:
        return None
    if document.terms is None:
        reason = "this collection has bm25 and needs how often each token id stands in the text"
        raise DocumentInvalid(document.id, "terms", reason)
    if (fault := bm25.miscounted(document.terms)) is not None:
        raise DocumentInvalid(document.id, "terms", fault)
    return bm25.capped(document.terms)


def token_codes(vectors: FloatArray | None, info: CollectionInfo) -> tuple[bytes | None, bytes | None]:
    """Token vectors as they are stored, and where they are pooled, how many tokens each stored row has.

    ValueError where a value cannot be stored.
    """
    if vectors is None:
        return None, None
    keep = codec(info.settings.colbert, info.colbert_dim)
    if info.settings.colbert_pooling == 1:
        return keep.encode(vectors), None
    rows, groups = pooled(vectors, info.settings.colbert_pooling)
    return keep.encode(rows), np.bincount(groups).astype("<u2").tobytes()


def _given(codes: bytes, info: CollectionInfo) -> bytes:
    if not info.colbert_dim:
        raise ValueError("this collection holds no token vectors")
    codec(info.settings.colbert, info.colbert_dim).rows(codes)
    return codes


def check_id(document_id: object) -> None:
    """DocumentInvalid unless it is a non-empty string of at most 512 bytes of UTF-8."""
    if not isinstance(document_id, str) or not document_id or not is_unicode(document_id):
        raise DocumentInvalid(document_id, "id", "a non-empty string without lone surrogates is expected")
    if (size := len(document_id.encode())) > MAX_ID_BYTES:
        raise DocumentInvalid(document_id, "id", f"{size} bytes of UTF-8, the limit is {MAX_ID_BYTES}")


def misfit(embedding: Embedding, info: CollectionInfo) -> tuple[str, str] | None:
    """The first part of an embedding that does not fit a collection, and why."""
    shapes = (("dense", 1, info.hidden_size), ("colbert", 2, info.colbert_dim))
    for part, rank, width in shapes:
        vectors = getattr(embedding, part)
        if vectors is None:
            continue
        if vectors.ndim != rank or vectors.shape[-1] != width or not vectors.size:
            wanted = f"[{width}]" if rank == 1 else f"[rows, {width}]"
            return part, f"shape {list(vectors.shape)}, this collection holds {wanted}"
        if not _bounded(vectors):
            return part, "a value is NaN, infinite or too large to multiply"
    if embedding.sparse is not None and not _bounded(embedding.sparse.values):
        return "sparse", "a value is NaN, infinite or too large to multiply"
    if embedding.tokens < 0:
        return "tokens", f"{embedding.tokens} is negative"
    return None


def _bounded(vectors: FloatArray) -> bool:
    """Whether each row's squared length is a finite float32: then so is every product of two rows."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.einsum("...i,...i->...", vectors, vectors, dtype=np.float32)).all())
