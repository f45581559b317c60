"""Trivec itself: the library's front door with the options of the service. Options: `engine`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from app.loading import load_text_model
from app.settings import Settings
from benchmarks.encode_sides.protocol import Vectors, cores, serve
from model.embedding import Embedding


class TrivecSide:
    """It fills its own batches: a batch size is not asked for."""

    packages = ("tensorflow", "tokenizers", "numpy")
    threads = cores()

    def __init__(self, folder: Path, options: dict[str, str]) -> None:
        settings = Settings.model_validate({"checkpoint": str(folder), "engine": options["engine"]})
        self.embedder = load_text_model(settings, progress=False).embedder

    def encode(self, texts: list[str], max_length: int, batch_size: int | None) -> list[Embedding]:
        assert batch_size is None
        return self.embedder.encode(texts, max_length=max_length, progress=False)

    def unpack(self, found: Sequence[Embedding]) -> list[Vectors]:
        vectors = []
        for one in found:
            assert one.dense is not None and one.sparse is not None and one.colbert is not None
            sparse = dict(zip(one.sparse.indices.tolist(), one.sparse.values.tolist(), strict=True))
            vectors.append(Vectors(one.dense, sparse, one.colbert))
        return vectors


if __name__ == "__main__":
    serve(TrivecSide)
