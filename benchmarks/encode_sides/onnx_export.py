"""Export a checkpoint's encoder to ONNX, optimise it, quantise it: the models of the onnx and openvino sides.

    python -m benchmarks.encode_sides.onnx_export CHECKPOINT OUT

Writes to OUT: `encoder.onnx` (as exported), `fused.onnx` (onnxruntime's BERT fusions, float32),
`int8.onnx` (fused, dynamic, weights QInt8 per channel) and `heads.npz`. The inputs are `input_ids`,
`attention_mask`, `position_ids` [B, T] int64 with both axes open; the output is `hidden` [B, T, D].
Run by the interpreter of TRIVEC_ONNX_PYTHON; full size needs about 8 GB of memory and 5 GB of disk.
Legend: B texts, T tokens, D hidden, H heads.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

OPSET = 17  # LayerNormalization as one node, which every runtime fuses alike


class Layer(nn.Module):
    """One post-LayerNorm transformer layer, spelt in the shape that graph optimisers look for."""

    def __init__(self, config: Mapping[str, int | float]) -> None:
        super().__init__()
        width, inner = int(config["hidden_size"]), int(config["intermediate_size"])
        self.heads = int(config["num_attention_heads"])
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.attended = nn.Linear(width, width)
        self.attended_norm = nn.LayerNorm(width, eps=float(config["layer_norm_eps"]))
        self.wide, self.narrow = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width, eps=float(config["layer_norm_eps"]))

    def split(self, rows: torch.Tensor) -> torch.Tensor:
        """[B, T, D] to [B, H, T, D / H]."""
        shape = (rows.size(0), rows.size(1), self.heads, rows.size(2) // self.heads)
        return rows.view(shape).permute(0, 2, 1, 3)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        query, key, value = (self.split(part(hidden)) for part in (self.query, self.key, self.value))
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(query.size(-1)) + mask
        context = torch.matmul(torch.softmax(scores, dim=-1), value).permute(0, 2, 1, 3).contiguous()
        hidden = self.attended_norm(self.attended(context.view(hidden.shape)) + hidden)
        return self.norm(self.narrow(nn.functional.gelu(self.wide(hidden))) + hidden)


class Stack(nn.Module):
    """Embeddings and layers of an XLM-R encoder."""

    def __init__(self, config: Mapping[str, int | float]) -> None:
        super().__init__()
        width = int(config["hidden_size"])
        self.words = nn.Embedding(int(config["vocab_size"]), width)
        self.places = nn.Embedding(int(config["max_position_embeddings"]), width)
        self.kind = nn.Parameter(torch.zeros(width))
        self.norm = nn.LayerNorm(width, eps=float(config["layer_norm_eps"]))
        self.layers = nn.ModuleList(Layer(config) for _ in range(int(config["num_hidden_layers"])))

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.words(ids) + self.kind + self.places(places))
        mask = (1.0 - attention_mask[:, None, None, :].to(hidden.dtype)) * torch.finfo(torch.float32).min
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return hidden


def read_state(folder: Path) -> dict[str, torch.Tensor]:
    """The encoder's tensors in float32, from either file format."""
    if (file := folder / "model.safetensors").exists():
        from safetensors.torch import load_file

        state = load_file(file)
    else:
        state = torch.load(folder / "pytorch_model.bin", mmap=True, weights_only=True)
    return {name: value.float() for name, value in state.items() if not name.startswith("pooler")}


def build(folder: Path) -> Stack:
    """The checkpoint's encoder; every tensor of the checkpoint must find its place."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    state = read_state(folder)
    with torch.device("meta"):
        model = Stack(config)
    parts = {
        "attention.self.query": "query",
        "attention.self.key": "key",
        "attention.self.value": "value",
        "attention.output.dense": "attended",
        "attention.output.LayerNorm": "attended_norm",
        "intermediate.dense": "wide",
        "output.dense": "narrow",
        "output.LayerNorm": "norm",
    }
    named = {
        "words.weight": state.pop("embeddings.word_embeddings.weight"),
        "places.weight": state.pop("embeddings.position_embeddings.weight"),
        "kind": state.pop("embeddings.token_type_embeddings.weight")[0],
        "norm.weight": state.pop("embeddings.LayerNorm.weight"),
        "norm.bias": state.pop("embeddings.LayerNorm.bias"),
    }
    state.pop("embeddings.position_ids", None)
    for layer in range(len(model.layers)):
        for theirs, ours in parts.items():
            for kind in ("weight", "bias"):
                named[f"layers.{layer}.{ours}.{kind}"] = state.pop(f"encoder.layer.{layer}.{theirs}.{kind}")
    if state:
        raise ValueError(f"tensors without a place: {sorted(state)[:5]}")
    model.load_state_dict(named, assign=True)
    return model.eval()


def export(folder: Path, out: Path) -> None:
    """Write `encoder.onnx` with its weights in a file beside it, and `heads.npz`."""
    ids = torch.tensor([[0, 5, 6, 7, 2], [0, 8, 2, 1, 1]])
    mask = (ids != 1).long()
    places = 1 + mask.cumsum(1) * mask
    axes = {0: "batch", 1: "tokens"}
    with torch.no_grad():
        torch.onnx.export(
            build(folder),
            (ids, mask, places),
            str(out / "encoder.onnx"),
            input_names=["input_ids", "attention_mask", "position_ids"],
            output_names=["hidden"],
            dynamic_axes=dict.fromkeys(("input_ids", "attention_mask", "position_ids", "hidden"), axes),
            opset_version=OPSET,
            dynamo=False,
        )
    heads = {}
    for name in ("colbert_linear", "sparse_linear"):
        for kind, value in torch.load(folder / f"{name}.pt", weights_only=True).items():
            heads[f"{name}.{kind}"] = value.float().numpy()
    np.savez(out / "heads.npz", **heads)


def gather_weights(out: Path) -> None:
    """The exporter writes a file for each tensor of a large model: put them into one."""
    import onnx

    model = onnx.load(out / "encoder.onnx")
    for file in out.iterdir():
        if file.name not in ("encoder.onnx", "heads.npz"):
            file.unlink()
    onnx.save(
        model,
        out / "encoder.onnx",
        save_as_external_data=True,
        location="encoder.weights",
        size_threshold=1024,
    )


def fuse(folder: Path, out: Path) -> None:
    """`fused.onnx`: attention, GELU and skip + LayerNorm as single nodes."""
    from onnxruntime.transformers import optimizer

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    fused = optimizer.optimize_model(
        str(out / "encoder.onnx"),
        model_type="bert",
        num_heads=config["num_attention_heads"],
        hidden_size=config["hidden_size"],
        opt_level=0,
    )
    found = fused.get_fused_operator_statistics()
    print({name: count for name, count in found.items() if count}, file=sys.stderr)
    fused.save_model_to_file(str(out / "fused.onnx"), use_external_data_format=True)


def quantise(out: Path) -> None:
    """`int8.onnx` of `fused.onnx`; onnxruntime's defaults but for `per_channel`."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        out / "fused.onnx",
        out / "int8.onnx",
        per_channel=True,
        reduce_range=False,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
        # Fused nodes are unknown to ONNX's own shape inference; their outputs are float32.
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )


def main() -> None:
    """Each step in a process of its own, so that its memory is free for the next."""
    folder, out, *step = sys.argv[1:]
    steps = {
        "export": lambda: export(Path(folder), Path(out)),
        "gather": lambda: gather_weights(Path(out)),
        "fuse": lambda: fuse(Path(folder), Path(out)),
        "quantise": lambda: quantise(Path(out)),
    }
    if step:
        steps[step[0]]()
        return
    Path(out).mkdir(parents=True, exist_ok=True)
    for name in steps:
        print(name, file=sys.stderr)
        subprocess.run(
            [sys.executable, "-m", "benchmarks.encode_sides.onnx_export", folder, out, name], check=True
        )
    (Path(out) / "done").touch()


if __name__ == "__main__":
    main()
