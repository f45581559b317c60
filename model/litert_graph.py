"""One block of the encoder as a LiteRT graph with int8 weights, and many blocks as one file.

Legend: T tokens of a sequence, Tq its query rows, D hidden, H heads, I intermediate size.
A block is converted alone, so that memory does not grow with depth; the flatbuffers are then
merged into one model with a signature for each block. One model means one XNNPACK delegate, and so
one workspace for all blocks. Needs TensorFlow; `litert.py` runs the result without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flatbuffers
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from model.config import EncoderConfig
from model.embedding import FloatArray

INPUTS = ("queries", "keys", "mask")
OUTPUT = "states"

Tensor = Any


def signature_name(block: int) -> str:
    """Name of a block's signature in the merged model."""
    return f"block_{block}"


def convert_block(config: EncoderConfig, weights: Mapping[str, FloatArray]) -> bytes:
    """A block as a LiteRT model: dynamic-range int8 products, everything between them in float32.

    `weights` maps the names after `encoder/layer/N/` to arrays ([in, out] kernels). Inputs: `queries`
    [Tq, D] and `keys` [T, D] (the same rows twice, or a part of a long text and all of it), `mask`
    [1, Tq or 1, T or 1] added to the scores. Output: [Tq, D].
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

    def block(queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        q = split(linear(queries, "attention/self/query", size**-0.5))
        k = split(linear(keys, "attention/self/key"))
        v = split(linear(keys, "attention/self/value"))
        shares = tf.nn.softmax(tf.matmul(q, k, transpose_b=True) + mask)  # [H, Tq, T]
        context = tf.reshape(tf.transpose(tf.matmul(shares, v), [1, 0, 2]), [-1, config.hidden_size])
        x = norm(linear(context, "attention/output/dense") + queries, "attention/output/LayerNorm")
        inner = tf.nn.gelu(linear(x, "intermediate/dense"), approximate=False)  # [Tq, I]
        return norm(linear(inner, "output/dense") + x, "output/LayerNorm")

    rows = [None, config.hidden_size]
    signature = [
        tf.TensorSpec(rows, name="queries"),
        tf.TensorSpec(rows, name="keys"),
        tf.TensorSpec([1, None, None], name="mask"),
    ]
    traced = tf.function(block, input_signature=signature)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced.get_concrete_function()], traced)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return bytes(converter.convert())


def merge(models: Iterable[bytes]) -> bytes:
    """Models of one graph each as one model with a signature for each, in order.

    Operator codes are shared, buffers appended; nothing else refers across a graph's border.
    """
    whole: Any = None
    for number, source in enumerate(models):
        model = schema.ModelT.InitFromPackedBuf(source, 0)
        graph = model.subgraphs[0]
        if whole is None:
            whole = model
            whole.subgraphs, whole.signatureDefs, whole.metadata = [], [], []
        else:
            codes = [_code(whole.operatorCodes, code) for code in model.operatorCodes]
            for tensor in graph.tensors:
                tensor.buffer += len(whole.buffers)
            for operator in graph.operators:
                operator.opcodeIndex = codes[operator.opcodeIndex]
            whole.buffers += model.buffers
        whole.subgraphs.append(graph)
        whole.signatureDefs.append(_signature(graph, number))
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(whole.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _code(known: list[Any], wanted: Any) -> int:
    """Position of an operator code among the known ones; a new one is added."""
    for place, code in enumerate(known):
        if (code.builtinCode, code.version, code.customCode) == (
            wanted.builtinCode,
            wanted.version,
            wanted.customCode,
        ):
            return place
    known.append(wanted)
    return len(known) - 1


def _signature(graph: Any, number: int) -> Any:
    found = schema.SignatureDefT()
    found.signatureKey = signature_name(number).encode()
    found.subgraphIndex = number
    found.inputs = _named(INPUTS, graph.inputs)
    found.outputs = _named((OUTPUT,), graph.outputs)
    return found


def _named(names: Sequence[str], tensors: Sequence[int]) -> list[Any]:
    entries = []
    for name, tensor in zip(names, tensors, strict=True):
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name.encode(), int(tensor)
        entries.append(entry)
    return entries
