"""Random documents for the index's tests, and the brute-force scores that it must agree with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from app.index.collection import Collection, CollectionSettings, Database
from model.embedding import Embedding, FloatArray, LexicalWeights
from model.scoring import FusionWeights, colbert_score, dense_score, hybrid_score, lexical_score

FINGERPRINT, WIDTH, COLBERT, VOCABULARY = "f1", 12, 8, 30


def unit(rng: np.random.Generator, *shape: int) -> FloatArray:
    """Random rows of length 1."""
    drawn = rng.standard_normal(shape)
    return (drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)).astype(np.float32)


def weights(rng: np.random.Generator, most: int = 8) -> LexicalWeights:
    """Random lexical weights, perhaps none; few terms, so that documents share some."""
    terms = np.sort(rng.choice(VOCABULARY, int(rng.integers(0, most)), replace=False)).astype(np.int32)
    return LexicalWeights(terms, (rng.random(len(terms)) + 0.01).astype(np.float32))


def embedding(rng: np.random.Generator, without: tuple[str, ...] = ()) -> Embedding:
    """All three outputs, but those named."""
    rows = int(rng.integers(1, 6))
    return Embedding(
        tokens=rows + 1,
        truncated=bool(rng.integers(2)),
        dense=None if "dense" in without else unit(rng, WIDTH),
        sparse=None if "sparse" in without else weights(rng),
        colbert=None if "colbert" in without else unit(rng, rows, COLBERT),
    )


def truth(query: Embedding, document: Embedding) -> dict[str, float | None]:
    """The score of each leg by the equations of `model.scoring`, one document at a time."""
    scores: dict[str, float | None] = {"dense": None, "sparse": None, "colbert": None}
    if query.dense is not None and document.dense is not None:
        scores["dense"] = dense_score(query.dense, document.dense)
    if query.sparse is not None and document.sparse is not None:
        scores["sparse"] = lexical_score(query.sparse, document.sparse)
    if query.colbert is not None and document.colbert is not None:
        scores["colbert"] = colbert_score(query.colbert, document.colbert)
    return scores


def blend(scores: dict[str, float | None], use: FusionWeights) -> float:
    """The hybrid score; what is missing counts 0."""
    return float(hybrid_score(use, scores["dense"] or 0.0, scores["sparse"] or 0.0, scores["colbert"] or 0.0))


def opened(folder: Path, fingerprint: str | None = FINGERPRINT) -> Database:
    """A data folder opened with the tests' model."""
    return Database(folder, fingerprint=fingerprint)


def made(database: Database, name: str = "c", settings: CollectionSettings | None = None) -> Collection:
    """A collection for `embedding`'s widths; float32, so that scores can be compared closely."""
    return database.create(
        name,
        settings or CollectionSettings(colbert="float32"),
        fingerprint=FINGERPRINT,
        hidden_size=WIDTH,
        colbert_dim=COLBERT,
    )
