"""A checkpoint's fingerprint: what a collection remembers of the model that made its vectors.

The same weights give the same one, as safetensors or as a PyTorch file, in float16 or widened to
float32, with or without a prefix. It samples large tensors, so it is computed while they are
loaded; it tells checkpoints apart, and is no protection against one that was made to collide.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.config import EncoderConfig
from weights.mapping import Entry
from weights.tensors import CheckpointError

SAMPLED_BLOCKS = 64
SAMPLED_VALUES = 1024
"""The fingerprint covers this many blocks of this many values of each tensor."""


class TensorSample:
    """What the fingerprint keeps of one tensor: name, shape, and evenly spaced blocks of values.

    Values are taken as float32 in the checkpoint's orientation, so neither file format nor an exact
    change of dtype matters. All of a tensor is taken that is no longer than the blocks together.
    """

    def __init__(self, entry: Entry) -> None:
        self._hash = hashlib.sha256(f"{entry.variable} {entry.shape} ".encode())
        values = math.prod(entry.shape)
        if values <= SAMPLED_BLOCKS * SAMPLED_VALUES:
            self._blocks = [(0, values)]
        else:
            spread = values - SAMPLED_VALUES
            starts = (i * spread // (SAMPLED_BLOCKS - 1) for i in range(SAMPLED_BLOCKS))
            self._blocks = [(start, start + SAMPLED_VALUES) for start in starts]

    def add(self, start: int, rows: NDArray[np.float32]) -> None:
        """Take what the blocks want of the values from `start` on; chunks come in order."""
        flat = rows.reshape(-1)
        for first, stop in self._blocks:
            self.take(flat[max(first - start, 0) : max(stop - start, 0)])

    def take(self, values: NDArray[np.float32]) -> None:
        """Take the next values of the blocks themselves, [n]."""
        self._hash.update(values.astype("<f4").tobytes())

    @property
    def blocks(self) -> Sequence[tuple[int, int]]:
        """The [start, stop) of each block among the tensor's values, in order: all that is looked at."""
        return self._blocks

    def digest(self) -> bytes:
        """The digest, once every chunk was added."""
        return self._hash.digest()


def fingerprint(tokenizer: Path, config: EncoderConfig, digests: Mapping[str, bytes]) -> str:
    """SHA-256 in hex over the tokenizer file, the architecture and the digest of each variable's sample.

    Raises CheckpointError where the tokenizer file cannot be read.
    """
    try:
        text = tokenizer.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{tokenizer}: cannot read the tokenizer: {error}") from error
    architecture = json.dumps(dataclasses.asdict(config), sort_keys=True).encode()
    whole = hashlib.sha256(hashlib.sha256(text).digest() + hashlib.sha256(architecture).digest())
    for variable in sorted(digests):
        whole.update(digests[variable])
    return whole.hexdigest()
