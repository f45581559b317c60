"""BM25 beside M3's own legs over HTTP: quality on the dev sets, what it costs to index, and bm25s's scores.

    python -m benchmarks.bm25 [--sets xquad-en,...] [--questions 150] [--out bm25]

Each set is a collection of a server with the bundled checkpoint; `NAME-articles` are its passages of one
title joined to one long document, relevant where one of them is. The weights of hybrids are those of the
table below, chosen beforehand and not fitted. bm25s (constraints-search.txt) runs where TRIVEC_SEARCH_PYTHON
names an interpreter that has it. Data: TRIVEC_TEST_DATA (../shared).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from app.index.bm25 import K1, B
from app.ingest import document_text
from benchmarks.encode_sides.registry import ROOT
from benchmarks.machine import write_result
from benchmarks.metrics import ndcg
from benchmarks.retrieval import QUERY_BATCH, read_jsonl, read_qrels
from model.config import EncoderConfig
from model.tokenizer import Tokenizer
from tests.server import running_server

SETS = (
    *(f"xquad-{language}" for language in ("en", "zh", "ar", "es", "ru", "th", "tr")),
    *("xquad-en-articles", "xquad-es-articles", "xquad-ru-articles", "cranfield", "scifact"),
)
M3 = {"dense": 0.4, "sparse": 0.2, "colbert": 0.4}
SEARCHES: Mapping[str, Mapping[str, Any]] = {
    "bm25": {"mode": "bm25"},
    "sparse": {"mode": "sparse"},
    "dense": {"mode": "dense"},
    "colbert": {"mode": "colbert"},
    "hybrid": {"weights": M3},
    "hybrid+bm25 0.4": {"weights": {**M3, "bm25": 0.4}},
    "hybrid+bm25 1.0": {"weights": {**M3, "bm25": 1.0}},
    "hybrid rrf": {"weights": {"dense": 1, "sparse": 1, "colbert": 1}, "fusion": "rrf"},
    "hybrid+bm25 rrf": {"weights": {"dense": 1, "sparse": 1, "colbert": 1, "bm25": 1}, "fusion": "rrf"},
}
TIMED = 100
"""Searches of one query each, for the latency of a leg."""
COMPARED = 200
"""Queries whose scores are compared with those of bm25s."""
INDEXED, DOCUMENTS = "cranfield", 600
"""The set of which so many are indexed with and without BM25."""

Rows = list[dict[str, Any]]


def dataset(folder: Path, name: str) -> tuple[Rows, Rows, dict[str, dict[str, int]]]:
    """Documents as the server takes them, judged questions and their grades."""
    source = name.removesuffix("-articles")
    qrels = read_qrels(folder / source / "qrels" / "test.tsv")
    documents: Rows = [
        {"id": row["_id"], "title": row["title"], "text": row["text"]}
        for row in read_jsonl(folder / source / "corpus.jsonl")
    ]
    for row in documents:  # Cranfield has a document without a word
        if not (row["title"] or row["text"]):
            row["text"] = " "
    if source != name:
        documents, qrels = articles(documents, qrels)
    questions = [row for row in read_jsonl(folder / source / "queries.jsonl") if row["_id"] in qrels]
    return documents, questions, qrels


def articles(
    documents: Rows, qrels: Mapping[str, Mapping[str, int]]
) -> tuple[Rows, dict[str, dict[str, int]]]:
    """The documents of one title joined, and the grades of what they are made of."""
    titles = {str(row["id"]): str(row["title"]) for row in documents}
    texts: dict[str, list[str]] = {}
    for row in documents:
        texts.setdefault(str(row["title"]), []).append(str(row["text"]))
    joined: Rows = [{"id": title, "title": title, "text": "\n".join(parts)} for title, parts in texts.items()]
    graded: dict[str, dict[str, int]] = {}
    for query, grades in qrels.items():
        graded[query] = {}
        for document, grade in grades.items():
            before = graded[query].get(titles[document], 0)
            graded[query][titles[document]] = max(before, grade)
    return joined, graded


def index(client: httpx.Client, name: str, documents: Rows, *, bm25: bool) -> float:
    """Put documents into a new collection; the seconds that took."""
    client.put(f"/collections/{name}", json={"bm25": bm25}).raise_for_status()
    began = time.monotonic()
    reply = client.post(
        f"/collections/{name}/documents",
        content="\n".join(map(json.dumps, documents)).encode(),
        headers={"Content-Type": "application/x-ndjson", "X-Request-Timeout": "600"},
    )
    reply.raise_for_status()
    assert reply.json()["upserted"] == len(documents), reply.text[:500]
    return time.monotonic() - began


def ask(
    client: httpx.Client, name: str, questions: Sequence[str], search: Mapping[str, Any], top_k: int = 10
) -> list[list[dict[str, Any]]]:
    """The hits of every question."""
    found: list[list[dict[str, Any]]] = []
    for begin in range(0, len(questions), QUERY_BATCH):
        body = {"query": questions[begin : begin + QUERY_BATCH], "include": [], "top_k": top_k, **search}
        reply = client.post(f"/collections/{name}/search", json=body)
        reply.raise_for_status()
        found += [result["hits"] for result in reply.json()["results"]]
    return found


def latency_ms(client: httpx.Client, name: str, questions: Sequence[str], mode: str) -> dict[str, float]:
    """Median and 95th percentile of searches one at a time, over HTTP, with what a query costs the model."""
    spent = []
    for question in questions[:TIMED]:
        began = time.perf_counter()
        body = {"query": question, "mode": mode, "include": []}
        client.post(f"/collections/{name}/search", json=body).raise_for_status()
        spent.append(1000 * (time.perf_counter() - began))
    return {"p50": round(statistics.median(spent), 1), "p95": round(sorted(spent)[int(0.95 * len(spent))], 1)}


PEER = """
import importlib.metadata, json, sys
import bm25s, numpy as np
given = json.load(open(sys.argv[1]))
size = 1 + max(max(ids, default=0) for ids in given["documents"] + given["questions"])
one = bm25s.BM25(method="lucene", k1=given["k1"], b=given["b"], dtype="float64")
one.index((given["documents"], {str(n): n for n in range(size)}), show_progress=False)
known = set().union(*given["documents"])
scores = [one.get_scores_from_ids([t for t in ids if t in known]).tolist() for ids in given["questions"]]
json.dump({"version": importlib.metadata.version("bm25s"), "scores": scores}, open(sys.argv[2], "w"))
"""


def against_bm25s(
    client: httpx.Client, name: str, documents: Rows, questions: Sequence[str]
) -> dict[str, Any] | None:
    """The largest relative difference of any hit's score from what bm25s computes of the same token ids."""
    python = os.environ.get("TRIVEC_SEARCH_PYTHON")
    if python is None:
        return None
    mini = ROOT / "weights" / "mini"
    tokenizer = Tokenizer(mini / "tokenizer.json", EncoderConfig.from_file(mini / "config.json"))

    def ids(texts: Sequence[str]) -> list[list[int]]:
        found = tokenizer.tokenize(["" if text.isspace() else text for text in texts], 1_000_000)
        return [[one for one in text.ids.tolist() if one not in tokenizer.unused_ids] for text in found]

    texts = [document_text(row["title"], row["text"]) for row in documents]
    given = {"documents": ids(texts), "questions": ids(questions), "k1": K1, "b": B}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.json", Path(folder) / "out.json"
        source.write_text(json.dumps(given))
        subprocess.run([python, "-c", PEER, source, target], check=True)
        peer = json.loads(target.read_text())
    places = {row["id"]: place for place, row in enumerate(documents)}
    largest, hits, same = 0.0, 0, 0
    found = ask(client, name, questions, {"mode": "bm25"}, top_k=100)
    for ours, theirs in zip(found, peer["scores"], strict=True):
        for hit in ours:
            score = (K1 + 1) * theirs[places[hit["id"]]]  # Lucene leaves this constant out
            largest = max(largest, abs(hit["score"] - score) / score)
        best = sorted((score for score in theirs if score > 0), reverse=True)[:100]
        last = (K1 + 1) * best[-1] if best else 0.0
        same += len(ours) == len(best) and all(hit["score"] >= last * (1 - 1e-5) for hit in ours)
        hits += len(ours)
    return {
        "version": peer["version"],
        "method": "lucene, times k1 + 1",
        "queries": len(questions),
        "hits": hits,
        "largest_relative_difference": float(f"{largest:.2g}"),
        "queries_with_the_same_best_100": same,
    }


def evaluate(client: httpx.Client, folder: Path, name: str, most: int) -> dict[str, Any]:
    """Index one set and ask its questions in every way."""
    documents, questions, qrels = dataset(folder, name)
    step = max(1, len(questions) // most)
    questions = questions[::step][:most]
    index(client, name, documents, bm25=True)
    texts = [str(row["text"]) for row in questions]
    found: dict[str, float] = {}
    for title, search in SEARCHES.items():
        hits = ask(client, name, texts, search)
        rankings = [[str(hit["id"]) for hit in one] for one in hits]
        gains = [ndcg(one, qrels[str(row["_id"])]) for one, row in zip(rankings, questions, strict=True)]
        found[title] = round(statistics.mean(gains), 4)
    return {"documents": len(documents), "questions": len(questions), "ndcg@10": found}


def main() -> None:
    """Run it all and write `results/NAME.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--questions", type=int, default=150, help="at most so many of a set, evenly taken")
    parser.add_argument("--out", default="bm25")
    options = parser.parse_args()
    dev = Path(os.environ.get("TRIVEC_TEST_DATA", "../shared")) / "data" / "dev"
    sets: dict[str, Any] = {}
    result: dict[str, Any] = {
        "benchmark": "BM25 beside M3's legs over HTTP, nDCG@10; BM25 sees whole texts, the model what fits",
        "checkpoint": "weights/mini",
        "tokens_that_the_model_sees": 512,
        "k1": K1,
        "b": B,
        "sets": sets,
    }
    with tempfile.TemporaryDirectory() as data, running_server(Path(data)) as (client, _):
        for name in options.sets.split(","):
            sets[name] = evaluate(client, dev, name, options.questions)
            print(name, sets[name], flush=True)
        last = options.sets.split(",")[-1]
        if INDEXED in sets:
            result["indexing"] = indexing(client, dev)
        documents, questions, _ = dataset(dev, last)
        texts = [str(row["text"]) for row in questions][:COMPARED]
        result["search_ms"] = {
            "set": last,
            **{mode: latency_ms(client, last, texts, mode) for mode in ("bm25", "sparse", "hybrid")},
        }
        compared = against_bm25s(client, last, documents, texts)
        if compared is not None:
            result["against_bm25s"] = {"set": last, **compared}
    print(json.dumps(result, indent=2))
    print(write_result(options.out, result))


def indexing(client: httpx.Client, dev: Path) -> dict[str, Any]:
    """Documents a second into collections with and without BM25, in turns, and what they take on disk."""
    documents = dataset(dev, INDEXED)[0][:DOCUMENTS]
    spent: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(3):
        for bm25 in (True, False):
            spent[bm25].append(index(client, f"turn{turn}-{int(bm25)}", documents, bm25=bm25))
    stored = client.get("/collections/turn0-1").json()["bytes"]
    return {
        "set": INDEXED,
        "documents": len(documents),
        "documents_per_s": {
            "with": round(len(documents) / statistics.median(spent[True]), 1),
            "without": round(len(documents) / statistics.median(spent[False]), 1),
        },
        "bytes_per_document": {part: round(size / len(documents)) for part, size in stored.items()},
    }


if __name__ == "__main__":
    main()
