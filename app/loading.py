"""From a checkpoint's name to a model that serves: the one place where weights, engine and service meet.

TensorFlow is imported where a TensorFlow engine is made and nowhere else: int8 serves without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from app.converting import converted_checkpoint, is_converted, read_weights
from app.cores import cores
from app.ports import ModelCard
from app.settings import Settings
from model.config import EncoderConfig
from model.embedder import Embedder, EncodingOptions
from model.embedding import Counting, Embedding, FloatArray, IntArray, Output
from model.engine import Engine, Pooling, Precision
from model.heap import release_heap
from model.tokenizer import TokenizedText, Tokenizer, TokenizerError
from model.words import STORED_TYPES, WordTable
from weights.checkpoint import CheckpointError
from weights.fetch import ResolvedCheckpoint, resolve_checkpoint
from weights.loader import CheckpointLayout, LoadedCheckpoint, Slot, load, read_layout, read_words
from weights.mapping import WORDS

if TYPE_CHECKING:
    from model.litert import LiteRTEngine
    from model.tensorflow_engine import TensorFlowEngine

BUNDLED = "mini"

PRECISIONS: Mapping[str, Precision] = {
    "auto": "float32",
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
}
"""The arithmetic of each engine that is built; `Settings` refuses the others."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A checkpoint, ready to embed; it fits `app.ports.TextModel`."""

    card: ModelCard
    embedder: Embedder
    folder: Path

    @property
    def attention_scores(self) -> tuple[int, int]:
        """See `CountsAttention`."""
        scores = self.embedder.engine.attention_scores
        return scores.needed, scores.computed

    def tokenize(
        self, texts: Sequence[str], max_length: int | None, *, count_terms: Counting | None = None
    ) -> list[TokenizedText]:
        """Texts to ids, uncut where `max_length` is None; white space alone becomes `<s></s>`."""
        return self.embedder.tokenize(texts, max_length, count_terms=count_terms)

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary's entries of token ids."""
        return self.embedder.tokenizer.token_strings(ids)

    def forward(
        self,
        batch: Sequence[IntArray],
        outputs: Collection[Output],
        *,
        normalize: bool = True,
        between: Callable[[], None] | None = None,
    ) -> list[Embedding]:
        """One forward pass over a batch of token ids; see `TextModel.forward`."""
        return self.embedder.engine.forward(batch, outputs, normalize=normalize, between=between)


def resolve(settings: Settings, *, progress: bool = True) -> ResolvedCheckpoint:
    """The folder of the checkpoint that the settings name; `mini` is the bundled one."""
    if settings.checkpoint == BUNDLED:
        folder = Path(__file__).resolve().parent.parent / "weights" / "mini"
        return ResolvedCheckpoint(folder=folder, name="mini", revision=None)
    return resolve_checkpoint(
        settings.checkpoint, revision=settings.revision, cache_dir=settings.cache_dir, progress=progress
    )


def load_text_model(settings: Settings, *, progress: bool = True) -> LoadedModel:
    """Resolve, read and fill the checkpoint of the settings.

    Raises CheckpointError where the files are at fault, DeviceError where the device is.
    """
    checkpoint = resolve(settings, progress=progress)
    engine: Engine
    if settings.engine == "int8":
        engine, tokenizer, fingerprint = load_int8(
            checkpoint.folder,
            settings.converted_dir,
            dense_only=settings.dense_only,
            threads=settings.threads,
            progress=progress,
        )
    elif is_converted(checkpoint.folder):
        raise CheckpointError(
            f"{checkpoint.folder}: is converted to int8 and serves as such only; set TRIVEC_ENGINE=int8, "
            "or name the checkpoint that it was made from"
        )
    else:
        _configure_tensorflow(settings.threads)
        engine, tokenizer, loaded = load_checkpoint(
            checkpoint.folder,
            dense_only=settings.dense_only,
            precision=PRECISIONS[settings.engine],
            progress=progress,
        )
        fingerprint = loaded.fingerprint
    config = engine.config
    options = EncodingOptions(
        query_max_length=settings.query_max_length,
        passage_max_length=settings.passage_max_length,
        blank_as_empty=True,
        max_batch_tokens=settings.max_batch_tokens,
    )
    card = ModelCard(
        name=checkpoint.name,
        revision=checkpoint.revision,
        fingerprint=fingerprint,
        engine="litert" if settings.engine == "int8" else "tensorflow",
        precision=engine.precision,
        outputs=engine.outputs,
        hidden_size=config.hidden_size,
        colbert_dim=engine.colbert_dim or 0,
        vocab_size=config.vocab_size,
        max_length=config.max_length,
    )
    release_heap()
    embedder = Embedder(tokenizer, engine, max_length=config.max_length, options=options)
    return LoadedModel(card, embedder, checkpoint.folder)


def load_checkpoint(
    folder: Path, *, dense_only: bool = False, precision: Precision = "float32", progress: bool = False
) -> tuple[Engine, Tokenizer, LoadedCheckpoint]:
    """TensorFlow engine and tokenizer of a checkpoint's folder; a progress bar while the weights load."""
    tokenizer = _tokenizer(folder, read_layout(folder, dense_only=dense_only).config)
    engine, loaded = load_engine(
        folder, tokenizer.unused_ids, dense_only=dense_only, precision=precision, progress=progress
    )
    return engine, tokenizer, loaded


def load_int8(
    folder: Path, cache: Path, *, dense_only: bool = False, threads: int = 0, progress: bool = False
) -> tuple[LiteRTEngine, Tokenizer, str]:
    """int8 engine, tokenizer and fingerprint of a checkpoint's folder, converted into `cache` if need be."""
    from model.litert import LiteRTEngine

    converted = converted_checkpoint(folder, cache, dense_only=dense_only, progress=progress)
    tokenizer = _tokenizer(converted.folder, converted.config)
    engine = LiteRTEngine(
        converted.config,
        converted.folder,
        read_weights(converted),
        unused_ids=tokenizer.unused_ids,
        threads=threads or cores(),
    )
    return engine, tokenizer, converted.fingerprint


def load_engine(
    folder: Path,
    unused_ids: Collection[int],
    *,
    dense_only: bool = False,
    precision: Precision = "float32",
    pooling: Pooling = "cls",
    max_scores: int | None = None,
    progress: bool = False,
) -> tuple[TensorFlowEngine, LoadedCheckpoint]:
    """Build the encoder that a checkpoint describes and fill it, a few megabytes at a time."""
    from model.tensorflow_engine import MAX_SCORES, TensorFlowEngine

    layout = read_layout(folder, dense_only=dense_only)
    words, slot = _words(layout)
    engine = TensorFlowEngine(
        layout.config,
        words,
        colbert_dim=layout.colbert_dim,
        unused_ids=unused_ids,
        precision=precision,
        pooling=pooling,
        max_scores=max_scores or MAX_SCORES,
    )
    # disable=None hides the bar where nobody watches: it is shown on a terminal only.
    with tqdm(
        desc="loading weights",
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=None if progress else True,
    ) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        # The graph does not depend on what the variables hold: it is made while they are filled.
        with ThreadPoolExecutor(1) as pool:
            ready = pool.submit(engine.warm_up)
            slots: dict[str, Slot] = {**engine.slots, WORDS: slot}
            loaded = load(folder, slots, dense_only=dense_only, progress=show)
            ready.result()
        return engine, loaded


@dataclass(frozen=True, slots=True, eq=False)
class _WordSlot:
    """Takes the word embeddings while a checkpoint is read and checked; `array` None lets them pass."""

    shape: tuple[int, ...]
    array: FloatArray | None

    def write(self, start: int, rows: FloatArray) -> None:
        if self.array is not None:
            self.array[start : start + len(rows)] = rows


def _words(layout: CheckpointLayout) -> tuple[WordTable, _WordSlot]:
    """The table of word embeddings: in the checkpoint's own file where its layout allows, else in memory."""
    info = read_words(layout.folder)
    if info.offset is not None and info.dtype in STORED_TYPES:
        return WordTable.in_file(info.file, info.offset, info.shape, info.dtype), _WordSlot(info.shape, None)
    rows = np.zeros(info.shape, np.float32)
    return WordTable(rows), _WordSlot(info.shape, rows)


def _tokenizer(folder: Path, config: EncoderConfig) -> Tokenizer:
    try:
        return Tokenizer(folder / "tokenizer.json", config)
    except TokenizerError as error:
        raise CheckpointError(str(error)) from error


def _configure_tensorflow(threads: int) -> None:
    """Threads of one operation, and GPU memory taken as it is needed. Only before TensorFlow's first use."""
    import tensorflow as tf

    # A second model in the same process (tests) finds TensorFlow initialised: its threads stay.
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(threads or cores())
        for device in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(device, True)
