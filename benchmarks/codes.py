"""What compressed token vectors cost in quality, and what they save in bytes and time.

    python -m benchmarks.codes [--sets xquad-en,...] [--kinds 2bit,...] [--no-timing] [--no-result]

nDCG@10 of the ColBERT mode on the dev sets, every document scored, for each kind of `app.index.codes` and for
2 bits of vectors that were pooled by 2 before. Then MaxSim of one query at C = 1024, each kind beside
the NumPy path over float16 vectors in one run. A run replaces what it measured in `results/codes.json` and
keeps the rest. Data: TRIVEC_TEST_DATA (../shared).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np

from app.index.codes import Kind, TokenCodec, codec
from app.index.pooling import pooled
from app.index.workers import Workers
from app.loading import load_text_model
from app.settings import Settings
from benchmarks.machine import RESULTS, write_result
from benchmarks.metrics import ndcg
from benchmarks.numpy_maxsim import maxsim
from benchmarks.quality import MAX_LENGTH, SETS
from benchmarks.retrieval import read_jsonl, read_qrels
from model.embedder import Embedder
from model.embedding import FloatArray

BASE = "float16"
POOLED = "2bit_pooled_2"
KINDS = (BASE, "int8", "4bit", "2bit", "1bit", POOLED)
WIDTH, QUERY_ROWS, DOCUMENTS, ROWS, ROUNDS = 1024, 32, 200, 150, 25


def token_vectors(
    embedder: Embedder, name: str, folder: Path, cache: Path | None
) -> dict[str, list[FloatArray]]:
    """The token vectors of a set's passages and queries, from the cache where they are."""
    qrels = read_qrels(folder / "qrels" / "test.tsv")
    passages = [
        ". ".join(filter(None, (str(row["title"]), str(row["text"])))) or " "
        for row in read_jsonl(folder / "corpus.jsonl")
    ]
    queries = [str(row["text"]) for row in read_jsonl(folder / "queries.jsonl") if row["_id"] in qrels]
    found: dict[str, list[FloatArray]] = {}
    for kind, texts in (("passage", passages), ("query", queries)):
        file = None if cache is None else cache / f"{name}.{kind}.npz"
        if file is None or not file.exists():
            embeddings = (
                embedder.encode(texts, max_length=MAX_LENGTH)
                if kind == "passage"
                else embedder.encode(texts, kind="query")
            )
            vectors = [one.colbert for one in embeddings if one.colbert is not None]
            if file is not None:
                np.savez(file, rows=np.concatenate(vectors), ends=np.cumsum([len(one) for one in vectors]))
        else:
            with np.load(file) as kept:
                vectors = np.split(kept["rows"], kept["ends"][:-1])
        assert len(vectors) == len(texts)
        found[kind] = vectors
    return found


def evaluate(vectors: dict[str, list[FloatArray]], folder: Path, kind: str, workers: Workers) -> float:
    """nDCG@10 in points (0 to 100) of one kind on one set."""
    qrels = read_qrels(folder / "qrels" / "test.tsv")
    ids = [str(row["_id"]) for row in read_jsonl(folder / "corpus.jsonl")]
    asked = [str(row["_id"]) for row in read_jsonl(folder / "queries.jsonl") if row["_id"] in qrels]
    use = codec(_stored_as(kind), vectors["query"][0].shape[1])
    blobs = [use.encode(pooled(one, 2)[0] if kind == POOLED else one) for one in vectors["passage"]]
    values = []
    for name, query in zip(asked, vectors["query"], strict=True):
        best = np.argsort(-use.maxsim(query, blobs, workers), kind="stable")[:10]
        values.append(ndcg([ids[place] for place in best], qrels[name]))
    return round(100 * float(np.mean(values)), 2)


def _stored_as(kind: str) -> Kind:
    return "2bit" if kind == POOLED else next(one for one in get_args(Kind) if one == kind)


def timing(workers: Workers) -> dict[str, object]:
    """Milliseconds of one MaxSim by kind, beside NumPy over float16, and rows coded a second."""
    rng = np.random.default_rng(0)
    documents = [rng.standard_normal((ROWS, WIDTH)).astype(np.float32) / 32 for _ in range(DOCUMENTS)]
    query = rng.standard_normal((QUERY_ROWS, WIDTH)).astype(np.float32) / 32
    halves = [one.astype(np.float16) for one in documents]
    sides: dict[str, Callable[[], object]] = {"numpy_float16": partial(maxsim, query, halves)}
    coded, sizes = {}, {}
    for kind in get_args(Kind):
        use = codec(kind, WIDTH)
        blobs = [use.encode(one) for one in documents]
        spans = [_seconds(partial(_encode_all, use, documents)) for _ in range(5)]
        coded[kind] = round(DOCUMENTS * ROWS / float(np.median(spans)))
        sizes[kind] = use.row_bytes
        sides[kind] = partial(use.maxsim, query, blobs, workers)
        sides[f"{kind}_one_thread"] = partial(use.maxsim, query, blobs)
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, side in sides.items():
            spent[name].append(1000 * _seconds(side))
            if name == "numpy_float16":
                # Its BLAS threads spin for a while and would slow whoever is next.
                time.sleep(0.2)
    return {
        "shape": f"{QUERY_ROWS} query vectors, {DOCUMENTS} documents of {ROWS}, width {WIDTH}",
        "threads": workers.threads,
        "row_bytes": sizes,
        "maxsim_ms_p50": {name: round(float(np.median(values)), 2) for name, values in spent.items()},
        "maxsim_ms_least": {name: round(min(values), 2) for name, values in spent.items()},
        "encoded_rows_per_s_of_one_thread": coded,
    }


def _encode_all(use: TokenCodec, documents: list[FloatArray]) -> list[bytes]:
    return [use.encode(one) for one in documents]


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def losses(sets: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The largest and the mean loss of points against float16 by kind; negative is a gain."""
    found = {}
    for kind in KINDS[1:]:
        values = [one[BASE] - one[kind] for one in sets.values() if kind in one and BASE in one]
        if values:
            found[kind] = {"largest": round(max(values), 2), "mean": round(float(np.mean(values)), 2)}
    return found


def main() -> None:
    """Measure what was asked for and update `results/codes.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", default=",".join(SETS), help="empty for none")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--cache", type=Path, help="a folder that keeps the embeddings")
    parser.add_argument("--no-timing", action="store_true")
    parser.add_argument("--no-result", action="store_true", help="do not write the result file")
    options = parser.parse_args()
    dev = Path(os.environ.get("TRIVEC_TEST_DATA", "../shared")) / "data" / "dev"
    file = RESULTS / "codes.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    workers = Workers()
    sets: dict[str, dict[str, float]] = before.get("sets", {})
    names = list(filter(None, options.sets.split(",")))
    embedder = load_text_model(Settings.model_validate({"engine": "float32"})).embedder if names else None
    for name in names:
        assert embedder is not None
        vectors = token_vectors(embedder, name, dev / name, options.cache)
        for kind in options.kinds.split(","):
            points = evaluate(vectors, dev / name, kind, workers)
            sets.setdefault(name, {})[kind] = points
            print(name, kind, points, flush=True)
    result = {
        "benchmark": "nDCG@10 of the ColBERT mode in points by kind of stored vectors, every document scored",
        "checkpoint": "weights/mini, width 256",
        f"loss_against_{BASE}": losses(sets),
        "timing": before.get("timing") if options.no_timing else timing(workers),
        "sets": {name: sets[name] for name in SETS if name in sets},
    }
    print(json.dumps(result, indent=2))
    if not options.no_result:
        print(write_result("codes", result))


if __name__ == "__main__":
    main()
