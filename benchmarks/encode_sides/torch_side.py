"""transformers' XLMRobertaModel on torch: SDPA attention, float32, the usual way. No options."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import XLMRobertaModel

from benchmarks.encode_sides.padded import PaddedSide, Project
from benchmarks.encode_sides.protocol import cores, serve


def head(file: Path) -> Project:
    """A linear head of the checkpoint, computed by torch."""
    state = {name: value.float() for name, value in torch.load(file, weights_only=True).items()}

    def project(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return torch.nn.functional.linear(torch.from_numpy(rows), state["weight"], state["bias"]).numpy()

    return project


class TorchSide(PaddedSide):
    """Encoder and heads in torch."""

    packages = ("torch", "transformers", "tokenizers", "numpy")

    def __init__(self, folder: Path, options: dict[str, str]) -> None:
        torch.set_num_threads(cores())
        self.threads = torch.get_num_threads()
        model = XLMRobertaModel.from_pretrained(
            folder, add_pooling_layer=False, attn_implementation="sdpa", dtype=torch.float32
        ).eval()

        def run(
            ids: NDArray[np.int64], mask: NDArray[np.int64], places: NDArray[np.int64]
        ) -> NDArray[np.float32]:
            with torch.inference_mode():
                tokens, visible, positions = map(torch.from_numpy, (ids, mask, places))
                found = model(tokens, attention_mask=visible, position_ids=positions)
                return found.last_hidden_state.numpy()

        super().__init__(
            folder, run, colbert=head(folder / "colbert_linear.pt"), sparse=head(folder / "sparse_linear.pt")
        )


if __name__ == "__main__":
    serve(TorchSide)
