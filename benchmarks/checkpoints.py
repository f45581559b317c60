"""Make a random checkpoint with BGE-M3's own sizes and file formats: 568 million parameters, 2.27 GB.

The weights are random but not tiny, biases and LayerNorms included, so that an error in any part
shows in the outputs. Needs torch (extra `dev`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

BGE_M3 = {
    "architectures": ["XLMRobertaModel"],
    "attention_probs_dropout_prob": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 8194,
    "model_type": "xlm-roberta",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "pad_token_id": 1,
    "position_embedding_type": "absolute",
    "type_vocab_size": 1,
    "vocab_size": 250002,
}


def make_full_size(folder: Path, *, seed: int, tokenizer: Path | None = None) -> None:
    """Write `config.json`, `pytorch_model.bin` (float32) and the two float16 head files.

    `tokenizer` is a folder whose tokenizer files are copied beside them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, mean: float = 0.0, std: float = 0.02) -> torch.Tensor:
        return torch.empty(shape).normal_(mean, std, generator=generator)

    width, inner = 1024, 4096
    state: dict[str, torch.Tensor] = {
        "embeddings.word_embeddings.weight": random(250002, width, std=0.05),
        "embeddings.position_embeddings.weight": random(8194, width, std=0.05),
        "embeddings.token_type_embeddings.weight": random(1, width, std=0.05),
    }

    def linear(name: str, inputs: int, outputs: int) -> None:
        state[f"{name}.weight"] = random(outputs, inputs, std=0.03)
        state[f"{name}.bias"] = random(outputs, std=0.05)

    def norm(name: str) -> None:
        state[f"{name}.weight"] = random(width, mean=1.0, std=0.1)
        state[f"{name}.bias"] = random(width, std=0.05)

    norm("embeddings.LayerNorm")
    for layer in range(24):
        here = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            linear(f"{here}.attention.self.{part}", width, width)
        linear(f"{here}.attention.output.dense", width, width)
        norm(f"{here}.attention.output.LayerNorm")
        linear(f"{here}.intermediate.dense", width, inner)
        linear(f"{here}.output.dense", inner, width)
        norm(f"{here}.output.LayerNorm")
    linear("pooler.dense", width, width)
    torch.save(state, folder / "pytorch_model.bin")
    heads = {"colbert_linear": (width, 0.03), "sparse_linear": (1, 0.03)}
    for name, (outputs, std) in heads.items():
        head = {"weight": random(outputs, width, std=std).half(), "bias": random(outputs, std=0.02).half()}
        torch.save(head, folder / f"{name}.pt")
    (folder / "config.json").write_text(json.dumps(BGE_M3, indent=2))
    if tokenizer is not None:
        for file in tokenizer.iterdir():
            if file.name != "config.json":
                shutil.copy(file, folder / file.name)
