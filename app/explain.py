"""Where a hit's scores come from: shared tokens and the MaxSim alignment.

Legend: M query vectors, N document vectors, C ColBERT dimension.
ColBERT row i belongs to token i + 1: `<s>` has no row, `</s>` has one.
It scores nothing anew: products and similarities are those of the vectors that were scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.index.bm25 import MatchedTerm
from app.ports import Tokenized
from model.embedding import Embedding, LexicalWeights

TokenStrings = Callable[[Sequence[int]], list[str]]


@dataclass(frozen=True, slots=True)
class Side:
    """A query or a document: its vectors and, where its text is known, its tokens."""

    embedding: Embedding
    tokens: Tokenized | None

    def fitting(self, rows: int) -> Tokenized | None:
        """The tokens, where there is one for each ColBERT row; a client's own vectors need not fit."""
        return self.tokens if self.tokens is not None and len(self.tokens.ids) == rows + 1 else None


def explanation(query: Side, document: Side, token_strings: TokenStrings) -> dict[str, Any]:
    """The fields of a hit's `explanation`; an output that one side lacks explains nothing."""
    ours, theirs = query.embedding.sparse, document.embedding.sparse
    matched = [] if ours is None or theirs is None else matched_tokens(ours, theirs, token_strings)
    return {"matched_tokens": matched, "alignment": alignment(query, document, token_strings)}


def matched_tokens(
    query: LexicalWeights, document: LexicalWeights, token_strings: TokenStrings
) -> list[dict[str, Any]]:
    """The ids that both have, largest product first; the products sum to the lexical score."""
    ids, ours, theirs = np.intersect1d(
        query.indices, document.indices, assume_unique=True, return_indices=True
    )
    names = token_strings(ids.tolist())
    pairs = zip(
        ids.tolist(), names, query.values[ours].tolist(), document.values[theirs].tolist(), strict=True
    )
    rows = [
        {"token": name, "id": one, "query_weight": w_q, "document_weight": w_d, "product": w_q * w_d}
        for one, name, w_q, w_d in pairs
    ]
    return sorted(rows, key=lambda row: -row["product"])


def weighed_tokens(terms: Sequence[MatchedTerm], token_strings: TokenStrings) -> list[dict[str, Any]]:
    """The ids that both have as BM25 counts them, largest product first; the products sum to its score."""
    names = token_strings([one.id for one in terms])
    pairs = sorted(zip(names, terms, strict=True), key=lambda pair: -pair[1].product)
    return [
        {
            "token": name,
            "id": one.id,
            "idf": one.idf,
            "query_tf": one.query_count,
            "tf": one.count,
            "product": one.product,
        }
        for name, one in pairs
    ]


def alignment(query: Side, document: Side, token_strings: TokenStrings) -> list[dict[str, Any]]:
    """For each query vector the nearest document vector; the mean similarity is the ColBERT score."""
    ours, theirs = query.embedding.colbert, document.embedding.colbert
    if ours is None or theirs is None:
        return []
    similarities = ours @ theirs.T  # [M, C] @ [C, N] -> [M, N]
    nearest = similarities.argmax(axis=1)
    best = similarities[np.arange(len(ours)), nearest]
    query_names = _named_rows(query.fitting(len(ours)), range(len(ours)), token_strings)
    document_names = _named_rows(document.fitting(len(theirs)), nearest.tolist(), token_strings)
    return [
        {
            "query_token": query_token,
            "query_offset": query_offset,
            "document_token": document_token,
            "document_offset": document_offset,
            "similarity": similarity,
        }
        for (query_token, query_offset), (document_token, document_offset), similarity in zip(
            query_names, document_names, best.tolist(), strict=True
        )
    ]


def _named_rows(
    tokens: Tokenized | None, rows: Sequence[int], token_strings: TokenStrings
) -> list[tuple[str | None, list[int] | None]]:
    if tokens is None:
        return [(None, None)] * len(rows)
    names = token_strings([int(tokens.ids[row + 1]) for row in rows])
    return [(name, list(tokens.offsets[row + 1])) for name, row in zip(names, rows, strict=True)]
