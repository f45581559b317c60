"""The table: a tensor of the checkpoint <-> a variable of the model, and how it is laid out.

Legend: V vocabulary, P positions, D hidden size, I intermediate size, C ColBERT dimension.

One entry serves both directions: `loader.py` reads by it, an export writes by it. A variable has
the checkpoint's own name with `/` for `.`, so that any tensor can be compared with the reference
by name; only matrices of linear layers change, from PyTorch's [out, in] `weight` to an
[in, out] `kernel`. It reads no file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from model.config import EncoderConfig

COLBERT_FILE = "colbert_linear.pt"
SPARSE_FILE = "sparse_linear.pt"

WORDS = "embeddings/word_embeddings/weight"
"""The variable of the word embeddings, the one that engines may leave where it lies."""

PREFIXES = ("roberta.", "xlm_roberta.")
"""What a model with a task head puts before the encoder's names."""


class Layout(Enum):
    """How a variable's values lie, compared with the checkpoint's tensor."""

    AS_IS = "as is"
    TRANSPOSED = "transposed"


@dataclass(frozen=True, slots=True)
class Entry:
    """One row: `tensor` of `shape` in the checkpoint is `variable` in the model."""

    tensor: str
    variable: str
    layout: Layout
    shape: tuple[int, ...]

    @property
    def variable_shape(self) -> tuple[int, ...]:
        """Shape of the variable: reversed where the layout is transposed."""
        return self.shape[::-1] if self.layout is Layout.TRANSPOSED else self.shape


_IGNORED: Mapping[str, str] = {
    r"pooler\.dense\.(weight|bias)": "M3 takes the hidden state of <s> itself, without a pooler",
    r"embeddings\.position_ids": "a buffer 0, 1, 2, ...; positions are computed from the token ids",
    r"lm_head\..+": "the head of masked-language-model training; it gives no embedding",
}
# Not `classifier.*`: that is a reranker or a classifier, and to serve its encoder as M3 would be wrong.


def ignored_reason(tensor: str) -> str | None:
    """Why a tensor (its name without prefix) is not loaded; None where it must be."""
    return next((reason for pattern, reason in _IGNORED.items() if re.fullmatch(pattern, tensor)), None)


def is_encoder_name(tensor: str) -> bool:
    """Whether a name, without prefix, belongs to the encoder and so would carry the file's prefix."""
    return tensor.startswith(("embeddings.", "encoder.", "pooler."))


def encoder_entries(config: EncoderConfig) -> tuple[Entry, ...]:
    """Every tensor of the encoder, in the order of computation."""
    hidden, inner = config.hidden_size, config.intermediate_size
    entries = [
        _table("embeddings.word_embeddings", config.vocab_size, hidden),  # [V, D]
        _table("embeddings.position_embeddings", config.max_position_embeddings, hidden),  # [P, D]
        _table("embeddings.token_type_embeddings", config.type_vocab_size, hidden),
        *_layer_norm("embeddings.LayerNorm", hidden),
    ]
    for number in range(config.num_hidden_layers):
        block = f"encoder.layer.{number}"
        for part in ("query", "key", "value"):
            entries += linear(f"{block}.attention.self.{part}", hidden, hidden)
        entries += linear(f"{block}.attention.output.dense", hidden, hidden)
        entries += _layer_norm(f"{block}.attention.output.LayerNorm", hidden)
        entries += linear(f"{block}.intermediate.dense", hidden, inner)  # kernel [D, I]
        entries += linear(f"{block}.output.dense", inner, hidden)  # kernel [I, D]
        entries += _layer_norm(f"{block}.output.LayerNorm", hidden)
    return tuple(entries)


def head_entries(config: EncoderConfig, colbert_dim: int) -> Mapping[str, tuple[Entry, ...]]:
    """The tensors of the two heads, by the file that holds them under the names `weight` and `bias`."""
    return {
        COLBERT_FILE: linear("", config.hidden_size, colbert_dim, "colbert_linear/"),  # kernel [D, C]
        SPARSE_FILE: linear("", config.hidden_size, 1, "sparse_linear/"),  # kernel [D, 1]
    }


def linear(layer: str, inputs: int, outputs: int, variable: str | None = None) -> tuple[Entry, Entry]:
    """Weight and bias of a linear layer: [outputs, inputs] in the checkpoint, [inputs, outputs] here."""
    tensor = f"{layer}." if layer else ""
    variable = tensor.replace(".", "/") if variable is None else variable
    return (
        Entry(f"{tensor}weight", f"{variable}kernel", Layout.TRANSPOSED, (outputs, inputs)),
        Entry(f"{tensor}bias", f"{variable}bias", Layout.AS_IS, (outputs,)),
    )


def _table(layer: str, rows: int, width: int) -> Entry:
    return Entry(f"{layer}.weight", f"{layer}.weight".replace(".", "/"), Layout.AS_IS, (rows, width))


def _layer_norm(layer: str, width: int) -> tuple[Entry, Entry]:
    weight, bias = f"{layer}.weight", f"{layer}.bias"
    return (
        Entry(weight, weight.replace(".", "/"), Layout.AS_IS, (width,)),
        Entry(bias, bias.replace(".", "/"), Layout.AS_IS, (width,)),
    )
