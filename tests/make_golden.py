"""Write a checkpoint's `golden.safetensors` with torch and transformers (run by hand, not by pytest).

python -m tests.make_golden weights/mini
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import safetensors.numpy
import tokenizers
import torch
import transformers

from app.golden import GOLDEN_FILE
from tests.reference import load_encoder, reference_outputs

TEXTS = (
    "What is BGE M3?",
    "Ein Modell für dichte, lexikalische und Multi-Vektor-Suche.",
    "三种向量，一次前向计算。",
    "نموذج واحد للبحث الكثيف والمعجمي.",
    "Один проход — три представления.",
    "Tek geçişte üç temsil.",
    "ประโยคทดสอบ",
    "a </s> literal <pad> inside <mask> a text ",
    "a space at the end ",
    "The quick brown fox jumps over the lazy dog. " * 60,
)


def main() -> None:
    """One forward pass a text, so that no padding is involved."""
    folder = Path(sys.argv[1])
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    limit = json.loads((folder / "config.json").read_text())["max_position_embeddings"] - 2
    whole = [tokenizer.encode(text).ids for text in TEXTS]
    batch = [np.array([*ids[: limit - 1], ids[-1]] if len(ids) > limit else ids, np.int32) for ids in whole]
    found = reference_outputs(load_encoder(folder), folder, batch, padded=False)
    keys = [sorted(one.sparse) for one in found]
    tensors = {
        "dense": np.stack([one.dense for one in found]),
        "sparse.indices": np.concatenate(keys).astype(np.int32),
        "sparse.values": np.array(
            [one.sparse[key] for one, ids in zip(found, keys, strict=True) for key in ids], np.float32
        ),
        "sparse.offsets": np.cumsum([0, *map(len, keys)], dtype=np.int64),
        "colbert.values": np.concatenate([one.colbert for one in found]),
        "colbert.offsets": np.cumsum([0, *(len(one.colbert) for one in found)], dtype=np.int64),
        "tokens": np.array([len(ids) for ids in batch], np.int32),
        "truncated": np.array([len(ids) > limit for ids in whole], np.uint8),
    }
    source = f"torch {torch.__version__}, transformers {transformers.__version__}, float32"
    metadata = {"texts": json.dumps(TEXTS), "source": source}
    safetensors.numpy.save_file(tensors, folder / GOLDEN_FILE, metadata)
    print(folder / GOLDEN_FILE, source)


if __name__ == "__main__":
    main()
