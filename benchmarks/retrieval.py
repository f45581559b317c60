"""The main job on real input: index XQuAD in seven languages over HTTP, ask every question, in four modes.

    python -m benchmarks.retrieval [--languages en,zh] [--no-result]

The server is a process of its own. All passages go into one collection; a question searches the
passages of its language by a metadata filter. In the end the server is killed with SIGKILL, started
again on the same data folder, and must give the same answers. Data: TRIVEC_TEST_DATA (../shared).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import httpx
from tqdm import tqdm

from benchmarks.machine import write_result
from benchmarks.metrics import ndcg, recall
from tests.server import running_server

LANGUAGES = ("en", "zh", "ar", "es", "ru", "th", "tr")
MODES = ("dense", "sparse", "colbert", "hybrid")
# What the starter checkpoint's card reports, computed with PyTorch (nDCG@10), passages cut at 256 tokens. The
# server cuts them at 512, so its figures differ by up to three points; `quality.py` cuts as the card does.
CARD = {
    "en": (0.5289, 0.9149, 0.8713, 0.8629),
    "zh": (0.5548, 0.9344, 0.9248, 0.9079),
    "ar": (0.3689, 0.7402, 0.7333, 0.7030),
    "es": (0.3128, 0.8610, 0.8441, 0.7935),
    "ru": (0.3353, 0.7208, 0.7244, 0.6950),
    "th": (0.2046, 0.1434, 0.1939, 0.2241),
    "tr": (0.4295, 0.8297, 0.8410, 0.8092),
}
QUERY_BATCH = 64


def read_jsonl(path: Path) -> list[dict[str, object]]:
    """The objects of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """BEIR's `test.tsv`: query -> document -> grade."""
    found: dict[str, dict[str, int]] = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        query, document, grade = line.split("\t")
        found.setdefault(query, {})[document] = int(grade)
    return found


def index(client: httpx.Client, folder: Path, language: str) -> int:
    """Put a language's passages into the collection; the tokens that the model saw."""
    lines = [
        json.dumps(
            {"id": row["_id"], "title": row["title"], "text": row["text"], "metadata": row["metadata"]}
        )
        for row in read_jsonl(folder / "corpus.jsonl")
    ]
    reply = client.post(
        "/collections/default/documents",
        content="\n".join(lines).encode(),
        headers={"Content-Type": "application/x-ndjson"},
    )
    reply.raise_for_status()
    assert reply.json()["upserted"] == len(lines), reply.text[:500]
    return int(reply.json()["usage"]["tokens"])


def ask(
    client: httpx.Client, queries: list[dict[str, object]], mode: str, language: str
) -> list[list[dict[str, object]]]:
    """The hits of every question, ten each."""
    found: list[list[dict[str, object]]] = []
    for begin in range(0, len(queries), QUERY_BATCH):
        body = {
            "query": [row["text"] for row in queries[begin : begin + QUERY_BATCH]],
            "mode": mode,
            "filter": {"lang": language},
            "include": [],
        }
        reply = client.post("/search", json=body)
        reply.raise_for_status()
        found += [result["hits"] for result in reply.json()["results"]]
    return found


def main() -> None:
    """Run it all and write `results/retrieval.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--languages", default=",".join(LANGUAGES))
    parser.add_argument("--no-result", action="store_true", help="do not write the result file")
    options = parser.parse_args()
    dev = Path(os.environ.get("TRIVEC_TEST_DATA", "../shared")) / "data" / "dev"
    languages = options.languages.split(",")
    report: dict[str, object] = {}
    kept: dict[str, list[list[dict[str, object]]]] = {}
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        with running_server(data) as (client, process):
            began = time.monotonic()
            tokens = sum(index(client, dev / f"xquad-{language}", language) for language in languages)
            indexing_s = time.monotonic() - began
            began, asked = time.monotonic(), 0
            for language in tqdm(languages, unit="language"):
                folder = dev / f"xquad-{language}"
                queries, qrels = (
                    read_jsonl(folder / "queries.jsonl"),
                    read_qrels(folder / "qrels" / "test.tsv"),
                )
                figures = {}
                for place, mode in enumerate(MODES):
                    hits = ask(client, queries, mode, language)
                    rankings = [[str(hit["id"]) for hit in one] for one in hits]
                    judged = [qrels[str(row["_id"])] for row in queries]
                    figures[mode] = {
                        "ndcg@10": round(sum(map(ndcg, rankings, judged)) / len(queries), 4),
                        "recall@10": round(sum(map(recall, rankings, judged)) / len(queries), 4),
                        "card_ndcg@10": CARD[language][place],
                    }
                    asked += len(queries)
                    kept[f"{language} {mode}"] = hits[:QUERY_BATCH]
                report[f"xquad-{language}"] = {"questions": len(queries), **figures}
            searching_s = time.monotonic() - began
            process.send_signal(signal.SIGKILL)
            process.wait()
        with running_server(data) as (client, _):
            same = True
            for key, before in kept.items():
                language, mode = key.split()
                queries = read_jsonl(dev / f"xquad-{language}" / "queries.jsonl")[:QUERY_BATCH]
                same &= ask(client, queries, mode, language) == before
    largest = max(
        abs(figures[mode]["ndcg@10"] - figures[mode]["card_ndcg@10"])
        for figures in report.values()
        for mode in MODES
    )
    result = {
        "benchmark": "XQuAD over HTTP: one collection, questions filtered to their language",
        "checkpoint": "weights/mini",
        "passages_tokens": tokens,
        "indexing_s": round(indexing_s, 1),
        "searches": asked,
        "searching_s": round(searching_s, 1),
        "same_answers_after_sigkill": same,
        "largest_difference_from_card": round(largest, 4),
        "sets": report,
    }
    print(json.dumps(result, indent=2))
    if not options.no_result:
        print(write_result("retrieval", result))
    sys.exit(0 if same else "the restarted server answered differently")


if __name__ == "__main__":
    main()
