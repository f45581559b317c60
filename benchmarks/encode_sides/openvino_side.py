"""OpenVINO on the exported encoder, heads in NumPy.

Options: `onnx` folder of the export, `model` file in it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray

from benchmarks.encode_sides.padded import PaddedSide, linear
from benchmarks.encode_sides.protocol import cores, serve


class OpenVinoSide(PaddedSide):
    """Latency hint, all cores, and float32 by name: where the CPU knows bfloat16 that is its default."""

    packages = ("openvino", "tokenizers", "numpy")
    threads = cores()

    def __init__(self, folder: Path, options: dict[str, str]) -> None:
        onnx = Path(options["onnx"])
        compiled = openvino.Core().compile_model(
            str(onnx / options["model"]),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "f32",
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": self.threads,
            },
        )
        request = compiled.create_infer_request()

        def run(
            ids: NDArray[np.int64], mask: NDArray[np.int64], places: NDArray[np.int64]
        ) -> NDArray[np.float32]:
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
            return request.infer(inputs, share_inputs=True, share_outputs=True)["hidden"]

        heads = np.load(onnx / "heads.npz")
        colbert, sparse = (
            linear(heads[f"{name}.weight"], heads[f"{name}.bias"])
            for name in ("colbert_linear", "sparse_linear")
        )
        super().__init__(folder, run, colbert=colbert, sparse=sparse)


if __name__ == "__main__":
    serve(OpenVinoSide)
