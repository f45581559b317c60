"""The compiled kernels, before the first request needs them: a tiny collection is filled and searched.

What was compiled is kept on disk where that can be written, so this takes some seconds once and little later.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from app.index.collection import (
    WARMING,
    ColbertKind,
    CollectionSettings,
    Database,
    Document,
    SearchRequest,
)
from app.index.filters import parse
from model.embedding import Embedding, LexicalWeights

DOCUMENTS = 40


def warm_up(folder: Path, kinds: Iterable[ColbertKind] = ("float16",)) -> None:
    """Compile what collections of these kinds run. OSError where `folder` takes no files."""
    rng = np.random.default_rng(0)
    with (
        tempfile.TemporaryDirectory(prefix=WARMING, dir=folder) as place,
        Database(Path(place)) as database,
    ):
        for kind in sorted(set(kinds)):
            settings = CollectionSettings("rabitq", kind, colbert_candidates=True, bm25=True)
            collection = database.create(
                kind.lower(), settings, fingerprint="", hidden_size=64, colbert_dim=64
            )
            documents = [
                Document(str(number), "", _embedding(rng), {"number": number}, terms=_counts(number))
                for number in range(DOCUMENTS)
            ]
            collection.upsert(documents[: DOCUMENTS // 2])
            collection.seal(least=1)
            collection.upsert(documents[DOCUMENTS // 2 :])
            collection.delete(["0"])  # from here on living rows have to be counted
            for condition in (None, parse({"number": {"$gt": 5}})):
                one = documents[7]
                request = SearchRequest(
                    one.embedding, top_k=3, candidates=5, filter=condition, terms=one.terms
                )
                collection.search(replace(request, with_embeddings=True))
                collection.search(replace(request, mode="bm25"))


def _counts(number: int) -> LexicalWeights:
    return LexicalWeights(np.array([0, 1 + number], np.int32), np.array([1, 2], np.float32))


def _embedding(rng: np.random.Generator) -> Embedding:
    terms = np.sort(rng.choice(100, 12, replace=False)).astype(np.int32)
    return Embedding(
        tokens=9,
        dense=rng.standard_normal(64).astype(np.float32),
        sparse=LexicalWeights(terms, rng.random(12).astype(np.float32) + np.float32(0.1)),
        colbert=rng.standard_normal((8, 64)).astype(np.float32),
    )
