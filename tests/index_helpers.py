"""Random documents for the index's tests, and the brute-force scores that it must agree with."""

from __future__ import annotations

import math
from collections.abc import Mapping
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


def words(rng: np.random.Generator, most: int = 8, often: int = 4) -> LexicalWeights:
    """Random counts of terms, perhaps none; now and then those of a text that is many times as long."""
    terms = np.sort(rng.choice(VOCABULARY, int(rng.integers(0, most)), replace=False)).astype(np.int32)
    counts = rng.integers(1, often + 1, len(terms)) * (1 if rng.integers(5) else 25)
    return LexicalWeights(terms, counts.astype(np.float32))


def bm25(query: LexicalWeights, documents: Mapping[str, LexicalWeights]) -> dict[str, float]:
    """Each document's BM25 score among these, by the formula, in plain Python."""
    asked = dict(zip(query.indices.tolist(), query.values.tolist(), strict=True))
    counts = {
        name: dict(zip(one.indices.tolist(), one.values.tolist(), strict=True))
        for name, one in documents.items()
    }
    lengths = {name: sum(one.values()) for name, one in counts.items()}
    mean = sum(lengths.values()) / max(1, len(lengths))
    scores = dict.fromkeys(documents, 0.0)
    for term, times in asked.items():
        having = [name for name, one in counts.items() if term in one]
        idf = math.log(1 + (len(documents) - len(having) + 0.5) / (len(having) + 0.5))
        for name in having:
            tf = counts[name][term]
            norm = 1.2 * (1 - 0.75 + 0.75 * lengths[name] / mean)
            scores[name] += times * idf * tf * 2.2 / (tf + norm)
    return scores


def most_bm25(query: LexicalWeights, documents: Mapping[str, LexicalWeights]) -> float:
    """What the scores stay below: of a document that has each term for ever."""
    total = 0.0
    for term, times in zip(query.indices.tolist(), query.values.tolist(), strict=True):
        having = sum(term in one.indices for one in documents.values())
        total += times * math.log(1 + (len(documents) - having + 0.5) / (having + 0.5)) * 2.2
    return total or 1.0


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


def blend(scores: Mapping[str, float | None], use: FusionWeights, most: float = 1.0) -> float:
    """The hybrid score; what is missing counts 0, and BM25's is divided by the most that there can be."""
    dense, sparse, colbert = (scores[leg] or 0.0 for leg in ("dense", "sparse", "colbert"))
    return float(hybrid_score(use, dense, sparse, colbert, (scores.get("bm25") or 0.0) / most))


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
