"""A checkpoint converted for the int8 engine: made once, kept, found again by what it was made from.

A converted folder holds `model.tflite` (blocks in int8, heads in float32), `block_NN.tflite` and
`attention.tflite` (the parts of a block alone, for long texts), `word.npy` (float16, memory-mapped when
used), `rest.safetensors` (the other embeddings, float32), the checkpoint's `tokenizer.json` (and golden
outputs, where it has them) and `manifest.json`: all that serving needs, so the folder can be moved
elsewhere. It is written aside and renamed, so a crash leaves nothing that could be mistaken for a whole
one. Reading it needs no TensorFlow; making it does, in a process of its own, whose memory goes back to
the system.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from tqdm import tqdm

from app.golden import GOLDEN_FILE
from app.leaving import end_with_input
from model.config import EncoderConfig
from model.embedding import FloatArray
from model.litert import ATTENTION_FILE, MODEL_FILE, LiteRTWeights, block_file
from model.words import WordTable
from weights.checkpoint import CheckpointError
from weights.loader import CheckpointLayout, load, read_fingerprint, read_layout
from weights.mapping import WORDS, encoder_entries, head_entries

# Part of the cache key: raise it when the graph of a block or the layout of the folder changes.
FORMAT = 3
TIED = "tied"
PART_BLOCKS = 4
"""Blocks of a part of the encoder: between two parts of a long text a query can be served."""
_UNFINISHED = ".converting-"
TOKENIZER = "tokenizer.json"
WORD, REST, MANIFEST = "word.npy", "rest.safetensors", "manifest.json"


@dataclass(frozen=True, slots=True)
class Converted:
    """A converted checkpoint on disk."""

    folder: Path
    config: EncoderConfig
    fingerprint: str
    colbert_dim: int | None


def converted_checkpoint(
    source: Path, cache: Path, *, dense_only: bool = False, progress: bool = True
) -> Converted:
    """The converted form of a checkpoint: from the cache, or made now; a folder that is one, as it is.

    Raises CheckpointError where the checkpoint is at fault or the cache cannot be written.
    """
    if is_converted(source):
        found = read_converted(source)
        if dense_only != (found.colbert_dim is None):
            heads = "without heads" if found.colbert_dim is None else "with heads"
            raise CheckpointError(f"{source}: was converted {heads}; set TRIVEC_DENSE_ONLY as it was then")
        return found
    fingerprint = read_fingerprint(source, dense_only=dense_only)
    folder = cache / "litert" / f"{fingerprint[:32]}-{FORMAT}-{version('ai-edge-litert')}"
    if not (folder / MANIFEST).exists():
        if progress:
            sys.stderr.write(f"Converting {source} to int8, once; it is kept in {folder}\n")
        command = [sys.executable, "-m", "app.converting", str(source), str(folder), str(int(dense_only))]
        said = None if progress else subprocess.PIPE
        # Its input ends with this process, and it with its input: nobody waits for it any more then.
        with subprocess.Popen(
            [*command, str(int(progress)), TIED], stdin=subprocess.PIPE, stderr=said, text=True
        ) as process:
            words = "" if process.stderr is None else process.stderr.read()
            process.wait()
        if process.returncode:
            lines = words.strip().splitlines()
            why = lines[-1].removeprefix("trivec: ") if lines else "what it said is above"
            raise CheckpointError(f"{source}: the conversion to int8 failed: {why}")
    return read_converted(folder)


def is_converted(folder: Path) -> bool:
    """Whether a folder holds a converted checkpoint, not one as it was published."""
    return (folder / MANIFEST).exists()


def export(source: Path, cache: Path, target: Path, *, dense_only: bool = False) -> Converted:
    """The converted form of a checkpoint in a folder of its own, which must not be there yet.

    Raises CheckpointError as `converted_checkpoint` does, OSError where the folder cannot be written.
    """
    if target.exists():
        raise CheckpointError(f"{target}: is there already; name a folder that is not")
    made = converted_checkpoint(source, cache, dense_only=dense_only)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
    try:
        shutil.copytree(made.folder, work)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return read_converted(target)


def read_converted(folder: Path) -> Converted:
    """Raises CheckpointError where the folder is not a whole conversion of this format."""
    try:
        fields = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if fields["format"] != FORMAT:
            raise CheckpointError(f"{folder}: format {fields['format']}, and this is {FORMAT}: convert again")
        config = EncoderConfig(**fields["config"])
        return Converted(folder, config, str(fields["fingerprint"]), fields["colbert_dim"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: not a converted checkpoint; delete it and start again") from error


def read_weights(converted: Converted) -> LiteRTWeights:
    """The embeddings; those of words are mapped, not read."""
    try:
        rest = load_file(converted.folder / REST)
        words = _word_table(converted.folder / WORD)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{converted.folder}: damaged; delete it and start again: {error}") from error
    return LiteRTWeights(
        words=words,
        position=rest["embeddings/position_embeddings/weight"],
        token_type=rest["embeddings/token_type_embeddings/weight"],
        norm_weight=rest["embeddings/LayerNorm/weight"],
        norm_bias=rest["embeddings/LayerNorm/bias"],
        colbert_dim=converted.colbert_dim,
    )


def _word_table(file: Path) -> WordTable:
    table: np.memmap[Any, np.dtype[np.float16]] = np.load(file, mmap_mode="r")
    return WordTable.in_file(file, table.offset, table.shape, "float16")


def convert(source: Path, folder: Path, *, dense_only: bool = False, progress: bool = True) -> None:
    """Write the converted form of a checkpoint; needs TensorFlow, and memory for the blocks in float32."""
    layout = read_layout(source, dense_only=dense_only)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder.parent)
    work = folder.parent / f"{_UNFINISHED}{uuid.uuid4().hex}"
    work.mkdir()
    try:
        _write(layout, work, dense_only, progress)
        # Two processes may convert at once: the first to finish wins, the other finds the same content.
        if not folder.exists():
            work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """What a killed conversion left a day ago or more: a younger one may be another process at work."""
    for folder in parent.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > 86400:
                shutil.rmtree(folder, ignore_errors=True)


def _write(layout: CheckpointLayout, work: Path, dense_only: bool, progress: bool) -> None:
    from model.litert_graph import convert_attention, convert_heads, merge

    config = layout.config
    slots, table = _slots(layout, work / WORD)
    loaded = load(layout.folder, slots, dense_only=dense_only)
    table.flush()
    rest = {name: slot.array for name, slot in slots.items() if name.startswith("embeddings/")}
    del rest[WORDS]
    (work / REST).write_bytes(save({name: np.ascontiguousarray(array) for name, array in rest.items()}))
    for name in (TOKENIZER, GOLDEN_FILE):
        if (layout.folder / name).exists():
            shutil.copyfile(layout.folder / name, work / name)
    heads = None
    if layout.colbert_dim is not None:
        heads = convert_heads(
            {name: np.asarray(slot.array, np.float32) for name, slot in slots.items() if "_linear/" in name}
        )
    (work / ATTENTION_FILE).write_bytes(convert_attention(config, heads=1))
    attention = convert_attention(config, heads=config.num_attention_heads)
    starts = range(0, config.num_hidden_layers, PART_BLOCKS)
    sizes = [min(PART_BLOCKS, config.num_hidden_layers - start) for start in starts]
    (work / MODEL_FILE).write_bytes(merge(_blocks(config, slots, work, progress), attention, heads, sizes))
    manifest = {
        "format": FORMAT,
        "fingerprint": loaded.fingerprint,
        "colbert_dim": layout.colbert_dim,
        "config": dataclasses.asdict(config),
    }
    (work / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def _blocks(
    config: EncoderConfig, slots: dict[str, ArraySlot], work: Path, progress: bool
) -> Iterator[bytes]:
    from model.litert_graph import convert_block

    for number in tqdm(
        range(config.num_hidden_layers), desc="converting", unit="block", disable=not progress
    ):
        prefix = f"encoder/layer/{number}/"
        names = [name for name in slots if name.startswith(prefix)]
        # Taken out of the table: what is converted is needed no more.
        weights = {
            name.removeprefix(prefix): slots.pop(name).array.astype(np.float32, copy=False) for name in names
        }
        model = convert_block(config, weights)
        (work / block_file(number)).write_bytes(model)
        yield model


@dataclass(frozen=True, slots=True, eq=False)
class ArraySlot:
    """A NumPy array that a checkpoint fills, in the array's own dtype."""

    array: FloatArray | NDArray[np.float16]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.array.shape

    def write(self, start: int, rows: NDArray[np.float32]) -> None:
        """Write `rows` to [start : start + len(rows)]; a value beyond float16 is a CheckpointError."""
        self.array[start : start + len(rows)] = rows
        if not np.isfinite(self.array[start : start + len(rows)]).all():
            raise CheckpointError(
                "the word embeddings exceed float16; this checkpoint needs the float32 engine"
            )


def _slots(layout: CheckpointLayout, word: Path) -> tuple[dict[str, ArraySlot], np.memmap[Any, Any]]:
    """A slot for every variable; word embeddings go straight into their file, which is returned too."""
    entries = list(encoder_entries(layout.config))
    if layout.colbert_dim is not None:
        entries += [e for part in head_entries(layout.config, layout.colbert_dim).values() for e in part]
    slots = {entry.variable: entry.variable_shape for entry in entries}
    table = np.lib.format.open_memmap(word, mode="w+", dtype=np.float16, shape=slots.pop(WORDS))
    arrays = {name: ArraySlot(np.zeros(shape, np.float32)) for name, shape in slots.items()}
    return {WORDS: ArraySlot(table)} | arrays, table


def main() -> int:
    """The process that converts: SOURCE FOLDER DENSE_ONLY PROGRESS, and `tied` to end with its input."""
    from app.quiet import import_tensorflow

    source, folder, dense_only, progress, *tied = sys.argv[1:]
    if tied == [TIED]:
        end_with_input()
    import_tensorflow()
    try:
        convert(Path(source), Path(folder), dense_only=dense_only == "1", progress=progress == "1")
    except (CheckpointError, OSError) as error:
        sys.stderr.write(f"trivec: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
