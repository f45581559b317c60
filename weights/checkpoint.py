"""Open the weights in a checkpoint's folder, whatever their format, sharded or not.

It finds the files and checks shards against their index; what is inside a file is read by
`safetensors_file.py` and `torch_file.py`, and what a tensor is for is known to `mapping.py`.
"""

from __future__ import annotations

import re
from pathlib import Path

from weights.safetensors_file import parse_json_object, read_safetensors
from weights.tensors import CheckpointError, MappedFile, TensorInfo, Tensors, View, listed, shown
from weights.torch_file import read_torch

__all__ = [
    "CheckpointError",
    "TensorInfo",
    "Tensors",
    "find_weights",
    "open_file",
    "open_weights",
    "read_index",
]

INDEX_SUFFIX = ".index.json"

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where weights are looked for, best first: a safetensors file can hold nothing but values."""

MAX_INDEX_BYTES = 100_000_000
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,200}")


def find_weights(folder: Path) -> Path:
    """The weights file of a folder, or the index of its shards. Raises CheckpointError without one."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(
        f"{folder}: no weights here; looked for {', '.join(WEIGHT_FILES)}. Copy them into the folder"
    )


def open_weights(folder: Path) -> Tensors:
    """Open the encoder's weights. Raises CheckpointError naming the file and the tensor."""
    path = find_weights(folder)
    return _open_shards(path) if path.name.endswith(INDEX_SUFFIX) else open_file(path)


def open_file(path: Path) -> Tensors:
    """Open one file by its format: `.safetensors`, else PyTorch's. Raises CheckpointError."""
    file = MappedFile(path)
    try:
        return Tensors(_views(file), [file])
    except CheckpointError:
        file.close()
        raise


def read_index(path: Path) -> dict[str, str]:
    """A shard index's table: tensor name -> file name.

    Raises CheckpointError where it is malformed, or names a file outside the folder.
    """
    try:
        size = path.stat().st_size
        text = path.read_bytes() if size <= MAX_INDEX_BYTES else b""
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read the index of the shards: {error}") from error
    if size > MAX_INDEX_BYTES:
        raise CheckpointError(f"{path}: {size} bytes are too many for an index of shards; get it again")
    table = parse_json_object(path, text).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{path}: has no weight_map, so it names no shards; get it again")
    suffix = Path(path.name.removesuffix(INDEX_SUFFIX)).suffix
    for tensor, shard in table.items():
        # A plain name of the index's own format: a path could point anywhere on the machine.
        if not isinstance(shard, str) or Path(shard).suffix != suffix or not _PLAIN_NAME.fullmatch(shard):
            raise CheckpointError(
                f"{path}: tensor {shown(tensor)} is said to be in {shown(shard)}, which is not the name of a "
                f"{suffix} file in this folder; the index is damaged or hostile"
            )
    return table


def _open_shards(index: Path) -> Tensors:
    table = read_index(index)
    views: dict[str, View] = {}
    files: list[MappedFile] = []
    try:
        for shard in sorted(set(table.values())):
            file = MappedFile(index.parent / shard)
            files.append(file)
            found = _views(file)
            expected = {tensor for tensor, home in table.items() if home == shard}
            if absent := expected - found.keys():
                raise CheckpointError(
                    f"{file.path}: {index.name} says it has {listed(absent)}, and it has not; get both again"
                )
            if extra := found.keys() - expected:
                raise CheckpointError(
                    f"{file.path}: has {listed(extra)}, which {index.name} puts elsewhere; get both again"
                )
            views.update(found)
    except CheckpointError:
        for file in files:
            file.close()
        raise
    return Tensors(views, files)


def _views(file: MappedFile) -> dict[str, View]:
    return read_safetensors(file) if file.path.suffix == ".safetensors" else read_torch(file)
