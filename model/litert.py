"""The int8 engine for CPUs: LiteRT runs the blocks, NumPy the rest. TensorFlow is not imported.

Legend: B texts, S rows of a sequence, D hidden, C ColBERT dimension, V vocabulary.
A sequence is one text, or several short ones side by side that a mask keeps apart: no pad is ever
computed. Word embeddings stay in a memory-mapped table, so only touched rows are read; embeddings
and heads are float32. Nothing here calls NumPy's matmul: the threads of its BLAS spin for a while after
each product, which took a quarter of the encoder's speed. Not thread-safe: one thread calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from model.config import EncoderConfig
from model.embedding import OUTPUTS, Embedding, FloatArray, IntArray, Output
from model.engine import AttentionScores, Pooling, Precision, check_batch, check_outputs
from model.heap import release_heap
from model.mapped import release_pages
from model.outputs import split_embeddings
from model.packing import positions
from model.words import WordTable

# Short texts share a sequence up to this many rows: enough to keep the int8 products busy, few enough
# that the attention between texts, computed and masked away, costs less than it gains.
_SHARED_ROWS = 128
# Beyond this many rows the blocks run part by part, each opened afresh.
_LONG_ROWS = 1024
# Attention scores (query rows * rows) of one step of a long text's head: 2^22 float32 are 16 MiB, which
# stay in a cache of the usual size from the first product to the second.
_MAX_SCORES = 1 << 22
# Rows of a long text that pass through the feed-forward part together.
_STEP_ROWS = 1024
_MASKED = -1e9

MODEL_FILE = "model.tflite"
"""All blocks and the heads."""
ENCODER = "encoder_"
"""The signatures of its parts, some blocks each: this and a number from 0."""
ATTENTION_FILE = "attention.tflite"
"""The attention of one head."""


def block_file(number: int) -> str:
    """Name of the file of one block alone."""
    return f"block_{number:02d}.tflite"


Runner = Callable[..., dict[str, NDArray[np.float32]]]


@dataclass(frozen=True, slots=True, eq=False)
class LiteRTWeights:
    """The embeddings, which lie beside the model.

    `colbert_dim` is None in a dense-only model, which has no heads.
    """

    words: WordTable
    position: FloatArray
    token_type: FloatArray
    norm_weight: FloatArray
    norm_bias: FloatArray
    colbert_dim: int | None


class LiteRTEngine:
    """A converted checkpoint, ready to embed."""

    def __init__(
        self,
        config: EncoderConfig,
        folder: Path,
        weights: LiteRTWeights,
        *,
        unused_ids: Collection[int],
        pooling: Pooling = "cls",
        threads: int,
        max_scores: int = _MAX_SCORES,
        long_rows: int = _LONG_ROWS,
    ) -> None:
        """`folder` holds what `litert_graph` made, by the names below; `threads` are those of one product."""
        self.config = config
        self.precision: Precision = "int8"
        self.attention_scores = AttentionScores()
        self._weights = weights
        self._unused_ids = frozenset(unused_ids)
        self._pooling = pooling
        self._max_scores = max_scores
        self._long_rows = long_rows
        self._folder, self._threads = folder, threads
        interpreter = self._open(MODEL_FILE)
        parts = sum(name.startswith(ENCODER) for name in interpreter.get_signature_list())
        self._encoder = [self._runner(interpreter, f"{ENCODER}{number}") for number in range(parts)]
        self._head_runner = None if self.colbert_dim is None else self._runner(interpreter, "heads")
        # The first pass packs the weights; from then on the file itself is hardly read.
        self.forward([np.array([config.bos_token_id, config.eos_token_id], np.int32)], self.outputs)
        release_pages(folder / MODEL_FILE)

    @property
    def colbert_dim(self) -> int | None:
        """Width of a ColBERT vector; None without heads."""
        return self._weights.colbert_dim

    @property
    def outputs(self) -> tuple[Output, ...]:
        """All three, or `dense` alone."""
        return ("dense",) if self.colbert_dim is None else OUTPUTS

    def forward(
        self,
        batch: Sequence[IntArray],
        outputs: Collection[Output],
        *,
        normalize: bool = True,
        between: Callable[[], None] | None = None,
    ) -> list[Embedding]:
        """See `Engine.forward`; work can be left after each part of a sequence, each block of a long one."""
        check_outputs(outputs, self.outputs)
        check_batch(batch, self.config)
        found: list[Embedding | None] = [None] * len(batch)
        for part, texts in enumerate(sequences([len(ids) for ids in batch])):
            if part and between is not None:
                between()
            members = [batch[number] for number in texts]
            starts = np.cumsum([0, *(len(ids) for ids in members)], dtype=np.int32)
            self.attention_scores.add(sum(len(ids) ** 2 for ids in members), int(starts[-1]) ** 2)
            hidden = self._encode(np.concatenate(members), starts, between)
            made = self._heads(members, starts, hidden, outputs, normalize)
            for number, embedding in zip(texts, made, strict=True):
                found[number] = embedding
        return [embedding for embedding in found if embedding is not None]

    def _open(self, name: str) -> Interpreter:
        # Given by path, the file is memory-mapped; all its weights are packed when it is first used.
        return Interpreter(model_path=str(self._folder / name), num_threads=self._threads)

    @staticmethod
    def _runner(interpreter: Interpreter, signature: str) -> Runner:
        found: Runner = interpreter.get_signature_runner(signature)
        return found

    def _encode(self, ids: IntArray, starts: IntArray, between: Callable[[], None] | None) -> FloatArray:
        """Last hidden states of a sequence. Shapes: [S], [texts + 1] -> [S, D]."""
        x = self._embed(ids, starts)
        mask = _mask(starts)
        if len(ids) <= self._long_rows:
            for part, encode in enumerate(self._encoder):
                if part and between is not None:
                    between()
                x = encode(states=x, mask=mask)["states"]
            return x
        # An interpreter keeps buffers for the longest sequence that it has seen. For a long text each block
        # is opened afresh and dropped, so that nothing of that size is kept.
        for number in range(self.config.num_hidden_layers):
            if number and between is not None:
                between()
            x = self._long_step(self._open(block_file(number)), x, mask)
        release_heap()
        return x

    def _long_step(self, block: Interpreter, x: FloatArray, mask: FloatArray) -> FloatArray:
        """One block over a long sequence [S, D]: projections, attention head by head, the rest by rows."""
        projected = self._runner(block, "project")(states=x)
        context = self._long_attention(projected["queries"], projected["keys"], projected["values"], mask)
        del projected
        finish, found = self._runner(block, "finish"), np.empty_like(x)
        for start in range(0, len(x), _STEP_ROWS):
            rows = slice(start, start + _STEP_ROWS)
            found[rows] = finish(context=context[:, rows], states=x[rows])["states"]
        return found

    def _long_attention(
        self, queries: FloatArray, keys: FloatArray, values: FloatArray, mask: FloatArray
    ) -> FloatArray:
        """Shapes: [H, S, d] each, [1, S or 1, S or 1] -> [H, S, d]."""
        attention, found, length = self._open(ATTENTION_FILE), np.empty_like(queries), queries.shape[1]
        inputs = [entry["index"] for entry in attention.get_input_details()]
        output = attention.get_output_details()[0]["index"]
        step = min(length, max(1, self._max_scores // length))
        whole = length - length % step
        # Steps of one size together: a change of size costs, and keys and values are as long as the text.
        for starts in (range(0, whole, step), range(whole, length, step)):
            if not starts:
                continue
            first = slice(starts[0], starts[0] + step)
            one = queries[:1, first], keys[:1], values[:1], _rows_of(mask, first)
            for place, value in zip(inputs, one, strict=True):
                attention.resize_tensor_input(place, value.shape)
            attention.allocate_tensors()
            for head in range(len(queries)):
                here = slice(head, head + 1)
                attention.set_tensor(inputs[1], keys[here])
                attention.set_tensor(inputs[2], values[here])
                for start in starts:
                    rows = slice(start, start + step)
                    attention.set_tensor(inputs[0], queries[here, rows])
                    attention.set_tensor(inputs[3], _rows_of(mask, rows))
                    attention.invoke()
                    found[here, rows] = attention.get_tensor(output)
        return found

    def _embed(self, ids: IntArray, starts: IntArray) -> FloatArray:
        w = self._weights
        places = positions(ids, starts, self.config.pad_token_id)
        x = w.words.rows(ids)
        x += w.token_type[0]
        x += w.position[places]
        x -= x.mean(axis=1, keepdims=True)
        variance = np.einsum("sd,sd->s", x, x) / np.float32(x.shape[1])
        x *= (1 / np.sqrt(variance + np.float32(self.config.layer_norm_eps)))[:, None]
        x *= w.norm_weight
        x += w.norm_bias
        return x

    def _heads(
        self,
        members: Sequence[IntArray],
        starts: IntArray,
        hidden: FloatArray,
        outputs: Collection[Output],
        normalize: bool,
    ) -> list[Embedding]:
        dense = token_weights = vectors = None
        if "dense" in outputs:
            dense = _unit_rows(self._pool(hidden, starts), normalize)
        if self._head_runner is not None and ("sparse" in outputs or "colbert" in outputs):
            made = self._head_runner(states=hidden)
            token_weights = made["token_weights"][:, 0] if "sparse" in outputs else None
            vectors = _unit_rows(made["vectors"], normalize) if "colbert" in outputs else None
        return split_embeddings(
            members,
            starts,
            dense=dense,
            token_weights=token_weights,
            vectors=vectors,
            unused=self._unused_ids,
        )

    def _pool(self, hidden: FloatArray, starts: IntArray) -> FloatArray:
        if self._pooling == "cls":
            return hidden[starts[:-1]]
        sums = np.add.reduceat(hidden, starts[:-1], axis=0)
        return np.asarray(sums / np.diff(starts)[:, None], np.float32)


def sequences(lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of the texts of each sequence: short ones packed together first-fit, long ones alone."""
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    found: list[list[int]] = []
    room: list[int] = []
    for number in order:
        place = next((n for n, free in enumerate(room) if free >= lengths[number]), None)
        if place is None:
            found.append([number])
            room.append(_SHARED_ROWS - lengths[number])
        else:
            found[place].append(number)
            room[place] -= lengths[number]
    return found


def _mask(starts: IntArray) -> FloatArray:
    """What is added to the scores: [1, 1, 1] zero for one text, [1, S, S] that keeps several apart."""
    if len(starts) == 2:
        return np.zeros((1, 1, 1), np.float32)
    owner = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    return np.where(owner[:, None] == owner, np.float32(0), np.float32(_MASKED))[None]


def _rows_of(mask: FloatArray, rows: slice) -> FloatArray:
    """The mask of some query rows; that of a single text is the same for all."""
    return mask if mask.shape[1] == 1 else mask[:, rows]


def _unit_rows(rows: FloatArray, normalize: bool) -> FloatArray:
    if not normalize:
        return rows
    lengths = np.sqrt(np.einsum("sd,sd->s", rows, rows))
    return np.asarray(rows / np.maximum(lengths, np.float32(1e-12))[:, None], np.float32)
