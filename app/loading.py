"""From a checkpoint's name to a model that serves: the one place where weights, engine and service meet.

It imports TensorFlow, so nothing imports it at module level but the composition root and tests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf
from tqdm import tqdm

from app.ports import ModelCard
from app.settings import Settings
from model.embedder import Embedder, EncodingOptions
from model.embedding import Embedding, IntArray, Output
from model.engine import MAX_SCORES, Precision, TensorFlowEngine
from model.heads import Pooling
from model.tokenizer import TokenizedText, Tokenizer, TokenizerError
from weights.checkpoint import CheckpointError
from weights.fetch import ResolvedCheckpoint, resolve_checkpoint
from weights.loader import LoadedCheckpoint, load, read_layout

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

    def tokenize(self, texts: Sequence[str], max_length: int) -> list[TokenizedText]:
        """Texts to ids; white space alone becomes `<s></s>`."""
        return self.embedder.tokenize(texts, max_length)

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary's entries of token ids."""
        return self.embedder.tokenizer.token_strings(ids)

    def forward(
        self, batch: Sequence[IntArray], outputs: Collection[Output], *, normalize: bool = True
    ) -> list[Embedding]:
        """One forward pass over a batch of token ids."""
        return self.embedder.engine.forward(batch, outputs, normalize=normalize)


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
    _configure_tensorflow(settings.threads)
    engine, tokenizer, loaded = load_checkpoint(
        checkpoint.folder,
        dense_only=settings.dense_only,
        precision=PRECISIONS[settings.engine],
        progress=progress,
    )
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
        fingerprint=loaded.fingerprint,
        engine="tensorflow",
        precision=engine.precision,
        outputs=engine.outputs,
        hidden_size=config.hidden_size,
        colbert_dim=loaded.layout.colbert_dim or 0,
        vocab_size=config.vocab_size,
        max_length=config.max_length,
    )
    embedder = Embedder(tokenizer, engine, max_length=config.max_length, options=options)
    return LoadedModel(card, embedder, checkpoint.folder)


def load_checkpoint(
    folder: Path, *, dense_only: bool = False, precision: Precision = "float32", progress: bool = False
) -> tuple[TensorFlowEngine, Tokenizer, LoadedCheckpoint]:
    """Engine and tokenizer of a checkpoint's folder, with a progress bar while the weights load."""
    config = read_layout(folder, dense_only=dense_only).config
    try:
        tokenizer = Tokenizer(folder / "tokenizer.json", config)
    except TokenizerError as error:
        raise CheckpointError(str(error)) from error
    engine, loaded = load_engine(
        folder, tokenizer.unused_ids, dense_only=dense_only, precision=precision, progress=progress
    )
    return engine, tokenizer, loaded


def load_engine(
    folder: Path,
    unused_ids: Collection[int],
    *,
    dense_only: bool = False,
    precision: Precision = "float32",
    pooling: Pooling = "cls",
    max_scores: int = MAX_SCORES,
    progress: bool = False,
) -> tuple[TensorFlowEngine, LoadedCheckpoint]:
    """Build the encoder that a checkpoint describes and fill it, a few megabytes at a time."""
    layout = read_layout(folder, dense_only=dense_only)
    engine = TensorFlowEngine(
        layout.config,
        colbert_dim=layout.colbert_dim,
        unused_ids=unused_ids,
        precision=precision,
        pooling=pooling,
        max_scores=max_scores,
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

        return engine, load(folder, engine.slots, dense_only=dense_only, progress=show)


def _configure_tensorflow(threads: int) -> None:
    """Threads of one operation, and GPU memory taken as it is needed. Only before TensorFlow's first use."""
    # A second model in the same process (tests) finds TensorFlow initialised: its threads stay.
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        for device in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(device, True)
