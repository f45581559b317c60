"""A safetensors file as views: a JSON header that says where each tensor lies, then the values.

The header is read by ourselves, not by the `safetensors` package, for two things that it does not
offer: reading a tensor by rows, and letting go of the pages that were read. Source of the format:
the README of huggingface/safetensors; where that leaves a choice to the reader, this one refuses.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from weights.tensors import (
    ITEM_SIZES,
    MAX_DIMENSIONS,
    MAX_VALUES,
    CheckpointError,
    MappedFile,
    View,
    known_kind,
    row_major,
    shown,
)

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

_DTYPES: Mapping[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


def read_safetensors(file: MappedFile) -> dict[str, View]:
    """Find every tensor of a mapped safetensors file.

    Raises CheckpointError where the header is not what the format says, or lies about the file:
    unknown dtype, a size that does not fit the shape, values outside the file, overlaps, gaps.
    """
    header, base = _header(file)
    views: dict[str, View] = {}
    ranges: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            _check_metadata(file.path, entry)
            continue
        view, start, stop = _view(file, base, name, entry)
        views[name] = view
        ranges.append((start, stop, name))
    _check_cover(file.path, ranges, file.size - base)
    return views


def parse_json_object(path: Path, text: bytes) -> dict[str, object]:
    """A JSON object in UTF-8 without a repeated key. Raises CheckpointError naming the file."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) == len(pairs):
            return found
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise CheckpointError(f"{path}: {shown(key)} is there twice; the file is damaged or hostile")
            seen.add(key)
        return found

    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, an endless number, deep nesting
        raise CheckpointError(
            f"{path}: not readable as JSON ({error}); the file is damaged, get it again"
        ) from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path}: a JSON object is expected, not {type(parsed).__name__}")
    return parsed


def _header(file: MappedFile) -> tuple[dict[str, object], int]:
    """The header and the offset of the first value."""
    length = int.from_bytes(file.data[:8], "little")
    if file.size < 8 or length > min(MAX_HEADER_BYTES, file.size - 8):
        kind = known_kind(file.data[:512]) or (
            f"would have a safetensors header of {length} bytes, and the file has {file.size}; "
            "it is cut short or of another kind, get it again"
        )
        raise CheckpointError(f"{file.path}: {kind}")
    text = file.data[8 : 8 + length]
    if not text.startswith(b"{"):
        raise CheckpointError(f"{file.path}: no safetensors header at the start; get the file again")
    return parse_json_object(file.path, text), 8 + length


def _check_metadata(path: Path, entry: object) -> None:
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise CheckpointError(f"{path}: __metadata__ must map names to strings; the file is damaged")


def _view(file: MappedFile, base: int, name: str, entry: object) -> tuple[View, int, int]:
    """One tensor's view, and its byte range counted from `base`."""

    def refuse(problem: str) -> NoReturn:
        raise CheckpointError(
            f"{file.path}: tensor {shown(name)}: {problem}; the header does not fit the file, get it again"
        )

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        refuse("its entry must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        refuse(f"unknown dtype {shown(dtype)}")
    if not _sizes(shape) or len(shape) > MAX_DIMENSIONS or math.prod(shape) > MAX_VALUES:
        refuse("its shape is not a list of sizes")
    if not _sizes(offsets) or len(offsets) != 2:
        refuse("data_offsets is not a pair of offsets")
    start, stop = offsets
    if not start <= stop <= file.size - base:
        refuse(f"bytes {start} to {stop} are not inside the {file.size - base} bytes of values")
    needed = math.prod(shape) * ITEM_SIZES[_DTYPES[dtype]]
    if stop - start != needed:
        refuse(f"shape {shape} of {dtype} takes {needed} bytes, and data_offsets gives {stop - start}")
    return View(file, _DTYPES[dtype], tuple(shape), base + start, row_major(tuple(shape))), start, stop


def _sizes(value: object) -> bool:
    # `type`, because a JSON true is an int to isinstance; the limit keeps products of 32 sizes printable.
    return isinstance(value, list) and all(type(size) is int and 0 <= size <= 2**62 for size in value)


def _check_cover(path: Path, ranges: list[tuple[int, int, str]], total: int) -> None:
    """The values must lie one after another and fill the file: no byte in two tensors or in none."""
    end = 0
    for start, stop, name in sorted(ranges):
        if start != end:
            what = (
                "overlaps the one before" if start < end else f"leaves {start - end} bytes before it unused"
            )
            raise CheckpointError(f"{path}: tensor {shown(name)} {what}; the file is damaged or hostile")
        end = stop
    if end != total:
        raise CheckpointError(
            f"{path}: {total - end} bytes after the last tensor are of none; the file is damaged or hostile"
        )
