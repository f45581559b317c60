"""Documents as they will be stored: every check, every encoding, before anything is written.

Legend: D hidden size, C ColBERT dimension. What is written is `changes.py`'s affair.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from app.index.codes import codec
from app.index.errors import DocumentInvalid
from app.index.facts import Fact, facts
from app.index.filters import is_unicode
from app.index.values import CollectionInfo, Document
from model.embedding import Embedding, FloatArray

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
        codes = _codes(document, info)
    except ValueError as error:
        raise DocumentInvalid(document.id, "colbert", str(error)) from error
    return Record(document.id, document.text, metadata, found, embedding, codes)


def _codes(document: Document, info: CollectionInfo) -> bytes | None:
    """Token vectors as they are stored; ValueError where they cannot be."""
    if document.embedding.colbert is None and document.codes is None:
        return None
    if not info.colbert_dim:
        raise ValueError("this collection holds no token vectors")
    keep = codec(info.settings.colbert, info.colbert_dim)
    if document.embedding.colbert is not None:
        return keep.encode(document.embedding.colbert)
    assert document.codes is not None
    keep.rows(document.codes)
    return document.codes


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
