"""Golden outputs: a checkpoint's embeddings as the reference implementation computes them.

`golden.safetensors` lies beside the weights, in the tensor layout that every safetensors output of
Trivec has, with the texts in its metadata. The file is written by torch (`tests/make_golden.py`),
never by our own encoder. This room reads it; `selftest.py` compares.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors

from model.embedding import Embedding, LexicalWeights

GOLDEN_FILE = "golden.safetensors"


class GoldenError(ValueError):
    """There are no golden outputs for a checkpoint, or the file cannot be read."""


@dataclass(frozen=True, slots=True)
class Golden:
    """Texts and what the reference makes of them, in the same order."""

    source: str
    texts: tuple[str, ...]
    embeddings: tuple[Embedding, ...]


def read_golden(path: Path) -> Golden:
    """Read a golden file. Raises GoldenError where it is not one."""
    try:
        with safetensors.safe_open(path, "np") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        texts = json.loads(metadata["texts"])
        source = metadata["source"]
        counts = tensors["tokens"]
        sparse_at, colbert_at = tensors["sparse.offsets"], tensors["colbert.offsets"]
        embeddings = tuple(
            Embedding(
                tokens=int(counts[n]),
                dense=tensors["dense"][n],
                sparse=LexicalWeights(
                    tensors["sparse.indices"][sparse_at[n] : sparse_at[n + 1]],
                    tensors["sparse.values"][sparse_at[n] : sparse_at[n + 1]],
                ),
                colbert=tensors["colbert.values"][colbert_at[n] : colbert_at[n + 1]],
            )
            for n in range(len(texts))
        )
    except (OSError, safetensors.SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
        raise GoldenError(f"{path}: not a file of golden outputs: {error}") from error
    return Golden(source, tuple(texts), embeddings)


def largest_differences(ours: Embedding, golden: Embedding) -> dict[str, float]:
    """Largest absolute difference per head between two embeddings of one text.

    A lexical id that only one side has counts with its whole weight; a ColBERT matrix of another
    shape, or a head that is missing, is infinitely far away.
    """
    return {
        "dense": _array_difference(ours.dense, golden.dense),
        "sparse": _lexical_difference(ours.sparse, golden.sparse),
        "colbert": _array_difference(ours.colbert, golden.colbert),
    }


def _array_difference(ours: np.ndarray | None, golden: np.ndarray | None) -> float:
    if ours is None or golden is None or ours.shape != golden.shape:
        return float("inf")
    return float(np.abs(ours - golden).max(initial=0.0))


def _lexical_difference(ours: LexicalWeights | None, golden: LexicalWeights | None) -> float:
    if ours is None or golden is None:
        return float("inf")
    a = dict(zip(ours.indices.tolist(), ours.values.tolist(), strict=True))
    b = dict(zip(golden.indices.tolist(), golden.values.tolist(), strict=True))
    return float(max((abs(a.get(key, 0.0) - b.get(key, 0.0)) for key in a | b), default=0.0))
