"""A LangChain retriever over a Trivec server. Needs `pip install langchain-core httpx` and nothing of Trivec.

With `make run` in another terminal:

    python docs/examples/langchain_retriever.py "When did the tower open?"
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal

import httpx
from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import SecretStr

DOCUMENTS_A_REQUEST = 256


class TrivecError(Exception):
    """The server refused a request, or what answered is no Trivec server; the message is the server's."""


class TrivecRetriever(BaseRetriever):
    """Finds documents by POST /search; each carries `id`, `score` and `scores` among its metadata."""

    url: str = "http://127.0.0.1:8000"
    collection: str = "default"
    api_key: SecretStr | None = None
    top_k: int = 5
    mode: Literal["hybrid", "dense", "sparse", "colbert"] = "hybrid"
    filter: dict[str, Any] | None = None
    """On metadata, e.g. `{"lang": "en", "year": {"$gte": 1990}}`."""
    weights: dict[str, float] | None = None
    """Of the hybrid mode, e.g. `{"dense": 1, "sparse": 0.3, "colbert": 1}`."""
    timeout_s: float = 60.0

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        with httpx.Client(timeout=self.timeout_s) as http:
            return _found(http.post(self._address(), json=self._body(query), headers=self._headers()))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun
    ) -> list[Document]:
        async with httpx.AsyncClient(timeout=self.timeout_s) as http:
            reply = await http.post(self._address(), json=self._body(query), headers=self._headers())
        return _found(reply)

    def _address(self) -> str:
        return f"{self.url.rstrip('/')}/search"

    def _body(self, query: str) -> dict[str, Any]:
        asked = {
            "query": query,
            "collection": self.collection,
            "top_k": self.top_k,
            "mode": self.mode,
            "filter": self.filter,
            "weights": self.weights,
        }
        return {name: value for name, value in asked.items() if value is not None}

    def _headers(self) -> dict[str, str]:
        return _authorization(self.api_key.get_secret_value() if self.api_key else None)


def index_documents(
    documents: Sequence[Document],
    *,
    url: str = "http://127.0.0.1:8000",
    collection: str = "default",
    api_key: str | None = None,
    timeout_s: float = 600.0,
) -> list[str]:
    """Store documents and return their ids; one of an id that is there already is replaced.

    Raises TrivecError where a document cannot be stored; the others of its request, and those before, are.
    """
    ids: list[str] = []
    with httpx.Client(timeout=timeout_s, headers=_authorization(api_key)) as http:
        for start in range(0, len(documents), DOCUMENTS_A_REQUEST):
            part = documents[start : start + DOCUMENTS_A_REQUEST]
            body = [
                {"text": one.page_content, "metadata": one.metadata, **({"id": one.id} if one.id else {})}
                for one in part
            ]
            reply = http.post(f"{url.rstrip('/')}/collections/{collection}/documents", json=body)
            for result in _answered(reply, "results"):
                if problem := result.get("error"):
                    raise TrivecError(f"document {start + result['index']}: {problem['message']}")
                ids.append(result["id"])
    return ids


def _authorization(api_key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def _found(reply: httpx.Response) -> list[Document]:
    return [
        Document(
            id=hit["id"],
            page_content=hit["text"],
            metadata={**hit["metadata"], "id": hit["id"], "score": hit["score"], "scores": hit["scores"]},
        )
        for hit in _answered(reply, "hits")
    ]


def _answered(reply: httpx.Response, field: str) -> list[dict[str, Any]]:
    """A list of the answer. Raises TrivecError, with what the server says where it is one."""
    try:
        body = reply.json()
    except ValueError:
        body = None
    fields = body if isinstance(body, dict) else {}
    problem = fields.get("error")
    if isinstance(problem, dict):
        where = f" ({problem['param']})" if problem.get("param") else ""
        raise TrivecError(f"{problem.get('code')}{where}: {problem.get('message')}")
    if not reply.is_success or not isinstance(fields.get(field), list):
        raise TrivecError(f"{reply.url} answers with status {reply.status_code}: is that a Trivec server?")
    found: list[dict[str, Any]] = fields[field]
    return found


if __name__ == "__main__":
    index_documents(
        [
            Document(id="tower", page_content="The Eiffel Tower opened in 1889.", metadata={"lang": "en"}),
            Document(id="dom", page_content="Der Kölner Dom wurde 1880 vollendet.", metadata={"lang": "de"}),
        ]
    )
    question = " ".join(sys.argv[1:]) or "When did the tower open?"
    for document in TrivecRetriever(top_k=3).invoke(question):
        print(f"{document.metadata['score']:.4f}  {document.id}  {document.page_content}")
