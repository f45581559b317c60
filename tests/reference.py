"""BGE-M3 by torch and transformers: what our encoder and heads are compared with.

The encoder is transformers' own XLMRobertaModel; the heads are written from their definitions,
text by text, as plainly as can be. Legend: T tokens, D hidden, C ColBERT dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import XLMRobertaConfig, XLMRobertaModel

from app import loading
from model.embedding import FloatArray, IntArray
from model.tensorflow_engine import TensorFlowEngine


@dataclass(frozen=True)
class Reference:
    """What the reference says of one text."""

    hidden: FloatArray  # [T, D]
    dense: FloatArray  # [D]
    sparse: dict[int, float]
    colbert: FloatArray  # [T - 1, C]


def make_checkpoint(
    folder: Path,
    *,
    seed: int,
    colbert_dim: int | None = None,
    safetensors: bool = True,
    dtype: torch.dtype = torch.float32,
    head_dtype: torch.dtype = torch.float16,
    sparse_bias: float = 0.05,
    **sizes: object,
) -> XLMRobertaModel:
    """Save a random checkpoint in the published layout (without tokenizer) and return its encoder.

    Biases and LayerNorms are random too, so that leaving one out shows.
    """
    torch.manual_seed(seed)
    config = XLMRobertaConfig(
        bos_token_id=0, pad_token_id=1, eos_token_id=2, type_vocab_size=1, layer_norm_eps=1e-5, **sizes
    )
    model = XLMRobertaModel(config, add_pooling_layer=True).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
            elif "LayerNorm" in name:
                parameter.normal_(1, 0.1)
            elif "pooler" not in name:
                parameter.normal_(0, 0.05 if parameter.shape[-1] < 512 else 0.03)
    folder.mkdir(parents=True, exist_ok=True)
    if safetensors:
        model.to(dtype).save_pretrained(folder)
    else:
        config.save_pretrained(folder)
        torch.save(model.to(dtype).state_dict(), folder / "pytorch_model.bin")
    width = config.hidden_size
    colbert = torch.nn.Linear(width, colbert_dim or width)
    sparse = torch.nn.Linear(width, 1)
    with torch.no_grad():
        sparse.weight.normal_(0, width**-0.5)  # weights of about 1, as trained heads give
        sparse.bias.fill_(sparse_bias)
    torch.save({k: v.to(head_dtype) for k, v in colbert.state_dict().items()}, folder / "colbert_linear.pt")
    # The loader wants the file for the fingerprint; these tests make token ids themselves.
    (folder / "tokenizer.json").write_text("{}")
    torch.save({k: v.to(head_dtype) for k, v in sparse.state_dict().items()}, folder / "sparse_linear.pt")
    return model.float()


def load_engine(folder: Path, **options: object) -> TensorFlowEngine:
    """Our engine, filled from the checkpoint by the real loader."""
    engine, _ = loading.load_engine(folder, unused_ids=(0, 1, 2, 3), **options)
    return engine


def load_encoder(folder: Path) -> XLMRobertaModel:
    """The checkpoint's encoder in float32."""
    return XLMRobertaModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32).eval()


def reference_outputs(
    encoder: XLMRobertaModel, folder: Path, batch: Sequence[IntArray], *, padded: bool = True
) -> list[Reference]:
    """Encode token ids with torch: padded to the longest as the reference does, or one by one."""
    colbert = {k: v.float() for k, v in torch.load(folder / "colbert_linear.pt").items()}
    sparse = {k: v.float() for k, v in torch.load(folder / "sparse_linear.pt").items()}
    states = (
        _padded_states(encoder, batch) if padded else [_padded_states(encoder, [one])[0] for one in batch]
    )
    return [_heads(ids, hidden, colbert, sparse) for ids, hidden in zip(batch, states, strict=True)]


def _padded_states(encoder: XLMRobertaModel, batch: Sequence[IntArray]) -> list[torch.Tensor]:
    longest = max(len(ids) for ids in batch)
    ids = torch.full((len(batch), longest), 1, dtype=torch.long)
    mask = torch.zeros((len(batch), longest), dtype=torch.long)
    for row, one in enumerate(batch):
        ids[row, : len(one)] = torch.from_numpy(one.astype(np.int64))
        mask[row, : len(one)] = 1
    with torch.no_grad():
        states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    return [states[row, : len(one)] for row, one in enumerate(batch)]


def _heads(
    ids: IntArray, hidden: torch.Tensor, colbert: dict[str, torch.Tensor], sparse: dict[str, torch.Tensor]
) -> Reference:
    weights = torch.relu(hidden @ sparse["weight"].T + sparse["bias"])[:, 0].tolist()
    lexical: dict[int, float] = {}
    for token, weight in zip(ids.tolist(), weights, strict=True):
        if token not in (0, 1, 2, 3) and weight > 0:
            lexical[token] = max(weight, lexical.get(token, 0.0))
    vectors = hidden[1:] @ colbert["weight"].T + colbert["bias"]
    return Reference(
        hidden=hidden.numpy(),
        dense=torch.nn.functional.normalize(hidden[0], dim=-1).numpy(),
        sparse=lexical,
        colbert=torch.nn.functional.normalize(vectors, dim=-1).numpy(),
    )


def random_batch(
    generator: np.random.Generator, lengths: Sequence[int], vocab_size: int
) -> list[NDArray[np.int32]]:
    """Token ids between `<s>` and `</s>`; a text of one token is `<s>` alone."""
    batch = []
    for length in lengths:
        inner = generator.integers(4, vocab_size, max(length - 2, 0))
        # Repeat some tokens: the lexical head takes the maximum over occurrences.
        if inner.size > 4:
            inner[-2:] = inner[:2]
        batch.append(np.array([0, *inner, 2][:length] if length > 1 else [0], np.int32))
    return batch
