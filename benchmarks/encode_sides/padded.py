"""What the torch, ONNX Runtime and OpenVINO sides share: sorted, padded batches and M3's heads.

The usual way to serve an encoder well without packing: sort by length, pad each batch to its longest text,
drop the pads before the heads. Legend: B texts, T tokens of the longest, D hidden, C ColBERT dimension,
R real tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from benchmarks.encode_sides.protocol import Vectors

Run = Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]
"""Token ids, mask and positions [B, T] to hidden states [B, T, D]."""

Project = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""A linear head: [R, D] to [R, C]."""


def linear(weight: NDArray[np.float32], bias: NDArray[np.float32]) -> Project:
    """A head in NumPy."""
    return lambda rows: rows @ weight.T + bias


class PaddedSide:
    """A side of the protocol around any `run`."""

    def __init__(self, folder: Path, run: Run, *, colbert: Project, sparse: Project) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.pad = int(config["pad_token_id"])
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        tokens = ("<s>", "</s>", "<pad>", "<unk>")
        self.unused = np.array([self.tokenizer.token_to_id(token) for token in tokens])
        self.run, self.colbert, self.sparse = run, colbert, sparse

    def encode(self, texts: list[str], max_length: int, batch_size: int | None) -> list[Vectors]:
        assert batch_size is not None
        self.tokenizer.enable_truncation(max_length)
        ids = [np.array(one.ids, np.int64) for one in self.tokenizer.encode_batch(texts)]
        found: dict[int, Vectors] = {}
        order = sorted(range(len(ids)), key=lambda number: -len(ids[number]))
        for begin in range(0, len(order), batch_size):
            batch = order[begin : begin + batch_size]
            found |= zip(batch, self._batch([ids[number] for number in batch]), strict=True)
        return [found[number] for number in range(len(texts))]

    def unpack(self, found: list[Vectors]) -> list[Vectors]:
        return found

    def _batch(self, batch: list[NDArray[np.int64]]) -> list[Vectors]:
        lengths = [len(ids) for ids in batch]
        padded = np.full((len(batch), max(lengths)), self.pad, np.int64)
        mask = np.zeros_like(padded)
        for row, ids in enumerate(batch):
            padded[row, : len(ids)] = ids
            mask[row, : len(ids)] = 1
        hidden = self.run(padded, mask, self.pad + mask.cumsum(axis=1) * mask)
        dense = unit(hidden[:, 0])
        real = hidden[mask.astype(bool)]  # [R, D]
        vectors, weights = unit(self.colbert(real)), np.maximum(self.sparse(real)[:, 0], 0)
        ends = np.cumsum(lengths)
        return [
            Vectors(
                dense[row],
                self._lexical(ids, weights[end - len(ids) : end]),
                vectors[end - len(ids) + 1 : end],
            )
            for row, (ids, end) in enumerate(zip(batch, ends, strict=True))
        ]

    def _lexical(self, ids: NDArray[np.int64], weights: NDArray[np.float32]) -> Mapping[int, float]:
        distinct, place = np.unique(ids, return_inverse=True)
        largest = np.zeros(len(distinct), np.float32)
        np.maximum.at(largest, place, weights)
        kept = (largest > 0) & ~np.isin(distinct, self.unused)
        return dict(zip(distinct[kept].tolist(), largest[kept].tolist(), strict=True))


def unit(rows: NDArray[Any]) -> NDArray[Any]:
    """Rows of length 1."""
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)
