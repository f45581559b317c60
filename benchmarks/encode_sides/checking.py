"""Whether two sides compute the same thing: a side is timed only where it gives the base's embeddings."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.encode_sides.process import SideError, SideProcess
from benchmarks.encode_sides.protocol import Vectors, load_vectors
from benchmarks.encode_sides.registry import FLOAT32


def encode(
    side: SideProcess, texts: Sequence[str], max_length: int, batch_size: int | None, save: Path | None = None
) -> dict[str, Any]:
    """One call of a side."""
    request = {"encode": list(texts), "max_length": max_length, "batch_size": batch_size}
    return side.ask(request | ({"save": str(save)} if save else {}))


def check(
    base: SideProcess,
    peer: SideProcess,
    texts: Sequence[str],
    *,
    least: float,
    batch_sizes: tuple[bool, bool],
) -> dict[str, dict[str, float]]:
    """Cosines of all three outputs, text by text. Raises SideError where the peer computes something else.

    `batch_sizes` tells of each side whether it takes one; 4 makes it pad.
    """
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name) / "base.npz", Path(name) / "peer.npz"]
        for side, file, sized in zip((base, peer), files, batch_sizes, strict=True):
            encode(side, texts, 512, 4 if sized else None, file)
        found = compare(*map(load_vectors, files))
    # int8 is held to its dense vectors: a weight near zero may fall on either side of it.
    held = ("dense", "sparse", "colbert") if least >= FLOAT32 else ("dense",)
    for part in held:
        if not found[part]["smallest"] >= least:
            raise SideError(
                f"{peer.name}: {part} cosine {found[part]['smallest']} is below {least}: not timed"
            )
    return found


def compare(base: Sequence[Vectors], peer: Sequence[Vectors]) -> dict[str, dict[str, float]]:
    """Smallest and mean cosine of each output; ColBERT's is that of single tokens."""
    cosines: dict[str, list[float]] = {"dense": [], "sparse": [], "colbert": []}
    for ours, theirs in zip(base, peer, strict=True):
        if ours.colbert.shape != theirs.colbert.shape:
            raise SideError(f"{len(theirs.colbert) + 1} tokens where the base has {len(ours.colbert) + 1}")
        cosines["dense"].append(_cosine(ours.dense, theirs.dense))
        tokens = sorted({*ours.sparse, *theirs.sparse})
        weights = [np.array([side.sparse.get(token, 0.0) for token in tokens]) for side in (ours, theirs)]
        if tokens:
            cosines["sparse"].append(_cosine(*weights))
        cosines["colbert"] += [_cosine(a, b) for a, b in zip(ours.colbert, theirs.colbert, strict=True)]
    return {
        part: {"smallest": round(min(values), 6), "mean": round(sum(values) / len(values), 6)}
        for part, values in cosines.items()
        if values
    }


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else float(not a.any() and not b.any())
