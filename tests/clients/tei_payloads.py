"""What clients of text-embeddings-inference send, as seen on the wire: path and JSON body of one call each.

`test_http_tei.py` posts them in every run; `test_tei_clients.py`, which needs the libraries, checks that
these still send them. Nothing of Trivec is imported here.
"""

from __future__ import annotations

from typing import Any

TEXTS = ["the cat sat", "a dog barked"]

Sent = dict[str, Any]


def _sent(path: str, **body: Any) -> Sent:
    return {"path": path, "body": body}


# huggingface_hub's InferenceClient posts to the bare URL, whatever the task.
HUB_ONE = _sent("/tei", inputs=TEXTS[0])
HUB_ALL = _sent(
    "/tei", inputs=TEXTS, normalize=False, truncate=True, truncation_direction="left", dimensions=8
)
HUB_SIMILARITY = _sent("/tei", inputs={"source_sentence": TEXTS[0], "sentences": TEXTS}, parameters={})
LANGCHAIN_QUERY = _sent("/tei", inputs=[TEXTS[0]])
LANGCHAIN_DOCUMENTS = _sent("/tei", inputs=TEXTS, truncate=True)
LLAMA_INDEX_QUERY = _sent("/tei/embed", inputs=[TEXTS[0]], truncate=True)
LLAMA_INDEX_TEXTS = _sent("/tei/embed", inputs=TEXTS, truncate=True)
LLAMA_INDEX_RERANK = _sent("/tei/rerank", query="cat", texts=TEXTS)
HAYSTACK_TEXT = _sent("/tei", inputs=TEXTS[0], truncate=True, normalize=False)
HAYSTACK_DOCUMENTS = _sent("/tei", inputs=TEXTS, truncate=True, normalize=False)
HAYSTACK_SPARSE_TEXT = _sent("/tei/embed_sparse", inputs=TEXTS[0])
HAYSTACK_SPARSE_DOCUMENTS = _sent("/tei/embed_sparse", inputs=TEXTS)
HAYSTACK_RERANK = _sent("/tei/rerank", query="cat", texts=TEXTS, raw_scores=False)
HAYSTACK_RERANK_CUT = _sent(
    "/tei/rerank", query="cat", texts=TEXTS, raw_scores=False, truncate=True, truncation_direction="Left"
)

EMBED = {
    "hub-one": HUB_ONE,
    "hub-all": HUB_ALL,
    "langchain-query": LANGCHAIN_QUERY,
    "langchain-documents": LANGCHAIN_DOCUMENTS,
    "llama-index-query": LLAMA_INDEX_QUERY,
    "llama-index-texts": LLAMA_INDEX_TEXTS,
    "haystack-text": HAYSTACK_TEXT,
    "haystack-documents": HAYSTACK_DOCUMENTS,
}
SPARSE = {"haystack-text": HAYSTACK_SPARSE_TEXT, "haystack-documents": HAYSTACK_SPARSE_DOCUMENTS}
RERANK = {
    "llama-index": LLAMA_INDEX_RERANK,
    "haystack": HAYSTACK_RERANK,
    "haystack-cut": HAYSTACK_RERANK_CUT,
}
