"""The TensorFlow engine: packed token ids in, embeddings out, in one traced forward pass.

Legend: B texts, S packed tokens, D hidden, C ColBERT dimension. TensorFlow tensors never leave this
file. It is not thread-safe: one thread calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from model.config import EncoderConfig
from model.embedding import OUTPUTS, Embedding, IntArray, Output
from model.encoder import Encoder, Tensor
from model.engine import AttentionScores, DeviceError, Pooling, Precision, check_batch, check_outputs
from model.heads import Heads, pool, unit_rows
from model.outputs import split_embeddings
from model.packing import PackedBatch, pack
from model.words import WordTable

PART_TOKENS, PART_BLOCKS = 256, 4
"""On a CPU work can be left after so many blocks over so many tokens, or one text; more gain nothing."""
# Attention scores of one step (texts * heads * query rows * rows): 2^23 float32 are 32 MiB.
MAX_SCORES = 1 << 23


@dataclass(frozen=True, slots=True)
class VariableSlot:
    """A variable that a checkpoint fills, row range by row range, in place."""

    variable: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the variable."""
        return tuple(self.variable.shape)

    def write(self, start: int, rows: NDArray[np.float32]) -> None:
        """Write `rows` to [start : start + len(rows)] of the first axis.

        Trap: a variable that was once written in part is copied whole whenever it is read, for good.
        So a part is written only where rows are looked up and the whole is never read: in the
        embedding tables, which are too large to hold twice.
        """
        values = tf.cast(rows, self.variable.dtype)
        if rows.shape == self.shape:
            self.variable.assign(values)
            return
        # The raw operation: `variable[start:stop].assign` would read the variable, and so copy it, first.
        tf.raw_ops.ResourceStridedSliceAssign(
            ref=self.variable.handle, begin=[start], end=[start + len(rows)], strides=[1], value=values
        )


class TensorFlowEngine:
    """Encoder and heads as TensorFlow variables, zero until a checkpoint fills `slots`; words apart."""

    def __init__(
        self,
        config: EncoderConfig,
        words: WordTable,
        *,
        colbert_dim: int | None,
        unused_ids: Collection[int],
        precision: Precision = "float32",
        pooling: Pooling = "cls",
        max_scores: int = MAX_SCORES,
    ) -> None:
        """`colbert_dim` None makes a dense-only engine: it has no heads at all.

        Raises DeviceError where the device has no arithmetic for `precision`.
        """
        self._on_gpu = bool(tf.config.list_physical_devices("GPU"))
        if precision == "float16" and not self._on_gpu:
            raise DeviceError("float16 needs a GPU, and TensorFlow sees none: use float32")
        self.config = config
        self.precision = precision
        self.attention_scores = AttentionScores()
        self.colbert_dim = colbert_dim
        self._pooling = pooling
        self._unused_ids = frozenset(unused_ids)
        self._max_scores = max_scores
        self._words = words
        self._encoder = Encoder(config, dtype=precision)
        self._heads = None if colbert_dim is None else Heads(config.hidden_size, colbert_dim, dtype=precision)
        rows = tf.TensorSpec([None], tf.int32)
        plan = {
            "tile_sizes": tf.TensorSpec([None, 3], tf.int32),
            "rows": rows,
            "steps": tf.TensorSpec([], tf.int32),
            "visible": tf.TensorSpec([None], tf.bool),
            "gather": rows,
        }
        # The signature leaves every size open: one trace serves all batches.
        word_rows = tf.TensorSpec([None, config.hidden_size], tf.float32)
        self._embed = tf.function(self._encoder.embeddings, input_signature=[word_rows, rows])
        hidden = tf.TensorSpec([None, config.hidden_size], precision)
        depth = config.num_hidden_layers
        size = depth if self._on_gpu else PART_BLOCKS
        self._encode = [
            tf.function(
                partial(self._encoder.part, range(start, min(start + size, depth))),
                input_signature=[hidden, plan],
            )
            for start in range(0, depth, size)
        ]
        switch = tf.TensorSpec([], tf.bool)
        self._dense_head = tf.function(self._dense, input_signature=[hidden, rows, switch])
        self._sparse_head = tf.function(self._sparse, input_signature=[hidden])
        self._colbert_head = tf.function(self._colbert, input_signature=[hidden, switch])

    @property
    def outputs(self) -> tuple[Output, ...]:
        """All three, or `dense` alone."""
        return ("dense",) if self._heads is None else OUTPUTS

    @property
    def traces(self) -> int:
        """How often a part of the encoder was traced: once, if all is well."""
        return max(int(part.experimental_get_tracing_count()) for part in self._encode)

    @property
    def slots(self) -> dict[str, VariableSlot]:
        """Every variable by its checkpoint name, for the loader to fill; the words are not among them."""
        named = self._encoder.named_variables()
        if self._heads is not None:
            named |= self._heads.named_variables()
        return {name: VariableSlot(variable) for name, variable in named.items()}

    def forward(
        self,
        batch: Sequence[IntArray],
        outputs: Collection[Output],
        *,
        normalize: bool = True,
        between: Callable[[], None] | None = None,
    ) -> list[Embedding]:
        """See `Engine.forward`; on a GPU one pass is short, and is never left."""
        check_outputs(outputs, self.outputs)
        check_batch(batch, self.config)
        found: list[Embedding] = []
        if between is None or self._on_gpu:
            between = _nothing
        for texts in [batch] if between is _nothing else _parts(batch):
            if found:
                between()
            try:
                found += self._embeddings(texts, outputs, normalize, between)
            except tf.errors.ResourceExhaustedError as error:
                raise MemoryError("the device's memory does not suffice for this batch") from error
        return found

    def _embeddings(
        self,
        batch: Sequence[IntArray],
        outputs: Collection[Output],
        normalize: bool,
        between: Callable[[], None],
    ) -> list[Embedding]:
        hidden, packed = self._run(batch, between)
        return split_embeddings(
            batch,
            packed.starts,
            dense=self._dense_head(hidden, packed.starts, normalize).numpy() if "dense" in outputs else None,
            token_weights=self._sparse_head(hidden).numpy() if "sparse" in outputs else None,
            vectors=self._colbert_head(hidden, normalize).numpy() if "colbert" in outputs else None,
            unused=self._unused_ids,
        )

    def warm_up(self) -> None:
        """Trace and optimise the graph, some seconds for 24 blocks; `slots` may be filled meanwhile."""
        self.forward([np.array([self.config.bos_token_id], np.int32)], self.outputs)

    def hidden_states(self, batch: Sequence[IntArray]) -> list[NDArray[np.float32]]:
        """The last hidden states of each text, [T, D]: for parity tests, no head applied."""
        hidden, packed = self._run(batch, _nothing)
        return np.split(tf.cast(hidden, tf.float32).numpy(), packed.starts[1:-1])

    def _run(self, batch: Sequence[IntArray], between: Callable[[], None]) -> tuple[Tensor, PackedBatch]:
        check_batch(batch, self.config)
        packed = pack(
            batch,
            pad_token_id=self.config.pad_token_id,
            num_heads=self.config.num_attention_heads,
            max_scores=self._max_scores,
        )
        self.attention_scores.add(sum(len(ids) ** 2 for ids in batch), packed.scores)
        plan = {
            "tile_sizes": packed.tile_sizes,
            "rows": packed.rows,
            "steps": np.int32(packed.steps),
            "visible": packed.visible,
            "gather": packed.gather,
        }
        x = self._embed(self._words.rows(packed.ids), packed.positions)
        for number, part in enumerate(self._encode):
            if number:
                between()
            x = part(x, plan)
        return x, packed

    def _dense(self, hidden: Tensor, starts: Tensor, normalize: Tensor) -> Tensor:
        pooled = pool(hidden, starts, self._pooling)
        return tf.cond(normalize, lambda: unit_rows(pooled), lambda: tf.cast(pooled, tf.float32))

    def _sparse(self, hidden: Tensor) -> Tensor:
        assert self._heads is not None
        return tf.cast(self._heads.token_weights(hidden), tf.float32)

    def _colbert(self, hidden: Tensor, normalize: Tensor) -> Tensor:
        assert self._heads is not None
        rows = self._heads.vectors(hidden)
        return tf.cond(normalize, lambda: unit_rows(rows), lambda: tf.cast(rows, tf.float32))


def _parts(batch: Sequence[IntArray]) -> Iterator[list[IntArray]]:
    """Consecutive texts of together at most PART_TOKENS, or one that is longer."""
    part: list[IntArray] = []
    for ids in batch:
        if part and sum(map(len, part)) + len(ids) > PART_TOKENS:
            yield part
            part = []
        part.append(ids)
    if part:
        yield part


def _nothing() -> None:
    """Where work cannot be left."""
