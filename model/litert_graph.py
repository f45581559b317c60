"""The encoder as a LiteRT model with int8 weights, converted block by block and put together.

Legend: T tokens of a sequence, Tq its query rows, D hidden, H heads, I intermediate size, C ColBERT
dimension, d = D / H. A block is converted alone, so that memory does not grow with depth. `merge` then
chains the blocks, some to a graph, so that little is copied between them and their buffers are shared.
Its parts are of use alone too, for texts too long to attend in one piece: projections of all rows, then
attention head by head for some query rows at a time, then the rest. These are files of their own, because
LiteRT packs the weights of every graph of a file.
Needs TensorFlow; `litert.py` runs the result without it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import flatbuffers
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from model.config import EncoderConfig
from model.embedding import FloatArray

Tensor = Any


def convert_block(config: EncoderConfig, weights: Mapping[str, FloatArray]) -> bytes:
    """What has weights in a block, as a LiteRT model: int8 products, everything between them in float32.

    Signature `project`: `states` [T, D] -> `queries`, `keys`, `values` [H, T, d]. Signature `finish`:
    `context` [H, T, d] and `states` [T, D] -> `states` [T, D]. Between them stands `convert_attention`.
    `weights` maps the names after `encoder/layer/N/` to arrays ([in, out] kernels).
    """
    heads, size = config.num_attention_heads, config.head_size

    def linear(x: Tensor, name: str, scale: float = 1.0) -> Tensor:
        # The scale of the scores is folded into the query's weights: one operation less.
        return tf.matmul(x, weights[f"{name}/kernel"] * scale) + weights[f"{name}/bias"] * scale

    def split(x: Tensor) -> Tensor:
        return tf.transpose(tf.reshape(x, [-1, heads, size]), [1, 0, 2])  # [H, T, d]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
        variance = tf.reduce_mean(centred * centred, axis=-1, keepdims=True)
        scaled = centred * tf.math.rsqrt(variance + config.layer_norm_eps)
        return scaled * weights[f"{name}/weight"] + weights[f"{name}/bias"]

    def project(states: Tensor) -> tuple[Tensor, ...]:
        return (
            split(linear(states, "attention/self/query", size**-0.5)),
            split(linear(states, "attention/self/key")),
            split(linear(states, "attention/self/value")),
        )

    def finish(context: Tensor, states: Tensor) -> Tensor:
        rows = tf.reshape(tf.transpose(context, [1, 0, 2]), [-1, config.hidden_size])
        x = norm(linear(rows, "attention/output/dense") + states, "attention/output/LayerNorm")
        inner = tf.nn.gelu(linear(x, "intermediate/dense"), approximate=False)  # [T, I]
        return norm(linear(inner, "output/dense") + x, "output/LayerNorm")

    states = tf.TensorSpec([None, config.hidden_size], name="states")
    context = tf.TensorSpec([heads, None, size], name="context")
    model = _converted(tf.function(project, input_signature=[states]), int8=True)
    other = _converted(tf.function(finish, input_signature=[context, states]), int8=True)
    model.metadata = []
    model = _appended(model, other, other.subgraphs)
    model.subgraphs += other.subgraphs
    model.signatureDefs = [
        _signature(model, 0, "project", ["states"], ["queries", "keys", "values"]),
        _signature(model, 1, "finish", ["context", "states"], ["states"]),
    ]
    return _packed(model)


def convert_attention(config: EncoderConfig, *, heads: int) -> bytes:
    """softmax(q k^T + mask) v of some heads, without weights, signature `attend`.

    `queries` [heads, Tq, d] (scaled already), `keys`, `values` [heads, T, d], `mask` [1, Tq or 1, T or 1]
    -> `context` [heads, Tq, d].
    """

    def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        shares = tf.nn.softmax(tf.matmul(queries, keys, transpose_b=True) + mask)  # [heads, Tq, T]
        return tf.matmul(shares, values)

    rows = tf.TensorSpec([heads, None, config.head_size])
    signature = [rows, rows, rows, tf.TensorSpec([1, None, None])]
    model = _converted(tf.function(attend, input_signature=signature), int8=False)
    inputs = ["queries", "keys", "values", "mask"]
    model.metadata, model.signatureDefs = [], [_signature(model, 0, "attend", inputs, ["context"])]
    return _packed(model)


def convert_heads(weights: Mapping[str, FloatArray]) -> Any:
    """The lexical and the ColBERT head in float32: `states` [T, D] -> token weights [T, 1], vectors [T, C].

    A model for `merge`.
    `weights` has the checkpoint's names. The lexical weights are past their relu, the vectors not normalised.
    """

    def heads(states: Tensor) -> tuple[Tensor, Tensor]:
        token_weights = tf.matmul(states, weights["sparse_linear/kernel"]) + weights["sparse_linear/bias"]
        vectors = tf.matmul(states, weights["colbert_linear/kernel"]) + weights["colbert_linear/bias"]
        return tf.nn.relu(token_weights), vectors

    width = len(weights["sparse_linear/kernel"])
    signature = [tf.TensorSpec([None, width], name="states")]
    return _converted(tf.function(heads, input_signature=signature), int8=False)


def _converted(traced: Tensor, *, int8: bool) -> Any:
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced.get_concrete_function()], traced)
    if int8:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return schema.ModelT.InitFromPackedBuf(bytes(converter.convert()), 0)


def merge(blocks: Iterable[bytes], attention: bytes, heads: Any, sizes: Sequence[int]) -> bytes:
    """Blocks, the attention of all their heads and M3's heads, or None, as one model.

    Signatures: `encoder_0`, `encoder_1`, ... of so many blocks each, `states` [T, D] and `mask`
    [1, T or 1, T or 1] -> `states` [T, D]; and `heads`. Between two parts another text may be computed.
    """
    coming = iter(blocks)
    whole: Any = schema.ModelT.InitFromPackedBuf(attention, 0)
    [attend] = whole.subgraphs
    whole.subgraphs, whole.signatureDefs = [], []
    for number, size in enumerate(sizes):
        chain = schema.SubGraphT()
        chain.name, chain.operators = f"encoder_{number}".encode(), []
        states, mask = 0, 1
        for source in islice(coming, size):
            block = schema.ModelT.InitFromPackedBuf(source, 0)
            project, finish = block.subgraphs
            whole = _appended(whole, block, (project, finish))
            if chain.tensors is None:
                places = (project.tensors[project.inputs[0]], attend.tensors[attend.inputs[-1]])
                chain.tensors, chain.inputs = [copy.copy(tensor) for tensor in places], [states, mask]
            attended = _extend(chain, attend, [*_extend(chain, project, [states]), mask])
            [states] = _extend(chain, finish, [*attended, states])
        chain.outputs = [states]
        whole.subgraphs.append(chain)
        signature = _signature(whole, number, f"encoder_{number}", ["states", "mask"], ["states"])
        whole.signatureDefs.append(signature)
    if heads is not None:
        whole = _appended(whole, heads, heads.subgraphs)
        whole.subgraphs += heads.subgraphs
        whole.signatureDefs.append(
            _signature(whole, len(sizes), "heads", ["states"], ["token_weights", "vectors"])
        )
    return _packed(whole)


def _packed(model: Any) -> bytes:
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _appended(whole: Any, model: Any, graphs: Iterable[Any]) -> Any:
    """`whole` with the operator codes and buffers of a model, to which these graphs of it then refer."""
    codes = [_code(whole.operatorCodes, code) for code in model.operatorCodes]
    for graph in graphs:
        for tensor in graph.tensors:
            tensor.buffer += len(whole.buffers)
        for operator in graph.operators:
            operator.opcodeIndex = codes[operator.opcodeIndex]
    whole.buffers += model.buffers
    return whole


def _extend(chain: Any, graph: Any, inputs: Iterable[int]) -> list[int]:
    """Let a graph work on tensors of the chain; the numbers of its outputs there."""
    moved = dict(zip((int(place) for place in graph.inputs), inputs, strict=True))
    for place, tensor in enumerate(graph.tensors):
        if place not in moved:
            moved[place] = len(chain.tensors)
            chain.tensors.append(copy.copy(tensor))
    for operator in graph.operators:
        found = copy.copy(operator)
        for field in ("inputs", "outputs", "intermediates"):
            places = getattr(operator, field)
            if places is not None:  # -1 stands for an input that is left out
                setattr(found, field, [moved[int(place)] if place >= 0 else -1 for place in places])
        chain.operators.append(found)
    return [moved[int(place)] for place in graph.outputs]


def _code(known: list[Any], wanted: Any) -> int:
    """Position of an operator code among the known ones; a new one is added."""
    key = (wanted.builtinCode, wanted.version, wanted.customCode)
    for place, code in enumerate(known):
        if (code.builtinCode, code.version, code.customCode) == key:
            return place
    known.append(wanted)
    return len(known) - 1


def _signature(model: Any, graph: int, name: str, inputs: Iterable[str], outputs: Iterable[str]) -> Any:
    """Names for the inputs and outputs of a graph, in its own order, which is that of the traced function."""
    found = schema.SignatureDefT()
    found.signatureKey, found.subgraphIndex = name.encode(), graph
    found.inputs = _named(inputs, model.subgraphs[graph].inputs)
    found.outputs = _named(outputs, model.subgraphs[graph].outputs)
    return found


def _named(names: Iterable[str], tensors: Iterable[int]) -> list[Any]:
    entries = []
    for name, tensor in zip(names, tensors, strict=True):
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name.encode(), int(tensor)
        entries.append(entry)
    return entries
