"""The true scores of given documents, from what SQLite holds of them.

Dense, lexical and BM25 scores are exact, MaxSim is of the token vectors as the collection's codec keeps them.
Legend: n documents, M query vectors, D hidden size.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from app.index import fetch
from app.index.bm25 import K1, Asked
from app.index.codes import codec
from app.index.deferred import kernels
from app.index.digests import Report
from app.index.errors import StorageDamaged
from app.index.facts import Keys
from app.index.fusion import Legs
from app.index.port import Scored
from app.index.values import LEGS, CollectionInfo
from app.index.workers import Workers
from model.embedding import Embedding, LexicalWeights

PAGE = 16
"""Documents that are read together: their token vectors are scored while the next ones are read."""


def score(
    connection: sqlite3.Connection,
    keys: Keys,
    query: Embedding,
    asked: Asked | None,
    info: CollectionInfo,
    workers: Workers,
    report: Report,
) -> Scored:
    """All scores of those keys that exist, as the connection's transaction sees them.

    Damaged documents are reported and left out. NaN where query or document lacks what a leg needs.
    StorageDamaged where stored bytes make no vectors.
    """

    def reading() -> Iterator[Callable[[], Scored]]:
        for page in _pages(keys):
            found = fetch.vectors(connection, page, colbert=query.colbert is not None, report=report)
            yield partial(_scored, found, query, asked, info)

    pages = workers.run_as_made(reading())
    if len(pages) == 1:
        return pages[0]
    empty = np.empty(0, np.float64)
    legs = {leg: np.concatenate([empty, *(page.legs.of(leg) for page in pages)]) for leg in LEGS}
    return Scored(np.concatenate([np.empty(0, np.int64), *(page.keys for page in pages)]), Legs(**legs))


def _pages(keys: Keys) -> list[Keys]:
    keys = np.sort(keys)
    return [keys[first : first + PAGE] for first in range(0, len(keys), PAGE)]


def _scored(found: fetch.Vectors, query: Embedding, asked: Asked | None, info: CollectionInfo) -> Scored:
    try:
        legs = Legs(
            _dense(query, found.dense, info.hidden_size),
            _sparse(query, found.indices, found.values),
            _colbert(query, found.codes, info),
            _bm25(asked, found.terms, found.counts),
        )
    except ValueError as error:
        raise StorageDamaged(f"stored vectors cannot be read ({error}); restore a backup") from error
    return Scored(found.keys, legs)


def _dense(query: Embedding, blobs: Sequence[bytes | None], width: int) -> NDArray[np.float64]:
    scores = np.full(len(blobs), np.nan)
    present = [place for place, blob in enumerate(blobs) if blob is not None]
    if query.dense is not None and present:
        joined = b"".join(blob for blob in blobs if blob is not None)
        matrix = np.frombuffer(joined, "<f4").reshape(len(present), width)  # [n, D]
        scores[present] = kernels.exact_dense_scores(np.ascontiguousarray(query.dense, np.float32), matrix)
    return scores


def _sparse(
    query: Embedding, indices: Sequence[bytes | None], values: Sequence[bytes | None]
) -> NDArray[np.float64]:
    scores = np.full(len(indices), np.nan)
    present = [place for place, blob in enumerate(indices) if blob is not None]
    if query.sparse is not None and present:
        offsets, terms, weights = _rows(indices, values, "<f4")
        scores[present] = kernels.lexical_scores(*_plain(query.sparse), offsets, terms, weights)
    return scores


def _bm25(
    asked: Asked | None, terms: Sequence[bytes | None], counts: Sequence[bytes | None]
) -> NDArray[np.float64]:
    scores = np.full(len(terms), np.nan)
    present = [place for place, blob in enumerate(terms) if blob is not None]
    if asked is not None and present:
        offsets, ids, numbers = _rows(terms, counts, "<u2")
        norm, each = asked.norm
        scores[present] = kernels.term_scores(
            *_plain(asked.weights), offsets, ids, numbers, K1 + 1, norm, each
        )
    return scores


def _rows(
    terms: Sequence[bytes | None], values: Sequence[bytes | None], kind: str
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """Offsets, ascending terms and values of the documents that have them, one after another."""
    lengths = [len(blob) // 4 for blob in terms if blob is not None]
    ids = np.frombuffer(b"".join(blob for blob in terms if blob is not None), "<i4")
    numbers = np.frombuffer(b"".join(blob for blob in values if blob is not None), kind)
    if len(ids) != len(numbers):
        raise ValueError(f"{len(ids)} terms with {len(numbers)} values")
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return offsets, ids, numbers.astype(np.float32, copy=False)


def _plain(weights: LexicalWeights) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    return np.ascontiguousarray(weights.indices, np.int32), np.ascontiguousarray(weights.values, np.float32)


def _colbert(query: Embedding, codes: Sequence[bytes | None], info: CollectionInfo) -> NDArray[np.float64]:
    scores = np.full(len(codes), np.nan)
    present = [place for place, blob in enumerate(codes) if blob is not None]
    if query.colbert is not None and present:
        blobs = [blob for blob in codes if blob is not None]
        scores[present] = codec(info.settings.colbert, info.colbert_dim).maxsim(query.colbert, blobs)
    return scores
