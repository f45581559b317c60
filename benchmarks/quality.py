"""Retrieval quality of each engine on the dev sets, by the library alone: every document is scored.

    python -m benchmarks.quality [--engines float32,int8] [--sets xquad-en,...] [--no-result]

Passages are `title. text`, cut at 256 tokens as in the starter checkpoint's card, so that its figures
(computed with PyTorch) must come out. Data: TRIVEC_TEST_DATA (../shared).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from app.loading import load_text_model
from app.settings import Settings
from benchmarks.machine import write_result
from benchmarks.metrics import ndcg
from benchmarks.retrieval import CARD, MODES, read_jsonl, read_qrels
from model.embedder import Embedder
from model.embedding import Embedding
from model.scoring import FusionWeights, hybrid_score

SETS = (*(f"xquad-{language}" for language in CARD), "cranfield", "scifact")
MAX_LENGTH = 256


def evaluate(embedder: Embedder, folder: Path, vocab_size: int) -> dict[str, float]:
    """nDCG@10 in points (0 to 100) of every mode on one BEIR folder."""
    qrels = read_qrels(folder / "qrels" / "test.tsv")
    documents = read_jsonl(folder / "corpus.jsonl")
    queries = [row for row in read_jsonl(folder / "queries.jsonl") if row["_id"] in qrels]
    # Cranfield has a document without a word: white space is embedded as `<s></s>`.
    texts = [". ".join(filter(None, (str(row["title"]), str(row["text"])))) or " " for row in documents]
    passages = embedder.encode(texts, max_length=MAX_LENGTH)
    asked = embedder.encode([str(row["text"]) for row in queries], kind="query")
    ids = [str(row["_id"]) for row in documents]
    scorer = Scorer(passages, vocab_size)
    found: dict[str, list[float]] = {mode: [] for mode in MODES}
    for row, query in zip(queries, asked, strict=True):
        for mode, scores in scorer.scores(query).items():
            best = np.argsort(-scores, kind="stable")[:10]
            found[mode].append(ndcg([ids[place] for place in best], qrels[str(row["_id"])]))
    return {mode: round(100 * float(np.mean(values)), 2) for mode, values in found.items()}


class Scorer:
    """All three scores of a query with every passage, by matrix products."""

    def __init__(self, passages: Sequence[Embedding], vocab_size: int) -> None:
        self._dense = np.stack([one.dense for one in passages if one.dense is not None])
        self._sparse = np.zeros((vocab_size, len(passages)), np.float32)
        for place, one in enumerate(passages):
            assert one.sparse is not None
            self._sparse[one.sparse.indices, place] = one.sparse.values
        colbert = [one.colbert for one in passages if one.colbert is not None]
        self._starts = np.cumsum([0, *(len(rows) for rows in colbert)])[:-1]
        self._colbert = np.concatenate(colbert)

    def scores(self, query: Embedding) -> dict[str, np.ndarray]:
        """Scores by mode, [documents] each."""
        assert query.dense is not None and query.sparse is not None and query.colbert is not None
        dense = self._dense @ query.dense
        sparse = query.sparse.values @ self._sparse[query.sparse.indices]
        similarities = query.colbert @ self._colbert.T
        colbert = np.maximum.reduceat(similarities, self._starts, axis=1).mean(axis=0)
        hybrid = hybrid_score(FusionWeights(), dense, sparse, colbert)
        return {"dense": dense, "sparse": sparse, "colbert": colbert, "hybrid": hybrid}


def main() -> None:
    """Run every engine on every set and write `results/quality.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", default="float32,int8")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--no-result", action="store_true", help="do not write the result file")
    options = parser.parse_args()
    dev = Path(os.environ.get("TRIVEC_TEST_DATA", "../shared")) / "data" / "dev"
    engines = options.engines.split(",")
    with tempfile.TemporaryDirectory() as cache:
        models = {
            name: load_text_model(Settings.model_validate({"engine": name, "converted_dir": cache}))
            for name in engines
        }
        sets: dict[str, dict[str, dict[str, float]]] = {}
        for name in options.sets.split(","):
            sets[name] = {}
            for engine, model in models.items():
                sets[name][engine] = evaluate(model.embedder, dev / name, model.card.vocab_size)
                print(name, engine, sets[name][engine], flush=True)
    base = engines[0]
    card = [
        abs(found[base][mode] - 100 * CARD[name.removeprefix("xquad-")][place])
        for name, found in sets.items()
        for place, mode in enumerate(MODES)
        if name.startswith("xquad-")
    ]
    changes = {
        engine: {
            mode: round(max(abs(one[engine][mode] - one[base][mode]) for one in sets.values()), 2)
            for mode in MODES
        }
        for engine in engines[1:]
    }
    result = {
        "benchmark": "nDCG@10 in points, every document scored, passages cut at 256 tokens",
        "checkpoint": "weights/mini",
        f"largest_difference_of_{base}_from_card": round(max(card, default=0.0), 2),
        f"largest_change_against_{base}": changes,
        "sets": sets,
    }
    print(json.dumps(result, indent=2))
    if not options.no_result:
        print(write_result("quality", result))


if __name__ == "__main__":
    main()
