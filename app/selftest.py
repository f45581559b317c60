"""`trivec selftest`: does this machine compute what the reference computes?

With BAAI/bge-m3 the published outputs decide (`published.py`), with any other checkpoint the
golden outputs that lie beside its weights (`golden.py`). It needs no network and no index.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app import published
from app.golden import GOLDEN_FILE, GoldenError, largest_differences, read_golden
from model.embedder import Embedder
from model.embedding import OUTPUTS, Embedding
from model.scoring import FusionWeights, colbert_score, dense_score, hybrid_score, lexical_score

# Published scores were printed from fp16 runs in part, so even float32 keeps 1e-3 to them.
PUBLISHED_TOLERANCE = {"float32": 1e-3, "float16": 2e-3, "bfloat16": 1e-2, "int8": 3e-2}
# Golden outputs are float32: what remains is the order of additions on another processor.
GOLDEN_TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 5e-2, "int8": 5e-2}


@dataclass(frozen=True, slots=True)
class Check:
    """One head: its largest difference from the reference and what is allowed."""

    head: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """False for a difference that is not a number, too."""
        return self.difference <= self.tolerance


def is_published(name: str, folder: Path) -> bool:
    """True where the operator named BAAI/bge-m3, or a folder of that name without golden outputs."""
    return name.rstrip("/").lower().endswith("bge-m3") and not (folder / GOLDEN_FILE).exists()


def run_selftest(embedder: Embedder, folder: Path, *, published: bool, precision: str) -> list[Check]:
    """One check per head. Raises GoldenError where there is nothing to compare with."""
    if published:
        if set(embedder.engine.outputs) != set(OUTPUTS):
            raise GoldenError("the published outputs need all three heads; this checkpoint serves dense only")
        return _worst(_published_differences(embedder), PUBLISHED_TOLERANCE[precision])
    path = folder / GOLDEN_FILE
    if not path.exists():
        raise GoldenError(
            f"{path} is missing, so there is nothing to compare with; "
            "if these are the weights of BAAI/bge-m3, say so with --published"
        )
    golden = read_golden(path)
    ours = embedder.encode(golden.texts, max_length=embedder.max_length, progress=False)
    differences = (
        (head, difference)
        for one, reference in zip(ours, golden.embeddings, strict=True)
        for head, difference in largest_differences(one, reference).items()
        if head in embedder.engine.outputs
    )
    return _worst(differences, GOLDEN_TOLERANCE[precision])


def _worst(differences: Iterator[tuple[str, float]], tolerance: float) -> list[Check]:
    found: dict[str, list[float]] = {}
    for head, difference in differences:
        found.setdefault(head, []).append(difference)
    # np.max, unlike max, lets a NaN through wherever it stands.
    return [Check(head, float(np.max(values)), tolerance) for head, values in found.items()]


def _published_differences(embedder: Embedder) -> Iterator[tuple[str, float]]:
    queries = embedder.encode(published.QUERIES, kind="query", progress=False)
    passages = embedder.encode(published.PASSAGES, progress=False)
    pairs = [(i, j, q, p) for i, q in enumerate(queries) for j, p in enumerate(passages)]
    for (i, j, query, passage), hybrid in zip(pairs, published.HYBRID, strict=True):
        dense, sparse, colbert = _scores(query, passage)
        yield "dense", abs(dense - published.DENSE[i][j])
        yield "sparse", abs(sparse - published.SPARSE[i][j])
        yield "colbert", abs(colbert - published.COLBERT[i][j])
        yield "hybrid", abs(float(hybrid_score(FusionWeights(), dense, sparse, colbert)) - hybrid)
    for text, weights in published.TOKEN_WEIGHTS.items():
        sparse_vector = embedder.encode([text], outputs=["sparse"], progress=False)[0].sparse
        assert sparse_vector is not None
        ours = dict(zip(sparse_vector.indices.tolist(), sparse_vector.values.tolist(), strict=True))
        yield "sparse", max(abs(ours.get(key, 0.0) - weights.get(key, 0.0)) for key in ours | dict(weights))
    for text, edges in published.DENSE_EDGES.items():
        dense_vector = embedder.encode([text], outputs=["dense"], progress=False)[0].dense
        assert dense_vector is not None
        yield "dense", float(np.abs(np.r_[dense_vector[:3], dense_vector[-3:]] - edges).max())
    for text, rows in published.COLBERT_ROWS.items():
        vectors = embedder.encode([text], outputs=["colbert"], progress=False)[0].colbert
        assert vectors is not None
        yield "colbert", float(abs(len(vectors) - rows))


def _scores(query: Embedding, passage: Embedding) -> tuple[float, float, float]:
    assert query.dense is not None and query.sparse is not None and query.colbert is not None
    assert passage.dense is not None and passage.sparse is not None and passage.colbert is not None
    return (
        dense_score(query.dense, passage.dense),
        lexical_score(query.sparse, passage.sparse),
        colbert_score(query.colbert, passage.colbert),
    )
