"""Run by the interpreter of .venv-peers: FlagEmbedding's own outputs for some texts, as an .npz file.

    python flagembedding_side.py CHECKPOINT TEXTS.json OUT.npz MAX_LENGTH

It imports nothing of Trivec.
"""

import json
import sys

import numpy as np
from FlagEmbedding import BGEM3FlagModel

folder, texts_file, out, max_length = sys.argv[1:]
with open(texts_file, encoding="utf-8") as file:  # noqa: PTH123 - pathlib would do; this is a script for elsewhere
    texts = json.load(file)
model = BGEM3FlagModel(folder, use_fp16=False, devices=["cpu"])
found = model.encode(
    texts,
    batch_size=8,
    max_length=int(max_length),
    return_dense=True,
    return_sparse=True,
    return_colbert_vecs=True,
)
arrays = {"dense": found["dense_vecs"]}
for number, (weights, vectors) in enumerate(zip(found["lexical_weights"], found["colbert_vecs"])):  # noqa: B905
    arrays[f"ids{number}"] = np.array([int(key) for key in weights], np.int64)
    arrays[f"weights{number}"] = np.array([float(value) for value in weights.values()], np.float64)
    arrays[f"colbert{number}"] = vectors
np.savez(out, **arrays)
