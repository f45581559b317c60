"""The service with a fake model, as a test client sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.main import create_app
from app.schemas.openai import OpenAIErrorBody
from app.schemas.rerankers import CohereErrorBody
from app.settings import Settings
from app.tracing import Tracing
from tests.fakes import FakeModel

JSON = {"Content-Type": "application/json"}


def _settings(folder: Path, knobs: dict[str, Any]) -> Settings:
    """No cache of queries unless a test wants one: it would hide what reaches the model."""
    return Settings(data_dir=folder, **{"query_cache_bytes": 0, **knobs})


@contextmanager
def serving(
    folder: Path, model: FakeModel | None = None, *, tracing: Tracing | None = None, **knobs: Any
) -> Iterator[TestClient]:
    """A started service; an exception that escapes it shows as a 500, as it would to a client."""
    app = create_app(_settings(folder, knobs), model=model or FakeModel(), tracing=tracing)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@asynccontextmanager
async def serving_async(
    folder: Path, model: FakeModel | None = None, *, tracing: Tracing | None = None, **knobs: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, FastAPI]]:
    """The same for tests with several requests under way at once."""
    app = create_app(_settings(folder, knobs), model=model or FakeModel(), tracing=tracing)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=30) as client,
    ):
        yield client, app


def problem(response: Any, status: int, code: str, param: str | None = None) -> str:
    """Check an error answer and return its message."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == code, error
    assert error["param"] == param, error
    assert error["request_id"] == response.headers["X-Request-ID"]
    assert set(error) == {"code", "message", "param", "request_id"}
    return str(error["message"])


def v1_problem(response: Any, status: int, code: str, param: str | None = None) -> str:
    """The same under /v1, where OpenAI's, Jina's and Cohere's clients look for it in three places."""
    assert response.status_code == status, response.text
    body = OpenAIErrorBody.model_validate_json(response.content)
    assert (body.error.code, body.error.param) == (code, param)
    assert body.error.request_id == response.headers["X-Request-ID"]
    assert body.error.message in body.detail and body.detail == body.message
    assert param is None or body.detail.startswith(f"{param}: ")
    return body.error.message


def v2_problem(response: Any, status: int, code: str, param: str | None = None) -> str:
    """The same under /v2, in Cohere's form."""
    assert response.status_code == status, response.text
    body = CohereErrorBody.model_validate_json(response.content)
    assert (body.code, body.param) == (code, param)
    assert body.request_id == response.headers["X-Request-ID"]
    assert param is None or body.message.startswith(f"{param}: ")
    return body.message


def dense_vectors(client: TestClient, texts: list[str]) -> np.ndarray:
    """Dense vectors from the native route. Shape: [N, D]."""
    found = client.post("/embed", json={"texts": texts, "outputs": ["dense"]}).json()["results"]
    return np.array([one["dense"] for one in found], np.float32)
