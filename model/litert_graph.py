"""The encoder as a LiteRT model with int8 weights, converted block by block and put together.

Legend: T tokens of a sequence, Tq its query rows, D hidden, H heads, I intermediate size, C ColBERT
dimension. A block is converted alone, so that memory does not grow with depth. `merge` then chains the
flatbuffers into one graph, so that nothing is copied between blocks and their buffers are shared. The
blocks are of use alone too, with queries and keys apart, for texts too long to attend in one piece:
files of their own, because LiteRT packs the weights of every signature of a file.
Needs TensorFlow; `litert.py` runs the result without it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import flatbuffers
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from model.config import EncoderConfig
from model.embedding import FloatArray

QUERIES, KEYS, MASK = range(3)  # inputs of a block, in order
BLOCK_INPUTS = ("queries", "keys", "mask")

Tensor = Any


def convert_block(config: EncoderConfig, weights: Mapping[str, FloatArray]) -> bytes:
    """A block as a LiteRT model, signature `block`: int8 products, everything between them in float32.

    `weights` maps the names after `encoder/layer/N/` to arrays ([in, out] kernels). Inputs: `queries`
    [Tq, D] and `keys` [T, D] (the same rows twice, or a part of a long text and all of it), `mask`
    [1, Tq or 1, T or 1] added to the scores. Output: `states` [Tq, D].
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
    converted = _converted(tf.function(block, input_signature=signature), int8=True)
    model = schema.ModelT.InitFromPackedBuf(converted, 0)
    graph = model.subgraphs[0]
    model.signatureDefs = [
        _signature("block", 0, zip(BLOCK_INPUTS, graph.inputs, strict=True), [("states", graph.outputs[0])])
    ]
    return _packed(model)


def convert_heads(weights: Mapping[str, FloatArray]) -> bytes:
    """The lexical and the ColBERT head in float32: `states` [T, D] -> token weights [T, 1], vectors [T, C].

    `weights` has the checkpoint's names. The lexical weights are past their relu, the vectors not normalised.
    """

    def heads(states: Tensor) -> tuple[Tensor, Tensor]:
        token_weights = tf.matmul(states, weights["sparse_linear/kernel"]) + weights["sparse_linear/bias"]
        vectors = tf.matmul(states, weights["colbert_linear/kernel"]) + weights["colbert_linear/bias"]
        return tf.nn.relu(token_weights), vectors

    width = len(weights["sparse_linear/kernel"])
    signature = [tf.TensorSpec([None, width], name="states")]
    return _converted(tf.function(heads, input_signature=signature), int8=False)


def _converted(traced: Tensor, *, int8: bool) -> bytes:
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced.get_concrete_function()], traced)
    if int8:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return bytes(converter.convert())


def merge(blocks: Iterable[bytes], heads: bytes | None) -> bytes:
    """Models of `convert_block` and `convert_heads` as one, with the signatures `encoder` and `heads`."""
    whole: Any = None
    chain = schema.SubGraphT()
    for source in blocks:
        model = schema.ModelT.InitFromPackedBuf(source, 0)
        whole = _appended(whole, model)
        _extend(chain, model.subgraphs[0])
    whole.subgraphs = [chain]
    inputs = zip(("states", "mask"), chain.inputs, strict=True)
    whole.signatureDefs = [_signature("encoder", 0, inputs, [("states", chain.outputs[0])])]
    if heads is not None:
        model = schema.ModelT.InitFromPackedBuf(heads, 0)
        whole = _appended(whole, model)
        graph = model.subgraphs[0]
        whole.subgraphs.append(graph)
        outputs = zip(("token_weights", "vectors"), graph.outputs, strict=True)
        whole.signatureDefs.append(_signature("heads", 1, [("states", graph.inputs[0])], outputs))
    return _packed(whole)


def _packed(model: Any) -> bytes:
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _appended(whole: Any, model: Any) -> Any:
    """`whole` with the operator codes and buffers of a model, whose graph then refers to them."""
    if whole is None:
        model.metadata = []
        return model
    codes = [_code(whole.operatorCodes, code) for code in model.operatorCodes]
    for tensor in model.subgraphs[0].tensors:
        tensor.buffer += len(whole.buffers)
    for operator in model.subgraphs[0].operators:
        operator.opcodeIndex = codes[operator.opcodeIndex]
    whole.buffers += model.buffers
    return whole


def _extend(chain: Any, block: Any) -> None:
    """Let a block work on what the chain gives so far; its queries and keys are the same rows.

    The chain's inputs are (states, mask).
    """
    queries, keys, mask = (int(block.inputs[place]) for place in (QUERIES, KEYS, MASK))
    if not chain.tensors:
        chain.name, chain.operators = b"encoder", []
        chain.tensors = [copy.copy(block.tensors[queries]), copy.copy(block.tensors[mask])]
        chain.inputs, chain.outputs = [0, 1], [0]
    moved = {queries: chain.outputs[0], keys: chain.outputs[0], mask: chain.inputs[1]}
    for place, tensor in enumerate(block.tensors):
        if place not in moved:
            moved[place] = len(chain.tensors)
            chain.tensors.append(copy.copy(tensor))
    for operator in block.operators:
        found = copy.copy(operator)
        for field in ("inputs", "outputs", "intermediates"):
            places = getattr(operator, field)
            if places is not None:  # -1 stands for an input that is left out
                setattr(found, field, [moved[int(place)] if place >= 0 else -1 for place in places])
        chain.operators.append(found)
    chain.outputs = [moved[int(block.outputs[0])]]


def _code(known: list[Any], wanted: Any) -> int:
    """Position of an operator code among the known ones; a new one is added."""
    key = (wanted.builtinCode, wanted.version, wanted.customCode)
    for place, code in enumerate(known):
        if (code.builtinCode, code.version, code.customCode) == key:
            return place
    known.append(wanted)
    return len(known) - 1


def _signature(
    name: str, graph: int, inputs: Iterable[tuple[str, int]], outputs: Iterable[tuple[str, int]]
) -> Any:
    found = schema.SignatureDefT()
    found.signatureKey, found.subgraphIndex = name.encode(), graph
    found.inputs, found.outputs = _named(inputs), _named(outputs)
    return found


def _named(tensors: Iterable[tuple[str, int]]) -> list[Any]:
    entries = []
    for name, tensor in tensors:
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name.encode(), int(tensor)
        entries.append(entry)
    return entries
