"""Fill a model's variables from a checkpoint: all tensors used or ignored for a reason, all variables filled.

All that can be known without reading values (names, shapes, dtypes) is checked before the first
write. It neither builds the model nor knows TensorFlow: a variable is a `Slot`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.config import ConfigError, EncoderConfig
from weights.checkpoint import CheckpointError, Tensors, find_weights, open_file, open_weights
from weights.fingerprint import TensorSample, fingerprint
from weights.mapping import (
    COLBERT_FILE,
    PREFIXES,
    SPARSE_FILE,
    WORDS,
    Entry,
    Layout,
    encoder_entries,
    head_entries,
    ignored_reason,
    is_encoder_name,
)
from weights.tensors import TensorInfo, listed, shown

CHUNK_BYTES = 16 * 2**20
"""Float32 bytes read at a time: what loading takes beside the variables is a small multiple of it."""

Progress = Callable[[int, int], None]
"""Called with the float32 bytes written so far, and those of the whole checkpoint."""


class Slot(Protocol):
    """A variable of the model that can be written by rows."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the variable."""

    def write(self, start: int, rows: NDArray[np.float32]) -> None:
        """Set rows [start, start + len(rows)) along axis 0."""


@dataclass(frozen=True, slots=True)
class CheckpointLayout:
    """What a model needs to know before it is built. `colbert_dim` is None for dense only: no heads."""

    folder: Path
    config: EncoderConfig
    colbert_dim: int | None


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """What was loaded: `ignored` maps each tensor that was left out to the reason."""

    layout: CheckpointLayout
    fingerprint: str
    tensors: int
    parameters: int
    ignored: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Source:
    """An entry of the table, and where its values are: under `name` in an open file."""

    entry: Entry
    tensors: Tensors
    name: str


def read_layout(folder: Path, *, dense_only: bool = False) -> CheckpointLayout:
    """Read config.json, and see that every file is there and has the tensors that it asks for. Cheap.

    Names, shapes and dtypes are compared here, so that a config.json with sizes of its own invention
    is refused before a model of these sizes is built.
    Raises CheckpointError. A missing head file is one, unless `dense_only`: then heads are not looked at.
    """
    layout = _read_files(folder, dense_only)
    with ExitStack() as files:
        _match(layout, files)
    return layout


def _read_files(folder: Path, dense_only: bool) -> CheckpointLayout:
    try:
        config = EncoderConfig.from_file(folder / "config.json")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    find_weights(folder)
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder}: tokenizer.json is missing. Trivec reads that file itself; sentencepiece.bpe.model "
            "cannot stand in for it. Copy tokenizer.json from the model's repository into the folder"
        )
    if dense_only:
        return CheckpointLayout(folder, config, None)
    if absent := [name for name in (SPARSE_FILE, COLBERT_FILE) if not (folder / name).is_file()]:
        raise CheckpointError(
            f"{folder}: {' and '.join(absent)} missing. The reference would serve random heads without a "
            "word; Trivec refuses. Put sparse_linear.pt and colbert_linear.pt beside the weights, or ask for "
            "dense vectors only: TRIVEC_DENSE_ONLY=true or --dense-only"
        )
    return CheckpointLayout(folder, config, _colbert_dim(folder / COLBERT_FILE, config))


def load(
    folder: Path,
    slots: Mapping[str, Slot],
    *,
    dense_only: bool = False,
    progress: Progress | None = None,
) -> LoadedCheckpoint:
    """Fill every slot, by the variable names of `mapping.py`, from the checkpoint in a folder.

    Raises CheckpointError: before anything is written where names, shapes or dtypes do not match on
    both sides, while writing where a value is NaN or infinite. Beside the slots it takes some tens of
    megabytes of memory, whatever the checkpoint's size.
    """
    layout = _read_files(folder, dense_only)
    with ExitStack() as files:
        sources, ignored = _match(layout, files)
        _check_slots(folder, sources, slots)
        # Large ones first: where memory is short, it shows at once.
        sources.sort(key=lambda source: -math.prod(source.entry.shape))
        digests = _fill_all(sources, slots, progress)
    return LoadedCheckpoint(
        layout=layout,
        fingerprint=fingerprint(folder / "tokenizer.json", layout.config, digests),
        tensors=len(sources),
        parameters=sum(math.prod(source.entry.shape) for source in sources),
        ignored=ignored,
    )


def read_fingerprint(folder: Path, *, dense_only: bool = False) -> str:
    """The fingerprint that `load` would give, from the sampled blocks alone: 100 MB read in place of 2 GB.

    Raises CheckpointError where names, shapes or dtypes do not match; values are not checked.
    """
    layout = _read_files(folder, dense_only)
    with ExitStack() as files:
        sources, _ = _match(layout, files)
        digests = {source.entry.variable: _sampled(source) for source in sources}
    return fingerprint(folder / "tokenizer.json", layout.config, digests)


def read_words(folder: Path) -> TensorInfo:
    """What there is to know of the word embeddings. Raises CheckpointError as `read_layout` does."""
    with ExitStack() as files:
        sources, _ = _match(_read_files(folder, dense_only=True), files)
        source = next(source for source in sources if source.entry.variable == WORDS)
        return source.tensors.info(source.name)


def _sampled(source: _Source) -> bytes:
    sample, width = TensorSample(source.entry), math.prod(source.entry.shape[1:])
    for start, stop in sample.blocks:
        first, last = start // width, -(-stop // width)
        flat = source.tensors.rows(source.name, first, last).reshape(-1)
        sample.take(flat[start - first * width : stop - first * width])
    return sample.digest()


def _match(layout: CheckpointLayout, files: ExitStack) -> tuple[list[_Source], dict[str, str]]:
    """Where each tensor of the table lies, in files that `files` keeps open; and what is ignored."""
    weights = files.enter_context(open_weights(layout.folder))
    sources, ignored = _encoder_sources(layout.folder, weights, encoder_entries(layout.config))
    if layout.colbert_dim is not None:
        for file, entries in head_entries(layout.config, layout.colbert_dim).items():
            head = files.enter_context(open_file(layout.folder / file))
            sources += _head_sources(layout.folder / file, head, entries)
    return sources, ignored


def _colbert_dim(path: Path, config: EncoderConfig) -> int:
    with open_file(path) as head:
        shape = head.info("weight").shape if "weight" in head.names() else None
    if shape is None or len(shape) != 2 or shape[1] != config.hidden_size or shape[0] < 1:
        found = "is not there" if shape is None else f"has shape {shape}"
        raise CheckpointError(
            f"{path}: tensor 'weight' {found}; [colbert_dim, {config.hidden_size}] is expected. "
            "Is it the head of another model?"
        )
    return shape[0]


def _encoder_sources(
    folder: Path, tensors: Tensors, entries: tuple[Entry, ...]
) -> tuple[list[_Source], dict[str, str]]:
    """Match the encoder's file with its table, both ways; prefixes are taken off first."""
    names: dict[str, str] = {}  # without prefix -> as in the file
    used: set[str] = set()
    for name in tensors.names():
        prefix = next((one for one in PREFIXES if name.startswith(one)), "")
        bare = name.removeprefix(prefix)
        if is_encoder_name(bare):
            used.add(prefix)
        if bare in names:
            raise CheckpointError(
                f"{folder}: {shown(names[bare])} and {shown(name)} are the same tensor under two prefixes; "
                "which one is meant cannot be known. Save the model again with one of them"
            )
        names[bare] = name
    if len(used) > 1:
        raise CheckpointError(
            f"{folder}: the encoder's tensors carry different prefixes ({listed(used)}); "
            "it looks like two models in one. Save one of them alone"
        )
    ignored = {name: why for bare, name in names.items() if (why := ignored_reason(bare)) is not None}
    wanted = {entry.tensor for entry in entries}
    _check_names(folder, {bare for bare, name in names.items() if name not in ignored}, wanted)
    return [_checked(_Source(entry, tensors, names[entry.tensor])) for entry in entries], ignored


def _head_sources(path: Path, tensors: Tensors, entries: tuple[Entry, ...]) -> list[_Source]:
    _check_names(path, set(tensors.names()), {entry.tensor for entry in entries})
    return [_checked(_Source(entry, tensors, entry.tensor)) for entry in entries]


def _check_names(where: Path, present: set[str], wanted: set[str]) -> None:
    if missing := wanted - present:
        raise CheckpointError(
            f"{where}: {len(missing)} tensors are missing that config.json asks for: {listed(missing)}. "
            "Is config.json of another model, or a shard lost?"
        )
    if unknown := present - wanted:
        raise CheckpointError(
            f"{where}: {len(unknown)} tensors are of no known use: {listed(unknown)}. Trivec does not guess: "
            "this is another architecture, or config.json is of another model"
        )


def _checked(source: _Source) -> _Source:
    """Compare dtype and shape with the table."""
    info = source.tensors.info(source.name)
    if info.shape != source.entry.shape:
        raise CheckpointError(
            f"{info.file}: tensor {shown(info.name)} has shape {info.shape} and config.json asks for "
            f"{source.entry.shape}; the two are not of one model"
        )
    if info.dtype not in ("float32", "float16", "bfloat16", "float64"):
        raise CheckpointError(
            f"{info.file}: tensor {shown(info.name)} holds {info.dtype} values; Trivec loads float32, "
            "float16, bfloat16 and float64. Save the model again without quantisation"
        )
    return source


def _check_slots(folder: Path, sources: list[_Source], slots: Mapping[str, Slot]) -> None:
    variables = {source.entry.variable for source in sources}
    if unfilled := slots.keys() - variables:
        raise CheckpointError(f"{folder}: nothing to fill these variables with: {listed(unfilled)}")
    if homeless := variables - slots.keys():
        raise CheckpointError(f"{folder}: the model has no variables for: {listed(homeless)}")
    for source in sources:
        shape = tuple(slots[source.entry.variable].shape)
        if shape != source.entry.variable_shape:
            raise CheckpointError(
                f"{folder}: variable {source.entry.variable} has shape {shape}, and the checkpoint "
                f"fills {source.entry.variable_shape}"
            )


def _fill_all(
    sources: list[_Source], slots: Mapping[str, Slot], progress: Progress | None
) -> dict[str, bytes]:
    """Write every slot; the digest of each variable for the fingerprint."""
    total = 4 * sum(math.prod(source.entry.shape) for source in sources)
    written = 0
    digests: dict[str, bytes] = {}
    for source in sources:
        sample = TensorSample(source.entry)
        for start, rows in _chunks(source):
            sample.add(start * math.prod(source.entry.shape[1:]), rows)
            # Where it is transposed there is one chunk: the whole matrix.
            turned = source.entry.layout is Layout.TRANSPOSED
            slots[source.entry.variable].write(start, _transposed(rows) if turned else rows)
            written += rows.nbytes
            if progress is not None:
                progress(written, total)
        digests[source.entry.variable] = sample.digest()
    return digests


def _transposed(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """A transposed copy, by strips that stay in the cache: four times as fast as in one go."""
    found = np.empty(rows.shape[::-1], np.float32)
    for start in range(0, len(rows), 64):
        found[:, start : start + 64] = rows[start : start + 64].T
    return found


def _chunks(source: _Source) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The tensor by rows in file order, each chunk seen to be finite."""
    count = source.entry.shape[0]
    step = max(1, CHUNK_BYTES // (4 * math.prod(source.entry.shape[1:])))
    if source.entry.layout is Layout.TRANSPOSED:
        step = count
    for start in range(0, count, step):
        rows = source.tensors.rows(source.name, start, min(start + step, count))
        finite = np.isfinite(rows)
        if not finite.all():
            first = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), rows.shape))
            value, index = rows[first], (first[0] + start, *first[1:])
            info = source.tensors.info(source.name)
            raise CheckpointError(
                f"{info.file}: tensor {shown(info.name)} has {int((~finite).sum())} NaN or infinite values "
                f"in rows {start} to {start + len(rows) - 1}, the first {value} at {index}; "
                "the checkpoint is damaged or its training diverged, take another"
            )
        del finite  # before the next chunk is read: it counts in the peak
        yield start, rows
