"""What client libraries send, as seen on the wire: path and JSON body of one call each.

`test_http_*.py` posts them as they are, in every run. The tests beside this file, which need the libraries,
check that these still send them. Nothing of Trivec is imported here.
"""

from __future__ import annotations

from typing import Any

TEXTS = ["the cat sat", "a dog barked"]

OPENAI_ONE: Any = {"input": "the cat sat", "model": "any", "encoding_format": "base64"}
OPENAI_ALL: Any = {
    "input": TEXTS,
    "model": "any",
    "encoding_format": "float",
    "dimensions": 24,
    "user": "u-1",
}
OPENAI_IDS: Any = {"input": [[0, 17, 18, 2], [0, 2]], "model": "any", "encoding_format": "base64"}
LANGCHAIN: Any = {"input": TEXTS, "model": "any", "encoding_format": "base64"}
LLAMA_INDEX: Any = {"input": TEXTS, "model": "any", "encoding_format": "base64"}
HAYSTACK_TEXT: Any = {"input": "the cat sat", "model": "any", "encoding_format": "float"}
HAYSTACK_DOCUMENTS: Any = {"input": TEXTS, "model": "any", "encoding_format": "float"}
JINA_HAYSTACK_TEXT: Any = {"input": ["the cat sat"], "model": "any", "task": "retrieval.query"}

COHERE_RERANK: Any = {
    "model": "any",
    "query": "cat",
    "documents": TEXTS,
    "top_n": 1,
    "max_tokens_per_doc": 4096,
}
COHERE_RERANK_V1: Any = {
    "model": "any",
    "query": "cat",
    "documents": ["the cat sat", {"text": "a dog barked", "title": "dogs"}],
    "return_documents": True,
}
LLAMA_INDEX_COHERE_RERANK: Any = {"model": "any", "query": "cat", "documents": TEXTS, "top_n": 1}
LANGCHAIN_COHERE_RERANK: Any = {**LLAMA_INDEX_COHERE_RERANK, "max_tokens_per_doc": None}
LLAMA_INDEX_JINA_RERANK: Any = {"model": "any", "query": "cat", "documents": TEXTS, "top_n": 1}
JINA_HAYSTACK_RERANK: Any = {"model": "any", "query": "cat", "documents": TEXTS, "top_n": None}
COHERE_EMBED: Any = {
    "model": "any",
    "texts": TEXTS,
    "input_type": "search_document",
    "embedding_types": ["float", "int8", "uint8", "binary", "ubinary", "base64"],
    "truncate": "END",
    "max_tokens": 128000,
}
COHERE_EMBED_V1: Any = {"model": "any", "texts": TEXTS, "input_type": "search_query"}
LANGCHAIN_COHERE_EMBED: Any = {
    "model": "any",
    "texts": TEXTS,
    "input_type": "search_document",
    "embedding_types": ["float"],
    "truncate": None,
}

EMBEDDINGS = {
    "openai": OPENAI_ONE,
    "openai-everything": OPENAI_ALL,
    "openai-token-ids": OPENAI_IDS,
    "langchain": LANGCHAIN,
    "llama-index": LLAMA_INDEX,
    "haystack-text": HAYSTACK_TEXT,
    "haystack-documents": HAYSTACK_DOCUMENTS,
    "jina-haystack": JINA_HAYSTACK_TEXT,
}
RERANK_V1 = {
    "cohere-1": COHERE_RERANK_V1,
    "llama-index-jina": LLAMA_INDEX_JINA_RERANK,
    "jina-haystack": JINA_HAYSTACK_RERANK,
}
RERANK_V2 = {
    "cohere": COHERE_RERANK,
    "llama-index-cohere": LLAMA_INDEX_COHERE_RERANK,
    "langchain-cohere": LANGCHAIN_COHERE_RERANK,
}
COHERE_EMBED_V1_BODIES = {"cohere-1": COHERE_EMBED_V1, "langchain-cohere": LANGCHAIN_COHERE_EMBED}
