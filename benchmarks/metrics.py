"""Retrieval metrics over a ranking. Legend: `qrels` maps a relevant document's id to its grade (> 0)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def ndcg(ranking: Sequence[str], qrels: Mapping[str, int], k: int = 10) -> float:
    """nDCG@k with linear gain, as trec_eval and BEIR compute it; 0 where nothing is relevant."""
    gained = sum(qrels.get(document, 0) / math.log2(place + 2) for place, document in enumerate(ranking[:k]))
    best = sum(
        grade / math.log2(place + 2) for place, grade in enumerate(sorted(qrels.values(), reverse=True)[:k])
    )
    return gained / best if best else 0.0


def recall(ranking: Sequence[str], qrels: Mapping[str, int], k: int = 10) -> float:
    """Share of the relevant documents that are among the first k."""
    relevant = {document for document, grade in qrels.items() if grade > 0}
    return len(relevant & set(ranking[:k])) / len(relevant) if relevant else 0.0
