"""A file of `torch.save` as views, without PyTorch and without unpickling.

Such a file is a zip of uncompressed members: `<root>/data.pkl` is a pickle that describes the
tensors, `<root>/data/<key>` are the storages with their values. The pickle is interpreted in
`torch_pickle.py`; here the zip is checked, and each described tensor is checked against its storage.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from weights.tensors import (
    ITEM_SIZES,
    MAX_DIMENSIONS,
    MAX_VALUES,
    CheckpointError,
    MappedFile,
    View,
    known_kind,
    shown,
)
from weights.torch_pickle import PickledTensor, PickleRefusedError, interpret

MAX_PICKLE_BYTES = 2 * 2**20
"""A model of 400 tensors has a data.pkl of about 100 KB. The limit bounds what a hostile one can cost."""

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")

_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""The keys under which training scripts put the weights beside other things."""


@dataclass(frozen=True, slots=True)
class _Member:
    """The byte range of one uncompressed zip member."""

    start: int
    size: int


def read_torch(file: MappedFile) -> dict[str, View]:
    """Find every tensor of the state dict in a mapped file.

    Raises CheckpointError where the file is of another kind, is cut short, asks for code to be run,
    or describes a tensor that does not lie inside its storage.
    """
    members = _members(file)
    root = _root(file.path, members)
    order = members.get(f"{root}byteorder")
    if order is not None and file.data[order.start : order.start + order.size].strip() != b"little":
        raise CheckpointError(
            f"{file.path}: its values are not little-endian; save it again on an x86 or ARM machine"
        )
    pickled = members[f"{root}data.pkl"]
    if pickled.size > MAX_PICKLE_BYTES:
        raise CheckpointError(
            f"{file.path}: data.pkl has {pickled.size} bytes and the limit is {MAX_PICKLE_BYTES}; "
            "save only the model's state_dict()"
        )
    try:
        content = interpret(file.data[pickled.start : pickled.start + pickled.size])
    except PickleRefusedError as error:
        raise CheckpointError(f"{file.path}: {error}; nothing of the file was run") from error
    state = _state_dict(file.path, content)
    return {name: _view(file, root, members, name, tensor) for name, tensor in state.items()}


def _members(file: MappedFile) -> dict[str, _Member]:
    """Every member by name, its local header checked against the central directory."""
    try:
        with file.path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError, ValueError, struct.error) as error:
        kind = (
            known_kind(file.data[:512])
            or "is not a file of torch.save, nor of another known kind; get it again"
        )
        raise CheckpointError(f"{file.path}: {kind} ({error})") from error
    if any(entry.orig_filename.endswith("/constants.pkl") for entry in entries):
        raise CheckpointError(
            f"{file.path}: is a TorchScript program, not weights; save the model's state_dict()"
        )
    members: dict[str, _Member] = {}
    for entry in entries:
        name = entry.orig_filename
        if name in members:
            raise CheckpointError(f"{file.path}: zip member {shown(name)} is there twice; get the file again")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 0x1:
            raise CheckpointError(
                f"{file.path}: zip member {shown(name)} is compressed or encrypted, which torch.save "
                "does not do; save it again with torch.save"
            )
        members[name] = _located(file, entry)
    return members


def _located(file: MappedFile, entry: zipfile.ZipInfo) -> _Member:
    """Where a member's bytes lie: only its local header knows, by the lengths of its name and extra field."""
    raw_name = entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437")
    start = entry.header_offset + _LOCAL_HEADER.size
    fits = entry.header_offset >= 0 and start <= file.size
    if fits:
        fields = _LOCAL_HEADER.unpack(file.data[entry.header_offset : start])
        fits = fields[0] == b"PK\x03\x04" and file.data[start : start + fields[9]] == raw_name
        start += fields[9] + fields[10]
    if not fits or entry.compress_size != entry.file_size or start + entry.file_size > file.size:
        raise CheckpointError(
            f"{file.path}: zip member {shown(entry.orig_filename)} is not where the zip's directory says; "
            "the file is damaged, get it again"
        )
    return _Member(start, entry.file_size)


def _root(path: Path, members: Mapping[str, _Member]) -> str:
    """The folder inside the zip, with its slash; torch names it after the file that was saved."""
    roots = [name.removesuffix("data.pkl") for name in members if name.split("/")[-1] == "data.pkl"]
    if len(roots) != 1:
        raise CheckpointError(
            f"{path}: is a zip file with {len(roots)} data.pkl in it, where torch.save writes one; "
            "it is not a checkpoint of PyTorch"
        )
    return roots[0]


def _state_dict(path: Path, content: object) -> dict[str, PickledTensor]:
    """The name -> tensor table, taken out of the wrapper that some training scripts put around it."""
    if isinstance(content, dict) and not any(isinstance(value, PickledTensor) for value in content.values()):
        inner = [content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)]
        if len(inner) == 1:
            content = inner[0]
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: holds no state dict; save the model's state_dict() with torch.save")
    state: dict[str, PickledTensor] = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, PickledTensor):
            raise CheckpointError(
                f"{path}: {shown(name)} is no tensor but {type(value).__name__}; "
                "save only the model's state_dict()"
            )
        state[name] = value
    return state


def _view(
    file: MappedFile, root: str, members: Mapping[str, _Member], name: str, tensor: PickledTensor
) -> View:
    """Check one described tensor against its storage, so that no read can leave it."""
    storage = tensor.storage
    problem = ""
    member = members.get(f"{root}data/{storage.key}")
    item = ITEM_SIZES[storage.dtype]
    last = tensor.offset + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True) if size > 1
    )
    values = 1
    for size in tensor.shape:
        values = min(values * size, MAX_VALUES)
    if member is None:
        problem = f"its storage {shown(storage.key)} is not in the file"
    elif member.size != storage.values * item:
        problem = f"its storage of {storage.values} {storage.dtype} values has {member.size} bytes"
    elif len(tensor.shape) > MAX_DIMENSIONS:
        problem = f"it has {len(tensor.shape)} dimensions"
    elif values and (last >= storage.values or values > storage.values):
        problem = f"its shape, strides and offset reach outside its storage of {storage.values} values"
    if member is None or problem:
        raise CheckpointError(
            f"{file.path}: tensor {shown(name)}: {problem}; the file is damaged or hostile, get it again"
        )
    # A dimension of size 1 may carry any stride; it is never stepped.
    strides = tuple(s if size > 1 else 0 for size, s in zip(tensor.shape, tensor.strides, strict=True))
    return View(file, storage.dtype, tensor.shape, member.start + tensor.offset * item, strides)
