"""The retrievers of docs/examples against a running server, within their frameworks' own chains."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import httpx
import pytest

from tests.server import FAKE, running_server

pytest.importorskip("langchain_core", reason="the client libraries are not installed: make test-clients")
pytest.importorskip("llama_index.core", reason="the client libraries are not installed: make test-clients")
pytestmark = pytest.mark.clients

from docs.examples import langchain_retriever, llamaindex_retriever  # noqa: E402

ROOT = Path(__file__).parent.parent.parent
TOWER, DOM, WALL = "the Eiffel tower opened in 1889", "der Kölner Dom 🧱", "长城 是 防御 工程"
EXAMPLES = ["langchain_retriever", "llamaindex_retriever"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_server(tmp_path_factory.mktemp("data"), FAKE) as (client, _):
        yield str(client.base_url)


class LangChain:
    """What both examples do, in LangChain's words."""

    module: ModuleType = langchain_retriever

    def index(self, texts: dict[str, tuple[str, dict[str, Any]]], **options: Any) -> list[str]:
        from langchain_core.documents import Document

        documents = [
            Document(id=key or None, page_content=text, metadata=metadata)
            for key, (text, metadata) in texts.items()
        ]
        return self.module.index_documents(documents, **options)

    def search(self, query: str, **options: Any) -> list[tuple[str | None, str, dict[str, Any]]]:
        """Id, text and metadata of each hit; asked twice, the second time awaited."""
        retriever = self.module.TrivecRetriever(**options)
        found, again = retriever.invoke(query), asyncio.run(retriever.ainvoke(query))
        assert found == again
        return [(one.id, one.page_content, one.metadata) for one in found]


class LlamaIndex:
    """The same in LlamaIndex's."""

    module: ModuleType = llamaindex_retriever

    def index(self, texts: dict[str, tuple[str, dict[str, Any]]], **options: Any) -> list[str]:
        from llama_index.core.schema import TextNode

        nodes = [
            TextNode(text=text, metadata=metadata, **({"id_": key} if key else {}))
            for key, (text, metadata) in texts.items()
        ]
        return self.module.index_nodes(nodes, **options)

    def search(self, query: str, **options: Any) -> list[tuple[str | None, str, dict[str, Any]]]:
        retriever = self.module.TrivecRetriever(**options)
        found, again = retriever.retrieve(query), asyncio.run(retriever.aretrieve(query))
        assert found == again and all(one.score == one.node.metadata["score"] for one in found)
        return [(one.node.node_id, one.node.text, one.node.metadata) for one in found]


@pytest.fixture(params=[LangChain, LlamaIndex], ids=["langchain", "llamaindex"])
def side(request: pytest.FixtureRequest) -> LangChain | LlamaIndex:
    return request.param()


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """Something else that speaks HTTP."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def new_collection(url: str, name: str) -> str:
    httpx.delete(f"{url}/collections/{name}")
    httpx.put(f"{url}/collections/{name}").raise_for_status()
    return name


@pytest.fixture
def stored(url: str, side: LangChain | LlamaIndex) -> dict[str, Any]:
    """Options for searching three documents."""
    options = {"url": url, "collection": new_collection(url, "three")}
    texts = {
        "tower": (TOWER, {"lang": "en", "year": 1889}),
        "dom": (DOM, {"lang": "de", "year": 1880}),
        "wall/长城": (WALL, {"lang": "zh"}),
    }
    assert side.index(texts, **options) == list(texts)
    return options


def test_hits_carry_texts_scores_and_metadata(side: LangChain | LlamaIndex, stored: dict[str, Any]) -> None:
    found = side.search("Eiffel tower", **stored, top_k=2)
    assert len(found) == 2
    key, text, metadata = found[0]
    assert (key, text) == ("tower", TOWER)
    assert (metadata["id"], metadata["lang"], metadata["year"]) == ("tower", "en", 1889)
    assert set(metadata["scores"]) == {"dense", "sparse", "colbert"}
    assert metadata["score"] > found[1][2]["score"]
    assert side.search("防御 工程", **stored)[0][:2] == ("wall/长城", WALL)


def test_mode_filter_and_weights_reach_the_server(
    side: LangChain | LlamaIndex, stored: dict[str, Any]
) -> None:
    only = side.search("Eiffel tower", **stored, filter={"year": {"$lt": 1885}})
    assert [one[0] for one in only] == ["dom"]
    sparse = side.search("Eiffel tower", **stored, mode="sparse")
    assert [one[0] for one in sparse] == ["tower"]
    assert sparse[0][2]["score"] == pytest.approx(sparse[0][2]["scores"]["sparse"])
    (first, *_) = side.search("Eiffel tower", **stored, weights={"dense": 2, "colbert": 1})
    scores = first[2]["scores"]
    assert first[2]["score"] == pytest.approx((2 * scores["dense"] + scores["colbert"]) / 3)


def test_many_documents_take_several_requests_and_ids_are_made(
    url: str, side: LangChain | LlamaIndex
) -> None:
    name = new_collection(url, "many")
    texts: dict[str, tuple[str, dict[str, Any]]] = {f"d{n}": (f"number {n}", {"n": n}) for n in range(600)}
    texts[""] = ("without an id of its own", {})
    ids = side.index(texts, url=f"{url}/", collection=name)
    assert ids[:600] == list(texts)[:600] and len(ids) == 601 and ids[600]
    assert httpx.get(f"{url}/collections/{name}").json()["count"] == 601
    assert side.search("number 599", url=f"{url}/", collection=name, top_k=1)[0][0] == "d599"


def test_what_the_server_refuses_is_raised_in_its_words(url: str, side: LangChain | LlamaIndex) -> None:
    def refused(message: str, **options: Any) -> None:
        with pytest.raises(side.module.TrivecError, match=message):
            side.search("a", **{"url": url, **options})

    refused("collection_not_found", collection="nowhere")
    refused(r"invalid_filter \(filter.x", filter={"x": {"$near": 1}})
    refused(r"invalid_request \(weights\)", weights={"dense": 0})
    refused("limit_exceeded", top_k=10**6)
    for status, body in [(404, b"<html>"), (200, b"[]"), (200, b'{"hits": 5}'), (502, b'{"error": "bad"}')]:
        with answering(status, body) as other:
            refused(f"status {status}: is that a Trivec server", url=other)
    with pytest.raises(side.module.TrivecError, match=r"(document|node) 1: .* limit is 512"):
        side.index({"fine": ("a", {}), "ü" * 300: ("b", {})}, url=url)
    with pytest.raises(side.module.TrivecError, match="invalid_request"):
        side.index({"x": ("", {})}, url=url)
    with pytest.raises(httpx.ConnectError):
        side.search("a", url="http://127.0.0.1:9")


def test_a_key_is_sent(side: LangChain | LlamaIndex, tmp_path: Path) -> None:
    with running_server(tmp_path, FAKE, TRIVEC_API_KEYS="sesame") as (client, _):
        address = str(client.base_url)
        assert side.index({"a": ("a text", {})}, url=address, api_key="sesame") == ["a"]
        assert len(side.search("text", url=address, api_key="sesame")) == 1
        for wrong in ({}, {"api_key": "wrong"}):
            with pytest.raises(side.module.TrivecError, match="unauthorized"):
                side.search("text", url=address, **wrong)


def test_a_whole_chain_of_langchain(url: str) -> None:
    """Retriever, prompt, model, parser; the model answers with what it was asked."""
    from langchain_core.documents import Document
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_core.runnables import RunnableLambda, RunnablePassthrough

    name = new_collection(url, "chain")
    documents = [Document(id="t", page_content=TOWER), Document(id="d", page_content=DOM)]
    langchain_retriever.index_documents(documents, url=url, collection=name)
    retriever = langchain_retriever.TrivecRetriever(url=url, collection=name, top_k=1)
    prompt = ChatPromptTemplate.from_template("Context: {context}\nQuestion: {question}")
    asked: list[str] = []

    def model(value: Any) -> str:
        asked.append(value.to_string())
        return "1889"

    chain = (
        {
            "context": retriever | (lambda found: "\n".join(one.page_content for one in found)),
            "question": RunnablePassthrough(),
        }
        | prompt
        | RunnableLambda(model)
        | StrOutputParser()
    )
    assert chain.invoke("When opened the Eiffel tower?") == "1889"
    assert asyncio.run(chain.ainvoke("When opened the Eiffel tower?")) == "1889"
    assert asked == [f"Human: Context: {TOWER}\nQuestion: When opened the Eiffel tower?"] * 2


def test_a_whole_query_engine_of_llamaindex(url: str) -> None:
    """The engine fills its prompt with the text and the metadata, but without ids and scores."""
    from llama_index.core.llms import MockLLM
    from llama_index.core.query_engine import RetrieverQueryEngine
    from llama_index.core.schema import TextNode

    name = new_collection(url, "engine")
    nodes = [TextNode(id_="t", text=TOWER, metadata={"lang": "en"}), TextNode(id_="d", text=DOM)]
    llamaindex_retriever.index_nodes(nodes, url=url, collection=name)
    retriever = llamaindex_retriever.TrivecRetriever(url, collection=name, top_k=1)
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())  # gives back its prompt
    answer = engine.query("When opened the Eiffel tower?")
    assert TOWER in str(answer) and "lang: en" in str(answer) and "scores" not in str(answer)
    assert [one.node.node_id for one in answer.source_nodes] == ["t"]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs_as_a_script(url: str, example: str, tmp_path: Path) -> None:
    """As it is, but for the port."""
    source = (ROOT / "docs" / "examples" / f"{example}.py").read_text(encoding="utf-8")
    assert "http://127.0.0.1:8000" in source
    script = tmp_path / "example.py"
    script.write_text(source.replace("http://127.0.0.1:8000", url), encoding="utf-8")
    found = subprocess.run(
        [sys.executable, script, "When did the tower open?"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert re.fullmatch(r"\d\.\d{4}  tower  The Eiffel Tower opened in 1889\.", found[0])
    assert found[1].endswith("  dom  Der Kölner Dom wurde 1880 vollendet.")


def test_the_snippets_of_the_guide_run(url: str, tmp_path: Path) -> None:
    """Beside copies of the examples, as the guide says; they differ in the port alone."""
    for name in EXAMPLES:
        source = (ROOT / "docs" / "examples" / f"{name}.py").read_text(encoding="utf-8")
        (tmp_path / f"{name}.py").write_text(source.replace("http://127.0.0.1:8000", url), encoding="utf-8")
    guide = (ROOT / "docs" / "rag.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    assert len(snippets) == 3
    for snippet in snippets:
        script = snippet + ("print(chain)" if "chain =" in snippet else "")
        found = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert found.returncode == 0 and found.stdout, found.stderr
        assert "chain =" in snippet or found.stdout.startswith("tower ")
