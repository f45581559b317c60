"""Every side that can be compared: its script, its interpreter, its options and what it may differ by.

A side's name is what `--sides` takes. Nothing heavy is imported here.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parent.parent.parent
BATCH_SIZES = (1, 2, 4, 8, 16)
Interpreter = Literal["own", "peers", "onnx", "infinity"]

FLOAT32, INT8 = 0.9999, 0.97
"""Least cosine of any text's dense vector to the base's float32 vector, before a side is timed at all."""


@dataclass(frozen=True, slots=True)
class SideSpec:
    """`batch_sizes`: those that are tried, the fastest is timed; empty where the side decides by itself."""

    module: str
    what: str
    interpreter: Interpreter = "own"
    options: Mapping[str, str] = field(default_factory=dict)
    batch_sizes: tuple[int, ...] = ()
    least_cosine: float = FLOAT32

    @property
    def python(self) -> Path:
        """The interpreter that runs it: this one, or the environments of the other libraries."""
        return interpreter(self.interpreter)

    @property
    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        return missing(self.interpreter)


def interpreter(name: Interpreter) -> Path:
    """The Python of an environment."""
    if name == "own":
        return Path(sys.executable)
    return Path(os.environ.get(f"TRIVEC_{name.upper()}_PYTHON", str(ROOT / f".venv-{name}/bin/python")))


def missing(name: Interpreter) -> str | None:
    """Why an environment is not there, or None."""
    python = interpreter(name)
    if python.exists():
        return None
    return (
        f"no interpreter at {python}: make a virtual environment from constraints-{name}.txt, "
        f"or set TRIVEC_{name.upper()}_PYTHON"
    )


_ONNX = (1, 4, 8, 16)
SIDES: Mapping[str, SideSpec] = {
    "trivec-float32": SideSpec("trivec_side", "Trivec, engine float32", options={"engine": "float32"}),
    "trivec-int8": SideSpec(
        "trivec_side", "Trivec, engine int8", options={"engine": "int8"}, least_cosine=INT8
    ),
    "flagembedding": SideSpec(
        "flagembedding_side",
        "FlagEmbedding BGEM3FlagModel, float32, its best batch size",
        "peers",
        batch_sizes=BATCH_SIZES,
    ),
    "flagembedding-default": SideSpec(
        "flagembedding_side", "FlagEmbedding BGEM3FlagModel, float32, its default batch size 256", "peers"
    ),
    "torch": SideSpec(
        "torch_side", "transformers XLMRobertaModel, SDPA, sorted, padded batches of 8", batch_sizes=(8,)
    ),
    "onnx-float32": SideSpec(
        "onnx_side",
        "ONNX Runtime, fused graph, float32, its best batch size",
        "onnx",
        {"model": "fused.onnx"},
        _ONNX,
    ),
    "onnx-int8": SideSpec(
        "onnx_side",
        "ONNX Runtime, fused graph, dynamic int8 per channel, its best batch size",
        "onnx",
        {"model": "int8.onnx"},
        _ONNX,
        INT8,
    ),
    "openvino-float32": SideSpec(
        "openvino_side", "OpenVINO, float32, its best batch size", "onnx", {"model": "encoder.onnx"}, _ONNX
    ),
}


def exported(folder: Path, cache: Path, python: Path) -> Path:
    """The folder with the checkpoint's ONNX files, made once for each checkpoint."""
    weights = next(
        folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).exists()
    )
    stat = weights.stat()
    text = (folder / "config.json").read_text(encoding="utf-8") + f"{stat.st_size} {stat.st_mtime_ns}"
    out = cache / hashlib.sha256(text.encode()).hexdigest()[:12]
    if not (out / "done").exists():
        print(f"exporting {folder} to ONNX in {out}: minutes, once", file=sys.stderr)
        subprocess.run(
            [python, "-m", "benchmarks.encode_sides.onnx_export", folder, out], check=True, cwd=ROOT
        )
    return out
