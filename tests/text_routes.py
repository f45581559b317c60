"""All routes that take texts, and how each API's clients are told that something is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from app.error_formats import FORMATS
from app.schemas.tei import TeiError
from tests.http_helpers import problem, v1_problem, v2_problem

DOCUMENTS = "/collections/default/documents"


@dataclass(frozen=True, slots=True)
class Route:
    """A route that takes texts: how they are sent, and how a cut is forbidden where it can be."""

    path: str
    body: Callable[[list[str]], Any]
    param: str
    """The field that holds the list."""
    uncut: Mapping[str, Any] | None = None
    wrong: tuple[tuple[Any, str | None], ...] = ()
    """Bodies that do not fit, and the field that the refusal names."""
    writes: bool = False

    @property
    def api(self) -> str:
        """`native`, `v1`, `v2` or `tei`."""
        prefix = self.path.split("/")[1]
        return prefix if prefix in FORMATS else "native"

    def send(self, client: Any, texts: list[str], **more: Any) -> Any:
        """A request with these texts."""
        return client.post(self.path, json=self.body(texts), **more)


ROUTES = [
    Route(
        "/embed",
        lambda texts: {"texts": texts},
        "texts",
        {"truncate": False},
        (({"texts": 5}, "texts"), ({"texts": ["a"], "x": 1}, "x"), ({"texts": "a", "kind": "poem"}, "kind")),
    ),
    Route(
        "/tokenize",
        lambda texts: {"texts": texts},
        "texts",
        None,
        (({"texts": None}, "texts"), ({"texts": "a", "x": 1}, "x"), ({"texts": "a", "kind": 1}, "kind")),
    ),
    Route(
        "/rerank",
        lambda texts: {"query": "a", "documents": texts},
        "documents",
        None,
        (
            ({"query": 1, "documents": ["a"]}, "query"),
            ({"query": "a", "documents": ["a"], "x": 1}, "x"),
            ({"query": "a", "documents": ["a"], "mode": "bm25"}, "mode"),
        ),
    ),
    Route(
        "/search",
        lambda texts: {"query": texts},
        "query",
        None,
        (
            ({"query": 5}, "query"),
            ({"query": "a", "x": 1}, "x"),
            ({"query": "a", "fusion": "sum"}, "fusion"),
            ({"query": "a", "filter": {"k": {"$near": 1}}}, "filter.k"),
        ),
    ),
    Route(
        DOCUMENTS,
        lambda texts: [{"text": one} for one in texts],
        "documents",
        None,
        (
            ({"documents": 5}, "documents"),
            ({"x": []}, "x"),
            ([{"text": 1}], "text"),
            ([{"text": "a", "x": 1}], "x"),
        ),
        writes=True,
    ),
    Route(
        "/v1/embeddings",
        lambda texts: {"input": texts},
        "input",
        {"truncate": False},
        (({"input": {}}, "input.text"), ({"input": "a", "encoding_format": "hex"}, "encoding_format")),
    ),
    Route(
        "/v1/embed",
        lambda texts: {"texts": texts},
        "texts",
        {"truncate": "NONE"},
        (({"texts": "a"}, "texts"), ({"texts": ["a"], "truncate": "MIDDLE"}, "truncate")),
    ),
    Route(
        "/v1/rerank",
        lambda texts: {"query": "a", "documents": texts},
        "documents",
        None,
        (
            ({"query": "a", "documents": "a"}, "documents"),
            ({"query": "a", "documents": ["a"], "top_n": 0}, "top_n"),
        ),
    ),
    Route(
        "/v2/embed",
        lambda texts: {"texts": texts},
        "texts",
        {"truncate": "NONE"},
        (({"texts": [1]}, "texts.0"), ({"texts": ["a"], "embedding_types": ["hex"]}, "embedding_types.0")),
    ),
    Route(
        "/v2/rerank",
        lambda texts: {"query": "a", "documents": texts},
        "documents",
        None,
        (({"query": None, "documents": ["a"]}, "query"), ({"query": "a"}, "documents")),
    ),
    *(
        Route(
            path,
            lambda texts: {"inputs": texts},
            "inputs",
            {"truncate": False},
            (
                ({"inputs": 5}, "inputs"),
                ({"inputs": "a", "truncation_direction": "Up"}, "truncation_direction"),
            ),
        )
        for path in ("/tei/embed", "/tei/embed_sparse", "/tei/embed_all", "/tei")
    ),
    Route(
        "/tei/rerank",
        lambda texts: {"query": "a", "texts": texts},
        "texts",
        {"truncate": False},
        (
            ({"query": "a", "texts": "a"}, "texts"),
            ({"query": "a", "texts": ["a"], "truncate": 1}, "truncate"),
        ),
    ),
    Route(
        "/tei/similarity",
        lambda texts: {"inputs": {"source_sentence": "a", "sentences": texts}},
        "inputs.sentences",
        {"parameters": {"truncate": False}},
        (({"inputs": []}, "inputs"), ({"inputs": {"source_sentence": "a"}}, "inputs.sentences")),
    ),
    Route("/tei/tokenize", lambda texts: {"inputs": texts}, "inputs", None, (({"inputs": [1]}, "inputs.0"),)),
    Route(
        "/tei/v1/embeddings",
        lambda texts: {"input": texts},
        "input",
        {"truncate": False},
        (({"input": None}, "input"), ({"input": "a", "dimensions": "24"}, "dimensions")),
    ),
]
EMBEDDING = [one for one in ROUTES if "tokenize" not in one.path]
"""Those that need a forward pass."""
TEI_TYPES = {
    "limit_exceeded": (413, "Validation"),
    "empty": (400, "Empty"),
    "queue_full": (429, "Overloaded"),
    "deadline_exceeded": (504, "Overloaded"),
    "not_ready": (503, "Unhealthy"),
    "draining": (503, "Unhealthy"),
    "inference_failed": (424, "Backend"),
}
"""What clients of text-embeddings-inference look for, where it is no plain `Validation`."""
V1_CODES = {
    "unauthorized": "invalid_api_key",
    "queue_full": "rate_limit_exceeded",
    "text_too_long": "context_length_exceeded",
}


def refused(route: Route, answer: Any, status: int, code: str, param: str | None = None) -> str:
    """Check a refusal, given what Trivec's own form says of it, in the form of the route's API."""
    spoken = "invalid_request" if code == "empty" else code
    bad = 400 if status == 422 or code == "text_too_long" else status
    if route.api == "native":
        # A bulk request has its documents' results beside the error.
        if "results" in answer.json():
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, spoken), answer.text
            assert answer.json()["error"]["param"] == param
            return str(answer.json()["error"]["message"])
        return problem(answer, status, spoken, param)
    if route.api == "v1":
        return v1_problem(answer, bad, V1_CODES.get(spoken, spoken), param)
    if route.api == "v2":
        return v2_problem(answer, bad, spoken, param)
    error = TeiError.model_validate_json(answer.content)
    assert (answer.status_code, error.error_type) == TEI_TYPES.get(code, (status, "Validation")), answer.text
    assert param is None or error.error.startswith(f"{param}: ")
    return error.error
