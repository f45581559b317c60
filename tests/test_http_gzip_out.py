"""JSON answers gzipped where the client accepts it, and nothing else."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from app.deflate import MIN_BYTES, accepts_gzip
from app.service import Service
from app.wire import SAFETENSORS
from tests.http_helpers import serving, serving_async

GZIP = {"Accept-Encoding": "gzip"}
PLAIN = {"Accept-Encoding": "identity"}
LARGE = {"texts": ["the cat sat on the mat"] * 60}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("data")) as client:
        documents = [{"id": f"d{n}", "text": f"cat number {n}"} for n in range(30)]
        client.post("/collections/default/documents", json=documents)
        yield client


def raw(client: TestClient, method: str, path: str, headers: dict[str, str], **body: Any) -> Any:
    """The answer and its bytes as they came."""
    with client.stream(method, path, headers=headers, **body) as answer:
        return answer, b"".join(answer.iter_raw())


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/embed", {"json": LARGE}),
        ("POST", "/embed", {"json": {**LARGE, "encoding": "base64"}}),
        ("POST", "/search", {"json": {"query": "cat", "top_k": 30}}),
        ("POST", "/tokenize", {"json": LARGE}),
        ("GET", "/openapi.json", {}),
        ("POST", "/collections/default/documents", {"json": [{"text": ""}] * 30}),
    ],
)
def test_an_answer_is_the_same_packed_and_plain(
    client: TestClient, method: str, path: str, body: dict[str, Any]
) -> None:
    plain, plain_bytes = raw(client, method, path, {**PLAIN, "X-Request-ID": "one"}, **body)
    found, packed_bytes = raw(client, method, path, {**GZIP, "X-Request-ID": "one"}, **body)
    assert len(plain_bytes) > MIN_BYTES and "content-encoding" not in plain.headers
    assert found.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed_bytes) == plain_bytes and len(packed_bytes) < len(plain_bytes)
    for answer, size in ((plain, len(plain_bytes)), (found, len(packed_bytes))):
        assert int(answer.headers["content-length"]) == size
        assert answer.headers.get_list("vary") == ["Accept-Encoding"]
        assert "etag" not in answer.headers
    assert found.status_code == plain.status_code
    assert json.loads(plain_bytes)


def test_what_is_small_or_no_json_goes_out_as_it_is(client: TestClient) -> None:
    for method, path, body in [
        ("GET", "/health/live", {}),
        ("POST", "/embed", {"json": {"texts": 5}}),
        ("GET", "/docs", {}),
        ("GET", "/docs/swagger-ui.css", {}),
    ]:
        answer, _ = raw(client, method, path, GZIP, **body)
        assert "content-encoding" not in answer.headers, path
    tensors, content = raw(client, "POST", "/embed", {**GZIP, "Accept": SAFETENSORS}, json=LARGE)
    assert "content-encoding" not in tensors.headers and "vary" not in tensors.headers
    assert len(content) > MIN_BYTES


def test_head_says_what_get_would_send(client: TestClient) -> None:
    get, _ = raw(client, "GET", "/openapi.json", GZIP)
    head, nothing = raw(client, "HEAD", "/openapi.json", GZIP)
    assert nothing == b"" and head.status_code == 200
    for name in ("content-length", "content-encoding", "vary", "content-type"):
        assert head.headers[name] == get.headers[name]


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("gzip", True),
        ("GZIP, deflate, br", True),
        ("x-gzip", True),
        ("br;q=1.0, gzip;q=0.2", True),
        ("*", True),
        ("gzip;q=0.5, identity;q=0.5", True),
        ("", False),
        ("identity", False),
        ("br", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("gzip;q=0, *", False),
        ("*;q=0", False),
        ("identity, gzip;q=0.5", False),
        ("gzip;q=nonsense", False),
        ("gzip;q=nan", False),
        ("gzipped", False),
        (",;=,", False),
    ],
)
def test_what_a_client_accepts(client: TestClient, header: str, accepted: bool) -> None:
    assert accepts_gzip(header) is accepted
    answer, _ = raw(client, "GET", "/openapi.json", {"Accept-Encoding": header})
    assert ("content-encoding" in answer.headers) is accepted


def test_the_setting_bounds_it_and_0_turns_it_off(tmp_path: Path) -> None:
    with serving(tmp_path / "a", gzip_max_bytes=0) as client:
        answer, _ = raw(client, "GET", "/openapi.json", GZIP)
        assert "content-encoding" not in answer.headers and "vary" not in answer.headers
    with serving(tmp_path / "b", gzip_max_bytes=3000) as client:
        found = {}
        for texts in (25, 400):
            body = {"texts": ["cat"] * texts, "outputs": ["sparse"]}
            answer, content = raw(client, "POST", "/embed", GZIP, json=body)
            found[texts] = "content-encoding" in answer.headers
            assert (len(content) > 3000) is (texts == 400)
        assert found == {25: True, 400: False}


def test_large_answers_are_packed_in_a_thread(tmp_path: Path) -> None:
    """While both threads for large bodies are taken, a small answer comes packed and a large one waits."""

    async def run() -> None:
        async with serving_async(tmp_path) as (client, app):
            service: Service = app.state.service

            async def ask(texts: int) -> httpx.Response:
                # So few values that they are written at once, and only packing takes a thread.
                body = {"texts": ["cat " * 100] * texts, "outputs": ["colbert"], "encoding": "base64"}
                return await client.post("/embed", json=body, headers=GZIP)

            for _ in range(2):
                await service._on_the_wire.acquire_on_behalf_of(object())
            assert (await ask(1)).headers["content-encoding"] == "gzip"
            waiting = asyncio.create_task(ask(50))
            while not (waiting.done() or service._on_the_wire.statistics().tasks_waiting):
                await asyncio.sleep(0.001)
            assert not waiting.done()
            service._on_the_wire.total_tokens += 1
            answer = await waiting
            assert answer.headers["content-encoding"] == "gzip" and len(answer.json()["results"]) == 50

    asyncio.run(run())
