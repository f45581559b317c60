"""LangChain, LlamaIndex and Haystack as they embed through OpenAI's format."""

from __future__ import annotations

import asyncio

import pytest

from tests.clients import payloads
from tests.clients.conftest import Server

pytestmark = pytest.mark.clients


@pytest.fixture(autouse=True)
def nothing_sent(server: Server) -> None:
    server.sent()


def test_langchain(server: Server) -> None:
    library = pytest.importorskip(
        "langchain_openai", reason="langchain-openai is not installed: make test-clients"
    )
    embeddings = library.OpenAIEmbeddings(
        base_url=server.v1, api_key="unused", model="any", check_embedding_ctx_length=False
    )
    found = embeddings.embed_documents(payloads.TEXTS)
    assert server.sent() == [{"path": "/v1/embeddings", "body": payloads.LANGCHAIN}]
    wanted = [pytest.approx(one) for one in server.embed(payloads.TEXTS)]
    assert found == wanted
    assert asyncio.run(embeddings.aembed_query(payloads.TEXTS[0])) == wanted[0]


def test_langchain_as_it_comes_is_told_what_to_set(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default it sends tiktoken's ids, which would be the vectors of other words."""
    library = pytest.importorskip(
        "langchain_openai", reason="langchain-openai is not installed: make test-clients"
    )
    tiktoken = pytest.importorskip("tiktoken")
    openai = pytest.importorskip("openai")
    # The library's own vocabularies are downloads; this one has a token for each byte.
    vocabulary = tiktoken.Encoding(
        "bytes", pat_str=".", mergeable_ranks={bytes([one]): one for one in range(256)}, special_tokens={}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: vocabulary)
    embeddings = library.OpenAIEmbeddings(base_url=server.v1, api_key="unused", model="any", max_retries=0)
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        embeddings.embed_documents(payloads.TEXTS)
    (sent,) = server.sent()
    assert sent["body"]["input"] == [list(text.encode()) for text in payloads.TEXTS]


def test_llama_index(server: Server) -> None:
    library = pytest.importorskip(
        "llama_index.embeddings.openai_like",
        reason="llama-index-embeddings-openai-like is not installed: make test-clients",
    )
    embedding = library.OpenAILikeEmbedding(api_base=server.v1, api_key="unused", model_name="any")
    found = embedding.get_text_embedding_batch(payloads.TEXTS)
    assert server.sent() == [{"path": "/v1/embeddings", "body": payloads.LLAMA_INDEX}]
    wanted = [pytest.approx(one) for one in server.embed(payloads.TEXTS)]
    assert found == wanted
    assert embedding.get_query_embedding(payloads.TEXTS[0]) == wanted[0]


def test_llama_index_asynchronously(server: Server) -> None:
    library = pytest.importorskip(
        "llama_index.embeddings.openai_like",
        reason="llama-index-embeddings-openai-like is not installed: make test-clients",
    )
    embedding = library.OpenAILikeEmbedding(
        api_base=server.v1, api_key="unused", model_name="any", embed_batch_size=10, num_workers=4
    )
    texts = [f"text {number}" for number in range(35)]
    found = asyncio.run(embedding.aget_text_embedding_batch(texts))
    assert sorted(len(one["body"]["input"]) for one in server.sent()) == [5, 10, 10, 10]
    assert found == [pytest.approx(one) for one in server.embed(texts)]


def test_haystack(server: Server) -> None:
    haystack = pytest.importorskip("haystack", reason="haystack-ai is not installed: make test-clients")
    from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
    from haystack.utils import Secret

    where = {"api_base_url": server.v1, "api_key": Secret.from_token("unused"), "model": "any"}
    found = OpenAITextEmbedder(**where).run(payloads.TEXTS[0])
    assert server.sent() == [{"path": "/v1/embeddings", "body": payloads.HAYSTACK_TEXT}]
    documents = [haystack.Document(content=text) for text in payloads.TEXTS]
    embedded = OpenAIDocumentEmbedder(**where, progress_bar=False, raise_on_failure=True).run(documents)
    assert server.sent() == [{"path": "/v1/embeddings", "body": payloads.HAYSTACK_DOCUMENTS}]
    wanted = [pytest.approx(one) for one in server.embed(payloads.TEXTS)]
    assert found["embedding"] == wanted[0]
    assert [one.embedding for one in embedded["documents"]] == wanted
    assert embedded["meta"]["model"] == "fake"


def test_haystack_for_jina(server: Server) -> None:
    library = pytest.importorskip(
        "haystack_integrations.components.embedders.jina",
        reason="jina-haystack is not installed: make test-clients",
    )
    from haystack.utils import Secret

    embedder = library.JinaTextEmbedder(
        base_url=f"{server.v1}/embeddings",
        api_key=Secret.from_token("unused"),
        model="any",
        task="retrieval.query",
    )
    found = embedder.run(payloads.TEXTS[0])
    assert server.sent() == [{"path": "/v1/embeddings", "body": payloads.JINA_HAYSTACK_TEXT}]
    assert found["embedding"] == pytest.approx(server.embed(payloads.TEXTS)[0])
    with pytest.raises(RuntimeError, match=r"^input\.0: "):
        embedder.run("")
