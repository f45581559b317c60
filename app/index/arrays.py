"""Named arrays in one file that is mapped when it is read: the format of derived structures.

Layout: MAGIC, the arrays one after another (each starts at a multiple of 64 bytes), a directory as JSON, then
its length and checksum and MAGIC again. What is not whole or not as it was written is refused: whoever
reads such a file can build it anew. Not for data that exists nowhere else.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.index.errors import IndexFault

MAGIC = b"TRVCARR1"
ALIGNMENT = 64
_END = struct.Struct("<QI8s")  # directory's length and checksum, MAGIC
_DTYPES = {"b1", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8"}
_CHECKED_AT_ONCE = 8 * 2**20


class DerivedDamaged(IndexFault):
    """A derived file is missing, torn, altered or of another format: it has to be built anew."""


class ArrayWriter:
    """Writes arrays in turn; made by `writing`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w+b")
        self._file.write(MAGIC)
        self._directory: dict[str, dict[str, Any]] = {}

    def add(self, name: str, array: NDArray[Any]) -> None:
        """Write one array as a whole."""
        self.stream(name, array.dtype, array.shape, [array])

    def stream(
        self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], blocks: Iterable[NDArray[Any]]
    ) -> None:
        """Write one array of a known shape block by block, so that it need not be in memory."""
        kind = dtype.str[1:]
        if kind not in _DTYPES:
            raise ValueError(f"{name}: arrays of {dtype} are not stored")
        start = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
        self._file.seek(start)
        size = checksum = 0
        for block in blocks:
            plain = np.ascontiguousarray(block, dtype.newbyteorder("<"))
            data = plain.reshape(-1).view(np.uint8).data if plain.size else b""
            checksum = zlib.crc32(data, checksum)
            size += self._file.write(data)
        if size != int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
            raise ValueError(f"{name}: {size} bytes do not make an array of shape {shape}")
        self._directory[name] = {"dtype": kind, "shape": list(shape), "start": start, "crc": checksum}

    def written(self, name: str) -> NDArray[Any]:
        """An array that was written before, mapped."""
        self._file.flush()
        entry = self._directory[name]
        if not all(entry["shape"]):
            return np.empty(entry["shape"], entry["dtype"])
        return np.memmap(self._path, entry["dtype"], "r", entry["start"], tuple(entry["shape"]))

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Write the directory and what else is to be said of the file, and sync."""
        directory = json.dumps({"facts": dict(facts), "arrays": self._directory}).encode()
        self._file.write(directory + _END.pack(len(directory), zlib.crc32(directory), MAGIC))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file, finished or not."""
        self._file.close()


@contextmanager
def writing(target: Path) -> Iterator[ArrayWriter]:
    """Write aside; the file bears its name when the block has ended, and is gone when it raises."""
    work = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        writer = ArrayWriter(work)
        try:
            yield writer
        finally:
            writer.close()
        work.replace(target)
    finally:
        with suppress(OSError):
            work.unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """`mapped`, once the checksum of every array has been compared."""
    facts, arrays, directory = _opened(path)
    for name, array in arrays.items():
        if _checksum(array) != directory[name]["crc"]:
            raise DerivedDamaged(f"{path.name}: {name} is damaged")
    return facts, arrays


def mapped(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The facts and the arrays, mapped and read-only; the directory is checked, the arrays are not.

    Raises DerivedDamaged. The mapping stays while an array of it is in use, though the file be removed.
    """
    return _opened(path)[:2]


def _opened(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]], dict[str, Any]]:
    try:
        with path.open("rb") as file:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise DerivedDamaged(f"{path.name}: cannot be read: {error}") from error
    raw = np.frombuffer(view, np.uint8)
    try:
        directory = _directory(raw)
        arrays = {name: _array(raw, entry) for name, entry in directory["arrays"].items()}
        facts = dict(directory["facts"])
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise DerivedDamaged(f"{path.name}: {error}") from error
    return facts, arrays, directory["arrays"]


def _directory(raw: NDArray[np.uint8]) -> Any:
    if raw.size < len(MAGIC) + _END.size or raw[: len(MAGIC)].tobytes() != MAGIC:
        raise ValueError("is no file of arrays")
    length, checksum, magic = _END.unpack(raw[-_END.size :].tobytes())
    if magic != MAGIC or length > raw.size - _END.size - len(MAGIC):
        raise ValueError("ends early")
    source = raw[-_END.size - length : -_END.size].tobytes()
    if zlib.crc32(source) != checksum:
        raise ValueError("its directory is damaged")
    return json.loads(source)


def _array(raw: NDArray[np.uint8], entry: Mapping[str, Any]) -> NDArray[Any]:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"unknown type {entry['dtype']!r}")
    dtype, shape, start = np.dtype("<" + entry["dtype"]), tuple(map(int, entry["shape"])), int(entry["start"])
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if start < 0 or size < 0 or start + size > raw.size:
        raise ValueError("an array lies outside of the file")
    if start % dtype.itemsize:
        raise ValueError("an array is not aligned")
    part = raw[start : start + size]
    array: NDArray[Any] = part.view(dtype).reshape(shape)
    return array


def _checksum(array: NDArray[Any]) -> int:
    raw = array.reshape(-1).view(np.uint8)
    checksum = 0
    for first in range(0, raw.size, _CHECKED_AT_ONCE):
        checksum = zlib.crc32(raw[first : first + _CHECKED_AT_ONCE].data, checksum)
    return checksum
