"""Libraries that speak to text-embeddings-inference, against a running server: results and what they send."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from tests.clients import tei_payloads as payloads
from tests.clients.conftest import Server

Start = Callable[..., AbstractContextManager[Server]]

pytestmark = pytest.mark.clients
TEXTS = payloads.TEXTS


@pytest.fixture
def tei(server: Server) -> str:
    """The base URL; what was sent before is forgotten."""
    server.sent()
    return f"{server.url}/tei"


def sparse(server: Server, texts: list[str]) -> list[tuple[list[int], list[float]]]:
    """Lexical weights from the native route."""
    body = {"texts": texts, "outputs": ["sparse"]}
    found = httpx.post(f"{server.url}/embed", json=body).json()["results"]
    return [(one["sparse"]["indices"], one["sparse"]["values"]) for one in found]


@contextmanager
def at_the_root(tei: str) -> Iterator[str]:
    """A reverse proxy that has the routes under /tei at its root, as docs/tei.md sets one up with nginx."""

    class Forwarding(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            kept = {
                name: self.headers[name] for name in ("Content-Type", "Authorization") if name in self.headers
            }
            answer = httpx.post(f"{tei}{self.path}", content=body, headers=kept)
            self.send_response(answer.status_code)
            self.send_header("Content-Type", answer.headers["Content-Type"])
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Forwarding) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{proxy.server_port}"
        finally:
            proxy.shutdown()


class TestHuggingFaceHub:
    """`huggingface_hub.InferenceClient`, which knows a URL and no path."""

    def client(self, url: str, **options: Any) -> Any:
        return pytest.importorskip("huggingface_hub").InferenceClient(model=url, **options)

    def test_one_text(self, server: Server, tei: str) -> None:
        found = self.client(tei).feature_extraction(TEXTS[0])
        assert server.sent() == [payloads.HUB_ONE]
        assert found.shape == (1, 24)
        assert found[0].tolist() == pytest.approx(server.embed(TEXTS)[0])

    def test_texts_with_every_parameter(self, server: Server, tei: str) -> None:
        found = self.client(tei).feature_extraction(
            TEXTS, normalize=False, truncate=True, truncation_direction="left", dimensions=8
        )
        assert server.sent() == [payloads.HUB_ALL]
        assert found.shape == (2, 8)

    def test_similarity(self, server: Server, tei: str) -> None:
        found = self.client(tei).sentence_similarity(TEXTS[0], TEXTS)
        assert server.sent() == [payloads.HUB_SIMILARITY]
        assert found[0] == pytest.approx(1, abs=1e-5) and -1 <= found[1] < 1

    def test_with_a_slash_and_with_a_path(self, server: Server, tei: str) -> None:
        for url in (f"{tei}/", f"{tei}/embed"):
            found = self.client(url).feature_extraction(TEXTS[0])
            assert found[0].tolist() == pytest.approx(server.embed(TEXTS)[0])

    def test_asynchronously(self, server: Server, tei: str) -> None:
        hub = pytest.importorskip("huggingface_hub")

        async def run() -> Any:
            client = hub.AsyncInferenceClient(model=tei)
            return await asyncio.gather(*(client.feature_extraction(text) for text in TEXTS))

        rows = [one[0].tolist() for one in asyncio.run(run())]
        assert rows == [pytest.approx(one) for one in server.embed(TEXTS)]

    def test_health_and_info(self, tei: str) -> None:
        client = self.client(tei, provider="hf-inference")
        if not hasattr(client, "health_check"):
            pytest.skip("this release has no health check")
        assert client.health_check() is True
        assert client.get_endpoint_info()["model_id"] == "fake"

    def test_refusals(self, tei: str, start: Start) -> None:
        errors = pytest.importorskip("huggingface_hub.errors")
        with pytest.raises(errors.HfHubHTTPError) as refused:
            self.client(tei).feature_extraction("a", prompt_name="query")
        assert refused.value.response.status_code == 422
        assert refused.value.response.json()["error_type"] == "Validation"
        with start(api_keys=["good"]) as locked:
            url = f"{locked.url}/tei"
            assert self.client(url, token="good").feature_extraction("a").shape == (1, 24)
            with pytest.raises(errors.HfHubHTTPError) as refused:
                self.client(url, token="bad").feature_extraction("a")
            assert refused.value.response.status_code == 401


class TestLangChain:
    """`langchain_huggingface.HuggingFaceEndpointEmbeddings`: since 1.2.2 its client takes the URL."""

    def embeddings(self, url: str) -> Any:
        huggingface = pytest.importorskip("langchain_huggingface")
        hub = pytest.importorskip("huggingface_hub")
        found = huggingface.HuggingFaceEndpointEmbeddings(model="BAAI/bge-m3")
        found.client, found.async_client = hub.InferenceClient(model=url), hub.AsyncInferenceClient(model=url)
        return found

    def test_query_and_documents(self, server: Server, tei: str) -> None:
        found = self.embeddings(tei)
        assert found.embed_query(TEXTS[0]) == pytest.approx(server.embed(TEXTS)[0])
        server.sent()
        found.embed_query(TEXTS[0])
        assert server.sent() == [payloads.LANGCHAIN_QUERY]
        found.model_kwargs = {"truncate": True}
        rows = found.embed_documents(TEXTS)
        assert server.sent() == [payloads.LANGCHAIN_DOCUMENTS]
        assert rows == [pytest.approx(one) for one in server.embed(TEXTS)]
        assert asyncio.run(found.aembed_documents(TEXTS)) == [pytest.approx(one) for one in rows]


class TestLlamaIndex:
    """The TEI packages of LlamaIndex."""

    def test_embeddings(self, server: Server, tei: str) -> None:
        package = pytest.importorskip("llama_index.embeddings.text_embeddings_inference")
        model = package.TextEmbeddingsInference(model_name="BAAI/bge-m3", base_url=tei)
        wanted = [pytest.approx(one) for one in server.embed(TEXTS)]
        server.sent()
        assert model.get_query_embedding(TEXTS[0]) == wanted[0]
        assert server.sent() == [payloads.LLAMA_INDEX_QUERY]
        assert model.get_text_embedding_batch(TEXTS) == wanted
        assert server.sent() == [payloads.LLAMA_INDEX_TEXTS]
        assert asyncio.run(model.aget_text_embedding_batch(TEXTS)) == wanted

    def test_rerank(self, server: Server, tei: str) -> None:
        package = pytest.importorskip("llama_index.postprocessor.tei_rerank")
        schema = pytest.importorskip("llama_index.core.schema")
        nodes = [schema.NodeWithScore(node=schema.TextNode(text=text), score=0.5) for text in TEXTS]
        found = package.TextEmbeddingInference(base_url=tei, top_n=2).postprocess_nodes(
            nodes, query_str="cat"
        )
        assert server.sent() == [payloads.LLAMA_INDEX_RERANK]
        wanted = server.rerank("cat", TEXTS)
        assert [one.text for one in found] == [TEXTS[place] for place, _ in wanted]
        assert [one.score for one in found] == [pytest.approx(score) for _, score in wanted]

    def test_keys(self, start: Start) -> None:
        """Its embeddings add `Bearer`, its reranker sends the token as it is."""
        embeddings = pytest.importorskip("llama_index.embeddings.text_embeddings_inference")
        rerank = pytest.importorskip("llama_index.postprocessor.tei_rerank")
        schema = pytest.importorskip("llama_index.core.schema")
        with start(api_keys=["good:read"]) as locked:
            url = f"{locked.url}/tei"
            model = embeddings.TextEmbeddingsInference(model_name="m", base_url=url, auth_token="good")
            assert len(model.get_query_embedding("a")) == 24
            node = schema.NodeWithScore(node=schema.TextNode(text="a"), score=0.0)
            reranker = rerank.TextEmbeddingInference(base_url=url, auth_token="Bearer good")
            assert len(reranker.postprocess_nodes([node], query_str="a")) == 1


class TestHaystack:
    """Haystack's components for TEI, of the package huggingface-api-haystack."""

    def test_dense(self, server: Server, tei: str) -> None:
        package = pytest.importorskip("haystack_integrations.components.embedders.huggingface_api")
        haystack = pytest.importorskip("haystack")
        options = {"api_type": "text_embeddings_inference", "api_params": {"url": tei}}
        found = package.HuggingFaceAPITextEmbedder(**options).run(TEXTS[0])
        assert server.sent() == [payloads.HAYSTACK_TEXT]
        direction = [one * 3 for one in server.embed(TEXTS)[0]]  # it asks for vectors as long as they are
        assert found["embedding"] == pytest.approx(direction, abs=1e-5)
        server.sent()
        documents = [haystack.Document(content=text) for text in TEXTS]
        embedder = package.HuggingFaceAPIDocumentEmbedder(**options, progress_bar=False)
        assert [len(one.embedding) for one in embedder.run(documents)["documents"]] == [24, 24]
        assert server.sent() == [payloads.HAYSTACK_DOCUMENTS]

    def test_sparse(self, server: Server, tei: str) -> None:
        package = pytest.importorskip("haystack_integrations.components.embedders.huggingface_api")
        haystack = pytest.importorskip("haystack")
        wanted = sparse(server, TEXTS)
        server.sent()
        found = package.HuggingFaceTEISparseTextEmbedder(api_base_url=tei).run(TEXTS[0])["sparse_embedding"]
        assert server.sent() == [payloads.HAYSTACK_SPARSE_TEXT]
        assert (found.indices, found.values) == wanted[0]
        documents = [haystack.Document(content=text) for text in TEXTS]
        embedder = package.HuggingFaceTEISparseDocumentEmbedder(api_base_url=tei)
        rows = [one.sparse_embedding for one in embedder.run(documents)["documents"]]
        assert server.sent() == [payloads.HAYSTACK_SPARSE_DOCUMENTS]
        assert [(one.indices, one.values) for one in rows] == wanted

    def test_rerank_behind_a_proxy(self, server: Server, tei: str) -> None:
        """It replaces the path of its URL, so that it reaches the root of a host only."""
        package = pytest.importorskip("haystack_integrations.components.rankers.huggingface_api")
        haystack = pytest.importorskip("haystack")
        documents = [haystack.Document(content=text) for text in TEXTS]
        wanted = server.rerank("cat", TEXTS)
        server.sent()
        with at_the_root(tei) as url:
            ranker = package.HuggingFaceTEIRanker(url=url, max_retries=1)
            found = ranker.run(query="cat", documents=documents)["documents"]
            assert server.sent() == [payloads.HAYSTACK_RERANK]
            left = package.TruncationDirection.LEFT
            ranker.run(query="cat", documents=documents, truncation_direction=left)
            assert server.sent() == [payloads.HAYSTACK_RERANK_CUT]
            with pytest.raises(RuntimeError, match="less than 512 tokens"):
                ranker.run(query="cat", documents=[haystack.Document(content="word " * 600)])
        assert [one.content for one in found] == [TEXTS[place] for place, _ in wanted]
        assert [one.score for one in found] == [pytest.approx(score) for _, score in wanted]
