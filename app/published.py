"""Published outputs of the real BAAI/bge-m3: what a correct encoder must reproduce.

Figures, not code, from: [1] FlagEmbedding README of BGE-M3 (fp16); [2] FlagEmbedding tutorial
1.2.4 (fp32, CPU); [3] fastembed-rs, tests/bgem3_comparison.rs (fp32, made by FlagEmbedding);
[4] Milvus documentation of its BGE-M3 embedding function (fp32); [5] vLLM's bge-m3 test (fp32).
"""

from __future__ import annotations

from collections.abc import Mapping

QUERIES = ("What is BGE M3?", "Defination of BM25")  # spelling as published
PASSAGES = (
    "BGE M3 is an embedding model supporting dense retrieval, lexical matching and multi-vector interaction.",
    "BM25 is a bag-of-words retrieval function that ranks a set of documents based on the query terms "
    "appearing in each document",
)

# Scores of each query with each passage.
DENSE = ((0.6259035, 0.34749585), (0.349868, 0.6782462))  # [2]
SPARSE = ((0.19554448500275612, 0.00880391988903284), (0.0, 0.1802978515625))  # [2], last row [1]
COLBERT = ((0.7796662449836731, 0.4621177911758423), (0.4523794651031494, 0.7898575067520142))  # [2], [1]
HYBRID = (0.6013619303703308, 0.3255828022956848, 0.32089319825172424, 0.6232916116714478)  # [1], .4/.2/.4

# Lexical weights by token id.
TOKEN_WEIGHTS: Mapping[str, Mapping[int, float]] = {
    "What is BGE M3?": {  # [2]
        4865: 0.08362077,
        83: 0.081469566,
        335: 0.12964639,
        11679: 0.25186998,
        276: 0.17001738,
        363: 0.26957875,
        32: 0.040755156,
    },
    "Superman is the best superhero of all time": {  # [3]
        183497: 0.32012847,
        83: 0.19853045,
        70: 0.16743071,
        2965: 0.24451455,
        1601: 0.17550871,
        90865: 0.25476876,
        111: 0.11962792,
        756: 0.13541803,
        1733: 0.18622744,
    },
    "Hi": {2673: 0.26710861921310425},  # [5]
}

# First and last three components of dense vectors. [4]
DENSE_EDGES: Mapping[str, tuple[float, float, float, float, float, float]] = {
    "Artificial intelligence was founded as an academic discipline in 1956.": (
        -0.02505937,
        -0.00142193,
        0.04015467,
        -0.02094924,
        0.02623661,
        0.00324098,
    ),
    "When was artificial intelligence founded": (
        -0.02024024,
        -0.01514386,
        0.02380808,
        0.00234648,
        -0.00264978,
        -0.04317448,
    ),
}

COLBERT_ROWS: Mapping[str, int] = {QUERIES[0]: 8, PASSAGES[0]: 30}  # [2]
