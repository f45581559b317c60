"""The XLM-RoBERTa encoder on TensorFlow: embeddings and N post-LayerNorm blocks, padding-free.

Legend: S packed tokens of a batch, G texts of an attention tile, T rows of each, Tq query rows of a step,
H heads, D hidden, d = D / H, V vocabulary. Source of the arithmetic: RoBERTa as transformers
computes it (`modeling_xlm_roberta.py`), without dropout and without the pooler, which M3 ignores.
Variables carry the checkpoint's own names (`weights.mapping` has the table). It does not read
checkpoints, batch texts or train.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from model.config import EncoderConfig

Tensor = Any  # TensorFlow ships no types; the shape comments say what mypy cannot

_MASKED = -1e9  # added to the scores of padding keys: exp() makes it exactly 0 in float32


def variable(shape: tuple[int, ...], dtype: str) -> Tensor:
    """A weight, zero until a checkpoint fills it."""
    return tf.Variable(tf.zeros(shape, dtype), trainable=False)


class Linear(tf.Module):  # type: ignore[misc]
    """y = x W + b with W [in, out]. Shape: [S, in] -> [S, out]."""

    def __init__(self, inputs: int, outputs: int, *, gelu: bool = False, dtype: str) -> None:
        super().__init__()
        self._gelu = gelu
        self.kernel = variable((inputs, outputs), dtype)
        self.bias = variable((outputs,), dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Matmul, bias and (where asked) the exact, erf-based GELU: TensorFlow fuses the three."""
        y = tf.nn.bias_add(tf.matmul(x, self.kernel), self.bias)
        return tf.nn.gelu(y, approximate=False) if self._gelu else y


class LayerNorm(tf.Module):  # type: ignore[misc]
    """LayerNorm over the last axis, computed in float32 whatever the precision. Shape: [S, D] -> [S, D]."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self._epsilon = epsilon
        self.weight = variable((size,), "float32")
        self.bias = variable((size,), "float32")

    def __call__(self, x: Tensor) -> Tensor:
        """Biased variance, as torch computes it."""
        wide = tf.cast(x, tf.float32)
        centred = wide - tf.reduce_mean(wide, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
        scaled = centred * tf.math.rsqrt(variance + self._epsilon) * self.weight + self.bias
        return tf.cast(scaled, x.dtype)


class Embeddings(tf.Module):  # type: ignore[misc]
    """Word + position + token type 0, then LayerNorm. Shapes: word rows [S, D], positions [S] -> [S, D].

    The word embeddings themselves stay outside (`words.py`): their rows come in.
    """

    def __init__(self, config: EncoderConfig, *, dtype: str) -> None:
        super().__init__()
        width = config.hidden_size
        self.position = variable((config.max_position_embeddings, width), dtype)
        self.token_type = variable((config.type_vocab_size, width), dtype)
        self.norm = LayerNorm(width, config.layer_norm_eps)

    def __call__(self, words: Tensor, positions: Tensor) -> Tensor:
        """Rows are looked up where they lie: the table of positions is never copied."""
        position = tf.nn.embedding_lookup(self.position, positions)
        return self.norm(tf.cast(words, position.dtype) + self.token_type[0] + position)


class SelfAttention(tf.Module):  # type: ignore[misc]
    """softmax(Q K^T / sqrt(d)) V, each text attending to itself alone. Shape: [S, D] -> [S, D]."""

    def __init__(self, config: EncoderConfig, *, dtype: str) -> None:
        super().__init__()
        width = config.hidden_size
        self._heads, self._head_size = config.num_attention_heads, config.head_size
        self.query = Linear(width, width, dtype=dtype)
        self.key = Linear(width, width, dtype=dtype)
        self.value = Linear(width, width, dtype=dtype)

    def __call__(self, x: Tensor, plan: dict[str, Tensor]) -> Tensor:
        """Walk over the tiles of a `PackedBatch`; see `packing.py` for what `plan` holds."""
        scale = tf.cast(self._head_size**-0.5, x.dtype)
        q, k, v = self.query(x) * scale, self.key(x), self.value(x)  # [S, D] each
        parts = tf.TensorArray(
            x.dtype, size=plan["steps"], infer_shape=False, element_shape=[None, x.shape[-1]]
        )

        def tile(i: Tensor, at: Tensor, number: Tensor, parts: Tensor) -> tuple[Tensor, ...]:
            size = plan["tile_sizes"][i]
            groups, length, step = size[0], size[1], size[2]
            end = at + groups * length
            rows = plan["rows"][at:end]
            tq, tk, tv = (self._split(tf.gather(one, rows), groups, length) for one in (q, k, v))
            hidden = tf.reshape(plan["visible"][at:end], [groups, 1, 1, length])
            mask = tf.where(hidden, tf.zeros([], tf.float32), _MASKED)  # [G, 1, 1, T]

            def attend(begin: Tensor, number: Tensor, parts: Tensor) -> tuple[Tensor, ...]:
                context = self._attend(tq[:, :, begin : begin + step], tk, tv, mask)  # [G, H, step, d]
                rows = tf.reshape(tf.transpose(context, [0, 2, 1, 3]), [-1, x.shape[-1]])
                return begin + step, number + 1, parts.write(number, rows)

            _, number, parts = tf.while_loop(
                lambda begin, *_: begin < length, attend, (zero, number, parts), parallel_iterations=1
            )
            return i + 1, end, number, parts

        zero, count = tf.constant(0), tf.shape(plan["tile_sizes"])[0]
        *_, parts = tf.while_loop(
            lambda i, *_: i < count, tile, (zero, zero, zero, parts), parallel_iterations=1
        )
        return tf.gather(parts.concat(), plan["gather"])

    def _split(self, rows: Tensor, groups: Tensor, length: Tensor) -> Tensor:
        """[G * T, D] -> [G, H, T, d]."""
        return tf.transpose(tf.reshape(rows, [groups, length, self._heads, self._head_size]), [0, 2, 1, 3])

    @staticmethod
    def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        scores = tf.cast(tf.matmul(q, k, transpose_b=True), tf.float32)  # [G, H, Tq, T]
        return tf.matmul(tf.cast(tf.nn.softmax(scores + mask), v.dtype), v)


class Block(tf.Module):  # type: ignore[misc]
    """Attention and feed-forward, each followed by add and LayerNorm. Shape: [S, D] -> [S, D]."""

    def __init__(self, config: EncoderConfig, *, dtype: str) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.attention = SelfAttention(config, dtype=dtype)
        self.attention_output = Linear(width, width, dtype=dtype)
        self.attention_norm = LayerNorm(width, config.layer_norm_eps)
        self.intermediate = Linear(width, inner, gelu=True, dtype=dtype)
        self.output_dense = Linear(inner, width, dtype=dtype)
        self.output_norm = LayerNorm(width, config.layer_norm_eps)

    def __call__(self, x: Tensor, plan: dict[str, Tensor]) -> Tensor:
        """One post-LayerNorm block."""
        x = self.attention_norm(self.attention_output(self.attention(x, plan)) + x)
        return self.output_norm(self.output_dense(self.intermediate(x)) + x)


class Encoder(tf.Module):  # type: ignore[misc]
    """Word embeddings to last hidden states, for any depth, width and vocabulary.

    First `embeddings`, then every `part`; `plan` holds the arrays of a `PackedBatch`.
    """

    def __init__(self, config: EncoderConfig, *, dtype: str = "float32") -> None:
        super().__init__()
        self.embeddings = Embeddings(config, dtype=dtype)
        self.blocks = [Block(config, dtype=dtype) for _ in range(config.num_hidden_layers)]

    def part(self, blocks: range, x: Tensor, plan: dict[str, Tensor]) -> Tensor:
        """Some blocks, one after another. Shape: [S, D] -> [S, D]."""
        for number in blocks:
            x = self.blocks[number](x, plan)
        return x

    def named_variables(self) -> dict[str, Tensor]:
        """Every variable by its checkpoint name; `weights.mapping` lists these and the word embeddings."""
        named = {
            "embeddings/position_embeddings/weight": self.embeddings.position,
            "embeddings/token_type_embeddings/weight": self.embeddings.token_type,
            **_norm("embeddings/LayerNorm", self.embeddings.norm),
        }
        for number, block in enumerate(self.blocks):
            here = f"encoder/layer/{number}"
            named |= linear_variables(f"{here}/attention/self/query", block.attention.query)
            named |= linear_variables(f"{here}/attention/self/key", block.attention.key)
            named |= linear_variables(f"{here}/attention/self/value", block.attention.value)
            named |= linear_variables(f"{here}/attention/output/dense", block.attention_output)
            named |= _norm(f"{here}/attention/output/LayerNorm", block.attention_norm)
            named |= linear_variables(f"{here}/intermediate/dense", block.intermediate)
            named |= linear_variables(f"{here}/output/dense", block.output_dense)
            named |= _norm(f"{here}/output/LayerNorm", block.output_norm)
        return named


def linear_variables(name: str, layer: Linear) -> dict[str, Tensor]:
    """Kernel and bias of a linear layer under its checkpoint name."""
    return {f"{name}/kernel": layer.kernel, f"{name}/bias": layer.bias}


def _norm(name: str, layer: LayerNorm) -> dict[str, Tensor]:
    return {f"{name}/weight": layer.weight, f"{name}/bias": layer.bias}
