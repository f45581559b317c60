"""FlagEmbedding behind FastAPI, as its users write it: a model, and a synchronous endpoint that encodes.

    CHECKPOINT=FOLDER uvicorn benchmarks.serve_sides.flagembedding_server:app

FastAPI runs such an endpoint in one of 40 threads, so several requests are encoded at the same time, each
with
all of torch's threads. ONE_AT_A_TIME=1 lets only one of them encode. Nothing is batched across requests.
"""

from __future__ import annotations

import contextlib
import os
import threading

import torch
from fastapi import FastAPI
from FlagEmbedding import BGEM3FlagModel
from pydantic import BaseModel

torch.set_num_threads(len(os.sched_getaffinity(0)))
model = BGEM3FlagModel(os.environ["CHECKPOINT"], use_fp16=False, devices=["cpu"])
turn = threading.Lock() if os.environ.get("ONE_AT_A_TIME") == "1" else contextlib.nullcontext()
app = FastAPI()


class Texts(BaseModel):
    """What is posted."""

    texts: list[str]


@app.post("/embed")
def embed(body: Texts) -> dict[str, list[list[float]]]:
    """The dense vectors of some texts."""
    with turn:
        found = model.encode(body.texts, max_length=512, return_dense=True)
    return {"dense": found["dense_vecs"].tolist()}


@app.get("/health")
def health() -> dict[str, str]:
    """Answers once the model is loaded."""
    return {"status": "ready"}
