"""FlagEmbedding's BGEM3FlagModel as its users run it, in float32. Run by TRIVEC_PEERS_PYTHON; no options.

Batch size None is its own default, 256. Its habits stay: it runs the first batch twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from FlagEmbedding import BGEM3FlagModel

from benchmarks.encode_sides.protocol import Vectors, cores, serve


class FlagEmbeddingSide:
    """All three outputs of `encode`."""

    packages = ("FlagEmbedding", "torch", "transformers", "tokenizers", "numpy")

    def __init__(self, folder: Path, options: dict[str, str]) -> None:
        torch.set_num_threads(cores())  # a container's limit would otherwise decide
        self.threads = torch.get_num_threads()
        self.model = BGEM3FlagModel(str(folder), use_fp16=False, devices=["cpu"])

    def encode(self, texts: list[str], max_length: int, batch_size: int | None) -> dict[str, Any]:
        chosen = {} if batch_size is None else {"batch_size": batch_size}
        return self.model.encode(
            texts,
            max_length=max_length,
            return_dense=True,
            return_sparse=True,
            return_colbert_vecs=True,
            **chosen,
        )

    def unpack(self, found: dict[str, Any]) -> list[Vectors]:
        return [
            Vectors(dense, {int(token): float(weight) for token, weight in weights.items()}, rows)
            for dense, weights, rows in zip(
                found["dense_vecs"], found["lexical_weights"], found["colbert_vecs"], strict=True
            )
        ]


if __name__ == "__main__":
    serve(FlagEmbeddingSide)
