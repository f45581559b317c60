"""Cohere's and Jina's rerankers, and the frameworks that call them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.clients import payloads
from tests.clients.conftest import Server

pytestmark = pytest.mark.clients

Start = Callable[..., AbstractContextManager[Server]]
NO_COHERE = "cohere is not installed: make test-clients"


@pytest.fixture(autouse=True)
def nothing_sent(server: Server) -> None:
    server.sent()


def test_cohere(server: Server) -> None:
    cohere = pytest.importorskip("cohere", reason=NO_COHERE)
    client = cohere.ClientV2(base_url=server.url, api_key="unused")
    found = client.rerank(
        model="any", query="cat", documents=payloads.TEXTS, top_n=1, max_tokens_per_doc=4096
    )
    assert server.sent() == [{"path": "/v2/rerank", "body": payloads.COHERE_RERANK}]
    wanted = server.rerank("cat", payloads.TEXTS)
    assert [(one.index, one.relevance_score) for one in found.results] == [
        (index, pytest.approx(score)) for index, score in wanted[:1]
    ]
    assert found.meta.api_version.version == "2"

    async def run() -> int:
        async with cohere.AsyncClientV2(base_url=server.url, api_key="unused") as client:
            found = await client.rerank(model="any", query="cat", documents=payloads.TEXTS)
        return int(found.results[0].index)

    assert asyncio.run(run()) == wanted[0][0]


def test_cohere_version_1(server: Server) -> None:
    cohere = pytest.importorskip("cohere", reason=NO_COHERE)
    client = cohere.Client(base_url=server.url, api_key="unused")
    found = client.rerank(
        model="any",
        query="cat",
        documents=["the cat sat", {"text": "a dog barked", "title": "dogs"}],
        return_documents=True,
    )
    assert server.sent() == [{"path": "/v1/rerank", "body": payloads.COHERE_RERANK_V1}]
    wanted = server.rerank("cat", payloads.TEXTS)
    assert [(one.index, one.relevance_score) for one in found.results] == [
        (index, pytest.approx(score)) for index, score in wanted
    ]
    assert found.results[0].document.text == "the cat sat"


def test_cohere_embeds(server: Server) -> None:
    cohere = pytest.importorskip("cohere", reason=NO_COHERE)
    wanted = [pytest.approx(one) for one in server.embed(payloads.TEXTS)]
    client = cohere.ClientV2(base_url=server.url, api_key="unused")
    server.sent()
    found = client.embed(
        model="any",
        texts=payloads.TEXTS,
        input_type="search_document",
        embedding_types=["float", "int8", "uint8", "binary", "ubinary", "base64"],
        truncate="END",
        max_tokens=128000,
    )
    assert server.sent() == [{"path": "/v2/embed", "body": payloads.COHERE_EMBED}]
    assert found.embeddings.float_ == wanted
    assert found.embeddings.uint8 == [[one + 128 for one in row] for row in found.embeddings.int8]
    assert found.embeddings.ubinary == [[one + 128 for one in row] for row in found.embeddings.binary]
    assert len(found.embeddings.base64) == 2
    old = cohere.Client(base_url=server.url, api_key="unused")
    plain = old.embed(model="any", texts=payloads.TEXTS, input_type="search_query")
    assert server.sent() == [{"path": "/v1/embed", "body": payloads.COHERE_EMBED_V1}]
    assert plain.embeddings == wanted and plain.texts == payloads.TEXTS


def test_cohere_embeds_in_batches(server: Server) -> None:
    """Version 1 sends 96 texts a request, several at once, and puts the answers and their costs together."""
    cohere = pytest.importorskip("cohere", reason=NO_COHERE)
    texts = [f"text {number}" for number in range(200)]
    wanted = [pytest.approx(one) for one in server.embed(texts)]
    server.sent()
    client = cohere.Client(base_url=server.url, api_key="unused")
    plain = client.embed(model="any", texts=texts, input_type="search_document")
    assert sorted(len(one["body"]["texts"]) for one in server.sent()) == [8, 96, 96]
    assert plain.embeddings == wanted and plain.texts == texts
    assert plain.meta.billed_units.input_tokens == 4 * len(texts)

    async def run() -> object:
        async with cohere.AsyncClient(base_url=server.url, api_key="unused") as client:
            return await client.embed(model="any", texts=texts, embedding_types=["float", "ubinary"])

    by_type = asyncio.run(run())
    assert by_type.embeddings.float_ == wanted and len(by_type.embeddings.ubinary) == len(texts)  # type: ignore[attr-defined]


def test_cohere_embeds_inputs_of_parts(server: Server) -> None:
    cohere = pytest.importorskip("cohere", reason=NO_COHERE)
    client = cohere.ClientV2(base_url=server.url, api_key="unused")
    inputs = [{"content": [{"type": "text", "text": text}]} for text in payloads.TEXTS]
    found = client.embed(model="any", inputs=inputs, input_type="search_query", output_dimension=24)
    assert found.embeddings.float_ == [pytest.approx(one) for one in server.embed(payloads.TEXTS)]
    with pytest.raises(cohere.BadRequestError) as refused:
        client.embed(model="any", images=["data:image/png;base64,AA"], input_type="image")
    assert refused.value.body["param"] == "images"


def test_coheres_exceptions(server: Server, start: Start) -> None:
    cohere = pytest.importorskip("cohere", reason=NO_COHERE)
    client = cohere.ClientV2(base_url=server.url, api_key="unused")
    with pytest.raises(cohere.BadRequestError) as empty:
        client.rerank(model="any", query="cat", documents=[])
    assert empty.value.body["param"] == "documents" and empty.value.body["message"].startswith("documents: ")
    with pytest.raises(cohere.BadRequestError) as narrow:
        client.embed(model="any", texts=["a"], input_type="search_query", output_dimension=256)
    assert narrow.value.body["param"] == "output_dimension"
    with pytest.raises(cohere.NotFoundError):
        client.models.get("any")
    with start(api_keys=["good"]) as locked:
        stranger = cohere.ClientV2(base_url=locked.url, api_key="bad")
        with pytest.raises(cohere.UnauthorizedError) as refused:
            stranger.rerank(model="any", query="cat", documents=["a"])
        assert "API key" in refused.value.body["message"]
        friend = cohere.ClientV2(base_url=locked.url, api_key="good")
        assert friend.rerank(model="any", query="cat", documents=["a"]).results


def test_langchain_cohere(server: Server) -> None:
    library = pytest.importorskip(
        "langchain_cohere", reason="langchain-cohere is not installed: make test-clients"
    )
    from langchain_core.documents import Document

    reranker = library.CohereRerank(base_url=server.url, cohere_api_key="unused", model="any", top_n=1)
    found = reranker.compress_documents([Document(text) for text in payloads.TEXTS], "cat")
    assert server.sent() == [{"path": "/v2/rerank", "body": payloads.LANGCHAIN_COHERE_RERANK}]
    assert [one.page_content for one in found] == ["the cat sat"]
    embeddings = library.CohereEmbeddings(base_url=server.url, cohere_api_key="unused", model="any")
    vectors = embeddings.embed_documents(payloads.TEXTS)
    assert server.sent() == [{"path": "/v1/embed", "body": payloads.LANGCHAIN_COHERE_EMBED}]
    assert vectors == [pytest.approx(one) for one in server.embed(payloads.TEXTS)]


@pytest.fixture
def nodes() -> list[object]:
    schema = pytest.importorskip(
        "llama_index.core.schema", reason="llama-index is not installed: make test-clients"
    )
    return [schema.NodeWithScore(node=schema.TextNode(text=text)) for text in payloads.TEXTS]


def test_llama_index_cohere(server: Server, nodes: list[object]) -> None:
    library = pytest.importorskip(
        "llama_index.postprocessor.cohere_rerank", reason="not installed: make test-clients"
    )
    reranker = library.CohereRerank(base_url=server.url, api_key="unused", model="any", top_n=1)
    (best,) = reranker.postprocess_nodes(nodes, query_str="cat")
    assert server.sent() == [{"path": "/v2/rerank", "body": payloads.LLAMA_INDEX_COHERE_RERANK}]
    assert best.node.text == "the cat sat"
    assert best.score == pytest.approx(server.rerank("cat", payloads.TEXTS)[0][1])


def test_llama_index_jina(server: Server, nodes: list[object]) -> None:
    library = pytest.importorskip(
        "llama_index.postprocessor.jinaai_rerank", reason="not installed: make test-clients"
    )
    reranker = library.JinaRerank(base_url=server.v1, api_key="unused", model="any", top_n=1)
    (best,) = reranker.postprocess_nodes(nodes, query_str="cat")
    assert server.sent() == [{"path": "/v1/rerank", "body": payloads.LLAMA_INDEX_JINA_RERANK}]
    assert best.node.text == "the cat sat"
    with pytest.raises(RuntimeError, match="query"):  # it raises what `detail` says
        reranker.postprocess_nodes(nodes, query_str="")


def test_haystack_jina(server: Server) -> None:
    library = pytest.importorskip(
        "haystack_integrations.components.rankers.jina",
        reason="jina-haystack is not installed: make test-clients",
    )
    from haystack import Document
    from haystack.utils import Secret

    ranker = library.JinaRanker(
        base_url=f"{server.v1}/rerank", api_key=Secret.from_token("unused"), model="any"
    )
    found = ranker.run("cat", [Document(content=text) for text in payloads.TEXTS])
    assert server.sent() == [{"path": "/v1/rerank", "body": payloads.JINA_HAYSTACK_RERANK}]
    assert [one.content for one in found["documents"]] == payloads.TEXTS
    assert found["meta"]["model"] == "fake" and found["meta"]["usage"]["total_tokens"] > 0
