"""Errors in the form of the API whose path was called, wherever they arise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.error_formats import FORMATS, Problem, cohere, error_format, native, openai, tei
from app.errors import TABLE, ServiceFault, describe, error_response
from app.schemas.openai import OpenAIErrorBody
from app.schemas.rerankers import CohereErrorBody
from app.schemas.tei import TeiError
from tests.fakes import FakeModel
from tests.http_helpers import serving
from tests.test_http_limits import INSTANCES

PROBLEM = Problem(422, "invalid_request", "5 is too many", "top_n")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("data")) as client:
        yield client


def test_each_form() -> None:
    assert native(PROBLEM, "r").body == {
        "error": {"code": "invalid_request", "message": "5 is too many", "param": "top_n", "request_id": "r"}
    }
    assert native(PROBLEM, "r").status == 422
    assert openai(PROBLEM, "r").body == {
        "error": {
            "message": "5 is too many",
            "type": "invalid_request_error",
            "param": "top_n",
            "code": "invalid_request",
            "request_id": "r",
        },
        "detail": "top_n: 5 is too many",
        "message": "top_n: 5 is too many",
    }
    assert cohere(PROBLEM, "r").body == {
        "message": "top_n: 5 is too many",
        "code": "invalid_request",
        "param": "top_n",
        "request_id": "r",
    }
    assert openai(PROBLEM, "r").status == cohere(PROBLEM, "r").status == 400
    assert tei(PROBLEM, "r").body == {"error": "top_n: 5 is too many", "error_type": "Validation"}
    assert tei(PROBLEM, "r").status == 422


@pytest.mark.parametrize("kind", TABLE, ids=lambda kind: kind.__name__)
def test_every_error_in_every_form(kind: type[Exception]) -> None:
    error = kind("words", param="field") if issubclass(kind, ServiceFault) else INSTANCES[kind]
    problem = describe(error)
    unprocessable = problem.status == 422 or problem.code == "text_too_long"
    wanted = 400 if unprocessable else problem.status
    for form, model in ((openai, OpenAIErrorBody), (cohere, CohereErrorBody)):
        found = form(problem, "r")
        assert found.status == wanted
        model.model_validate(found.body, strict=True)
        assert "/secret" not in str(found.body)
    TeiError.model_validate(tei(problem, "r").body, strict=True)


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/v1/embeddings", openai),
        ("/v1", openai),
        ("/v1/", openai),
        ("/v2/rerank", cohere),
        ("/tei/embed", tei),
        ("/tei", tei),
        ("/teiera", native),
        ("/embed", native),
        ("/", native),
        ("", native),
        ("/v10/embeddings", native),
        ("/v1embeddings", native),
        ("/collections/v1", native),
    ],
)
def test_the_first_part_of_the_path_chooses(path: str, form: Any) -> None:
    assert error_format(path) is form


def test_a_prefix_of_a_proxy_does_not_count() -> None:
    scope = {"type": "http", "path": "/trivec/v2/rerank", "root_path": "/trivec"}
    assert b'"message":"top_n: ' in error_response(PROBLEM, scope).body
    assert b'"error"' in error_response(PROBLEM, {**scope, "root_path": ""}).body


@pytest.mark.parametrize("prefix", sorted(FORMATS))
def test_unknown_routes_and_methods(client: TestClient, prefix: str) -> None:
    for answer, status, code in (
        (client.get(f"/{prefix}/nothing"), 404, "not_found"),
        (client.get(f"/{prefix}/rerank"), 405, "method_not_allowed"),
    ):
        said = answer.json()
        problem = Problem(status, code, said.get("message") or said["error"])
        assert answer.status_code == status
        assert answer.json() == FORMATS[prefix](problem, answer.headers["X-Request-ID"]).body


def test_what_nobody_expected(tmp_path: Path) -> None:
    class Careless(FakeModel):
        def tokenize(self, texts: Any, max_length: int | None, *, count_terms: Any = None) -> Any:
            if "cat" in texts:
                raise KeyError("user text: my diagnosis")
            return super().tokenize(texts, max_length)

    with serving(tmp_path, Careless()) as client:
        one = client.post("/v1/embeddings", json={"input": "cat"})
        two = client.post("/v2/rerank", json={"query": "cat", "documents": ["a"]})
    assert one.status_code == two.status_code == 500
    assert one.json()["error"]["type"] == "server_error" and two.json()["code"] == "internal_error"
    assert "diagnosis" not in one.text + two.text
    assert two.json()["request_id"] == two.headers["X-Request-ID"]


def test_while_the_model_is_not_ready(tmp_path: Path) -> None:
    model = FakeModel(broken=True)
    with serving(tmp_path, model) as client:
        for path, body in (("/v1/embeddings", {"input": "a"}), ("/v2/embed", {"texts": ["a"]})):
            answer = client.post(path, json=body)
            assert answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0
            assert "message" in answer.json()


def test_what_the_guard_refuses(tmp_path: Path) -> None:
    """Before any route is looked up."""
    with serving(tmp_path, max_body_bytes=1024) as client:
        for prefix in sorted(FORMATS):
            large = client.post(f"/{prefix}/rerank", content=b"x" * 2000)
            assert large.status_code == 413
            assert "the body is over the limit of 1024 bytes" in large.json().values()
            soon = client.post(f"/{prefix}/nothing", headers={"X-Request-Timeout": "soon"})
            assert soon.status_code == (422 if prefix == "tei" else 400)
            assert any(str(one).startswith("X-Request-Timeout: ") for one in soon.json().values())
