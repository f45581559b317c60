"""ONNX Runtime on the exported encoder, heads in NumPy.

Options: `onnx` folder of the export, `model` file in it, `spin` "1" or "0": may idle threads
spin? (`encode --spin`)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.encode_sides.padded import PaddedSide, linear
from benchmarks.encode_sides.protocol import cores, serve


class OnnxSide(PaddedSide):
    """All of onnxruntime's own optimisations on top of the fusions that the file has."""

    packages = ("onnxruntime", "tokenizers", "numpy")
    threads = cores()

    def __init__(self, folder: Path, options: dict[str, str]) -> None:
        onnx = Path(options["onnx"])
        settings = onnxruntime.SessionOptions()
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        settings.intra_op_num_threads = self.threads
        settings.add_session_config_entry("session.intra_op.allow_spinning", options["spin"])
        session = onnxruntime.InferenceSession(
            str(onnx / options["model"]), settings, providers=["CPUExecutionProvider"]
        )

        def run(
            ids: NDArray[np.int64], mask: NDArray[np.int64], places: NDArray[np.int64]
        ) -> NDArray[np.float32]:
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
            return session.run(["hidden"], inputs)[0]

        heads = np.load(onnx / "heads.npz")
        colbert, sparse = (
            linear(heads[f"{name}.weight"], heads[f"{name}.bias"])
            for name in ("colbert_linear", "sparse_linear")
        )
        super().__init__(folder, run, colbert=colbert, sparse=sparse)


if __name__ == "__main__":
    serve(OnnxSide)
