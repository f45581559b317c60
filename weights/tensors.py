"""Named tensors inside memory-mapped files: what both checkpoint formats are read into.

A reader (`safetensors_file.py`, `torch_file.py`) finds out where each tensor lies and hands on a
`View`; nothing is copied until `Tensors.rows` asks. It writes nothing, and runs nothing of a file.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

MAX_DIMENSIONS = 32
MAX_VALUES = 2**48
"""Far above any tensor; below it, no product of sizes or strides leaves an int64."""


class CheckpointError(Exception):
    """A checkpoint cannot be used: the message names the file, the tensor, what was found, what to do."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a checkpoint says of one tensor, before any of its values is read.

    `offset` is where its first value lies in the file, in bytes; None where it is not row after row.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int | None


# Little-endian on disk in both formats. bfloat16 has no NumPy type: its bits are widened in `_to_float32`.
_FLOATS: Mapping[str, str] = {"float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}

ITEM_SIZES: Mapping[str, int] = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3": 1,
    "float8_e5m2": 1,
    "complex64": 8,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "uint8": 1,
    "bool": 1,
}
"""Bytes of one value; of these dtypes only the float ones of 16 bits and more can be read."""


def shown(name: object) -> str:
    """A name out of a file, safe to print: quoted, control characters escaped, cut when long."""
    text = name if isinstance(name, str) else f"<{type(name).__name__}>"
    return repr(text if len(text) <= 120 else text[:117] + "...")


def listed(names: Iterable[str]) -> str:
    """At most five names, then how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 5} more" if len(ordered) > 5 else ""
    return ", ".join(shown(name) for name in ordered[:5]) + more


def known_kind(head: bytes) -> str | None:
    """What a file is that is no checkpoint of its format, and what to do, told from its first 512 bytes."""
    text = head.lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the weights; run `git lfs pull`, or download the file itself"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, saved in place of the weights; download the file again"
    if head.startswith(b"PK"):
        return "is a PyTorch zip file, cut short, damaged or under another format's name; get it again"
    # The first value of PyTorch's format before 1.6 is a pickled long, 0x1950a86a20f9469cfc6c.
    if head[2:14] == b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" or head[257:262] == b"ustar":
        return (
            "is in PyTorch's format before 1.6, a bare pickle that Trivec does not read; if you trust it, "
            "load it in a current PyTorch and save it again as safetensors"
        )
    return None


class MappedFile:
    """A whole file mapped read-only. Raises CheckpointError where it is absent, empty or unreadable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as stream:
                self.size = path.stat().st_size
                if not self.size:
                    raise CheckpointError(f"{path}: the file is empty; download or copy it again")
                self.data = mmap.mmap(stream.fileno(), self.size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot open the file: {error}") from error

    def forget(self, start: int, stop: int) -> None:
        """Let go of the pages of bytes [start, stop), which would stay resident until the file is closed."""
        if hasattr(mmap, "MADV_DONTNEED"):
            start -= start % mmap.PAGESIZE
            self.data.madvise(mmap.MADV_DONTNEED, start, min(stop, self.size) - start)

    def close(self) -> None:
        """Unmap the file."""
        # An array of an unfinished read may still look at the pages; they go when it does.
        with contextlib.suppress(BufferError):
            self.data.close()


@dataclass(frozen=True, slots=True)
class View:
    """Where a tensor lies: the byte offset of its first value, and its strides in values.

    `Tensors` trusts it: the reader that makes one has checked that every value is inside the file.
    """

    file: MappedFile
    dtype: str
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in values, of a contiguous tensor."""
    strides = [1]
    for size in shape[:0:-1]:
        strides.append(strides[-1] * size)
    return tuple(reversed(strides[: len(shape)]))


class Tensors:
    """A read-only set of named tensors, over one file or several; a context manager."""

    def __init__(self, views: Mapping[str, View], files: Iterable[MappedFile]) -> None:
        self._views = dict(views)
        self._files = tuple(files)

    def names(self) -> tuple[str, ...]:
        """Every tensor's name, in alphabetical order."""
        return tuple(sorted(self._views))

    def info(self, name: str) -> TensorInfo:
        """What is known of a tensor without reading it. Raises KeyError for a name that is not there."""
        view = self._views[name]
        offset = view.offset if view.strides == row_major(view.shape) else None
        return TensorInfo(name, view.dtype, view.shape, view.file.path, offset)

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """A copy of rows [start, stop) along axis 0, as float32 in row-major order.

        Only these rows are paged in, and their pages are let go afterwards. Raises CheckpointError
        for a tensor that does not hold floating-point rows, KeyError and ValueError for a wrong call.
        """
        view = self._views[name]
        numpy_dtype = _FLOATS.get(view.dtype)
        if numpy_dtype is None:
            raise CheckpointError(
                f"{view.file.path}: tensor {shown(name)} holds {view.dtype} values; weights are float32, "
                "float16, bfloat16 or float64"
            )
        if not view.shape or 0 in view.shape:
            raise CheckpointError(
                f"{view.file.path}: tensor {shown(name)} of shape {view.shape} has no rows to read"
            )
        if not 0 <= start < stop <= view.shape[0]:
            raise ValueError(f"rows [{start}, {stop}) of {shown(name)}, which has {view.shape[0]}")
        item = ITEM_SIZES[view.dtype]
        shape = (stop - start, *view.shape[1:])
        first = view.offset + start * view.strides[0] * item
        mapped = np.ndarray(
            shape, numpy_dtype, view.file.data, first, tuple(stride * item for stride in view.strides)
        )
        rows = _to_float32(mapped, view.dtype)
        del mapped
        span = sum((size - 1) * stride for size, stride in zip(shape, view.strides, strict=True)) + 1
        view.file.forget(first, first + span * item)
        return rows

    def close(self) -> None:
        """Unmap the files; rows that were read stay valid, they are copies."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _to_float32(values: NDArray[np.generic], dtype: str) -> NDArray[np.float32]:
    if dtype == "bfloat16":
        words = values.astype(np.uint32, order="C")
        words <<= 16  # bfloat16 is the upper half of a float32
        return words.view(np.float32)
    # A float64 beyond float32 becomes inf, which the loader reports by the tensor's name.
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32, order="C", copy=True)
