"""A LlamaIndex retriever over a Trivec server. Needs `pip install llama-index-core httpx`, nothing of Trivec.

With `make run` in another terminal:

    python docs/examples/llamaindex_retriever.py "When did the tower open?"
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal

import httpx
from llama_index.core.callbacks import CallbackManager
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle, TextNode

DOCUMENTS_A_REQUEST = 256
# For programs: a language model that reads the node's metadata has no use for them.
NOT_FOR_MODELS = ["id", "score", "scores"]


class TrivecError(Exception):
    """The server refused a request, or what answered is no Trivec server; the message is the server's."""


class TrivecRetriever(BaseRetriever):
    """Finds nodes by POST /search; each carries `id`, `score` and `scores` among its metadata.

    `filter` is on metadata, e.g. `{"lang": "en", "year": {"$gte": 1990}}`; `weights` are those of the hybrid
    mode, e.g. `{"dense": 1, "sparse": 0.3, "colbert": 1}`.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        collection: str = "default",
        api_key: str | None = None,
        top_k: int = 5,
        mode: Literal["hybrid", "dense", "sparse", "colbert"] = "hybrid",
        filter: dict[str, Any] | None = None,
        weights: dict[str, float] | None = None,
        timeout_s: float = 60.0,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        super().__init__(callback_manager=callback_manager)
        self._url = f"{url.rstrip('/')}/search"
        self._headers = _authorization(api_key)
        self._timeout_s = timeout_s
        asked = {
            "collection": collection,
            "top_k": top_k,
            "mode": mode,
            "filter": filter,
            "weights": weights,
        }
        self._asked = {name: value for name, value in asked.items() if value is not None}

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        with httpx.Client(timeout=self._timeout_s) as http:
            return _found(http.post(self._url, json=self._body(query_bundle), headers=self._headers))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        async with httpx.AsyncClient(timeout=self._timeout_s) as http:
            reply = await http.post(self._url, json=self._body(query_bundle), headers=self._headers)
        return _found(reply)

    def _body(self, query_bundle: QueryBundle) -> dict[str, Any]:
        return {"query": query_bundle.query_str, **self._asked}


def index_nodes(
    nodes: Sequence[BaseNode],
    *,
    url: str = "http://127.0.0.1:8000",
    collection: str = "default",
    api_key: str | None = None,
    timeout_s: float = 600.0,
) -> list[str]:
    """Store nodes (documents are nodes too) and return their ids; one of a known id is replaced.

    Raises TrivecError where a node cannot be stored; the others of its request, and those before, are.
    """
    ids: list[str] = []
    with httpx.Client(timeout=timeout_s, headers=_authorization(api_key)) as http:
        for start in range(0, len(nodes), DOCUMENTS_A_REQUEST):
            part = nodes[start : start + DOCUMENTS_A_REQUEST]
            body = [
                {"id": one.node_id, "text": one.get_content(MetadataMode.NONE), "metadata": one.metadata}
                for one in part
            ]
            reply = http.post(f"{url.rstrip('/')}/collections/{collection}/documents", json=body)
            for result in _answered(reply, "results"):
                if problem := result.get("error"):
                    raise TrivecError(f"node {start + result['index']}: {problem['message']}")
                ids.append(result["id"])
    return ids


def _authorization(api_key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def _found(reply: httpx.Response) -> list[NodeWithScore]:
    return [
        NodeWithScore(
            node=TextNode(
                id_=hit["id"],
                text=hit["text"],
                metadata={**hit["metadata"], "id": hit["id"], "score": hit["score"], "scores": hit["scores"]},
                excluded_llm_metadata_keys=NOT_FOR_MODELS,
                excluded_embed_metadata_keys=NOT_FOR_MODELS,
            ),
            score=hit["score"],
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
    index_nodes(
        [
            TextNode(id_="tower", text="The Eiffel Tower opened in 1889.", metadata={"lang": "en"}),
            TextNode(id_="dom", text="Der Kölner Dom wurde 1880 vollendet.", metadata={"lang": "de"}),
        ]
    )
    question = " ".join(sys.argv[1:]) or "When did the tower open?"
    for found in TrivecRetriever(top_k=3).retrieve(question):
        print(f"{found.score:.4f}  {found.node.node_id}  {found.node.get_content(MetadataMode.NONE)}")
