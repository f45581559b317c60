"""The word embeddings, a gigabyte for BGE-M3, left in the file where they lie.

Legend: V vocabulary, D hidden, S tokens.
A text touches a few rows of the table. They are copied out when they are needed, and the pages that
held them are given back: the table stays in the system's page cache, shared by all processes, and
does not count as memory of this one.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from model.embedding import FloatArray, IntArray

# Little-endian on disk. NumPy has no bfloat16: its 16 bits are the upper half of a float32.
_STORED: Mapping[str, str] = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
STORED_TYPES = frozenset(_STORED)
"""What a file may hold to be mapped."""


class WordTable:
    """Word embeddings [V, D], looked up as float32."""

    def __init__(
        self, rows: NDArray[np.generic], *, bfloat16: bool = False, mapped: mmap.mmap | None = None
    ) -> None:
        """A table in memory; `in_file` makes one that stays where it is."""
        self._rows, self._bfloat16, self._mapped = rows, bfloat16, mapped

    @classmethod
    def in_file(cls, file: Path, offset: int, shape: tuple[int, ...], dtype: str) -> Self:
        """A table that lies row after row, `offset` bytes into a file; `dtype` is one of `STORED_TYPES`.

        The file must stay as it is. Raises OSError, or TypeError where it is too short.
        """
        with file.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        # Rows are picked at random: without this each page touched would bring fifteen neighbours along.
        if hasattr(mmap, "MADV_RANDOM"):
            mapped.madvise(mmap.MADV_RANDOM)
        rows = np.ndarray(shape, _STORED[dtype], mapped, offset)
        return cls(rows, bfloat16=dtype == "bfloat16", mapped=mapped)

    def rows(self, ids: IntArray) -> FloatArray:
        """The rows of token ids, a fresh array. Shapes: [S] -> [S, D]. Raises IndexError beyond V."""
        found = self._rows[ids]
        if self._mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)
        if self._bfloat16:
            wide = found.astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32)
        return found.astype(np.float32, copy=False)
