"""/tei: what is refused, with the status, the kind and the words that clients of that API look for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.errors import ServiceFault
from app.service import Service
from model.embedding import OUTPUTS
from tests.fakes import CARD, FakeModel, token_id
from tests.http_helpers import JSON, serving, serving_async
from tests.test_http_tei import refused


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("data"), max_texts=4) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tei/embed", {"inputs": []}),
        ("/tei/embed", {"inputs": ""}),
        ("/tei/embed", {"inputs": ["a", ""]}),
        ("/tei/embed", {"inputs": [[5], []]}),
        ("/tei", {"inputs": ""}),
        ("/tei/embed_sparse", {"inputs": [""]}),
        ("/tei/embed_all", {"inputs": []}),
        ("/tei/tokenize", {"inputs": []}),
        ("/tei/tokenize", {"inputs": ["a", ""]}),
        ("/tei/decode", {"ids": []}),
        ("/tei/decode", {"ids": [[]]}),
        ("/tei/rerank", {"query": "a", "texts": []}),
        ("/tei/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}),
        ("/tei/similarity", {"inputs": {"source_sentence": "", "sentences": ["a"]}}),
    ],
)
def test_emptiness(client: TestClient, path: str, body: Any) -> None:
    assert "cannot be empty" in refused(client.post(path, json=body), 400, "Empty")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tei/embed", {"inputs": ["a"] * 5}),
        ("/tei/embed", {"inputs": [[5]] * 5}),
        ("/tei/embed_sparse", {"inputs": ["a"] * 5}),
        ("/tei/embed_all", {"inputs": ["a"] * 5}),
        ("/tei/rerank", {"query": "a", "texts": ["a"] * 5}),
        ("/tei/similarity", {"inputs": {"source_sentence": "a", "sentences": ["a"] * 4}}),
        ("/tei/tokenize", {"inputs": ["a"] * 5}),
        ("/tei/decode", {"ids": [[5]] * 5}),
    ],
)
def test_too_many_texts(client: TestClient, path: str, body: Any) -> None:
    words = refused(client.post(path, json=body), 413, "Validation")
    assert "batch size 5 > maximum allowed batch size 4" in words  # clients read the number


def test_as_many_as_are_allowed(client: TestClient) -> None:
    assert len(client.post("/tei/embed", json={"inputs": ["a"] * 4}).json()) == 4
    assert len(client.post("/tei/rerank", json={"query": "a", "texts": ["a"] * 4}).json()) == 4
    assert len(client.post("/tei/embed", json={"inputs": [5] * 400}).json()) == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tei/embed", {}),
        ("/tei/embed", []),
        ("/tei/embed", {"inputs": 5}),
        ("/tei/embed", {"inputs": None}),
        ("/tei/embed", {"inputs": {"a": 1}}),
        ("/tei/embed", {"inputs": ["a", 5]}),
        ("/tei/embed", {"inputs": [5, "a"]}),
        ("/tei/embed", {"inputs": [5, True]}),
        ("/tei/embed", {"inputs": [True]}),
        ("/tei/embed", {"inputs": [5.5]}),
        ("/tei/embed", {"inputs": [-1]}),
        ("/tei/embed", {"inputs": [["a"]]}),
        ("/tei/embed", {"inputs": [[[5]]]}),
        ("/tei/embed", {"inputs": "a", "truncate": "yes"}),
        ("/tei/embed", {"inputs": "a", "normalize": 1}),
        ("/tei/embed", {"inputs": "a", "dimensions": "3"}),
        ("/tei/embed", {"inputs": "a", "truncation_direction": "up"}),
        ("/tei/embed", {"inputs": "a", "truncation_direction": 5}),
        ("/tei/embed", {"inputs": "a", "prompt_name": "query"}),
        ("/tei/tokenize", {"inputs": "a", "prompt_name": "query"}),
        (
            "/tei/similarity",
            {"inputs": {"source_sentence": "a", "sentences": ["a"]}, "parameters": {"prompt_name": "q"}},
        ),
        ("/tei/similarity", {"inputs": {"source_sentence": "a", "sentences": "a"}}),
        ("/tei/similarity", {"inputs": "a"}),
        ("/tei/rerank", {"query": "a"}),
        ("/tei/rerank", {"query": "a", "texts": "a"}),
        ("/tei/rerank", {"query": ["a"], "texts": ["a"]}),
        ("/tei/rerank", {"query": "a", "texts": [5]}),
        ("/tei/tokenize", {"inputs": [[5]]}),
        ("/tei/decode", {"ids": "a"}),
        ("/tei/decode", {"ids": [5, [5]]}),
        ("/tei/decode", {"ids": [[5], 5]}),
        ("/tei", {}),
        ("/tei", []),
        ("/tei", "a"),
        ("/tei", {"texts": ["a"]}),
        ("/tei", {"query": "a"}),
        ("/tei", {"inputs": {"sentences": ["a"]}}),
    ],
)
def test_wrong_types(client: TestClient, path: str, body: Any) -> None:
    refused(client.post(path, json=body), 422, "Validation")


@pytest.mark.parametrize(
    "body",
    [b"{", b"", b"\xff", b'{"inputs": NaN}', b'{"inputs": "\\ud800"}', b'{"inputs": [' + b"9" * 5000 + b"]}"],
)
@pytest.mark.parametrize("path", ["/tei/embed", "/tei/rerank", "/tei/tokenize", "/tei/decode", "/tei"])
def test_bodies_that_are_no_json(client: TestClient, path: str, body: bytes) -> None:
    refused(client.post(path, content=body, headers=JSON), 422, "Validation")


@pytest.mark.parametrize("text", ["a\x00b", "🎉" * 50, "\u202eabc", " \n", "e\u0301" * 40])
def test_strange_texts_are_served(client: TestClient, text: str) -> None:
    for path in ("/tei/embed", "/tei/embed_sparse", "/tei/embed_all", "/tei/tokenize"):
        assert client.post(path, json={"inputs": text}).status_code == 200
    assert client.post("/tei/rerank", json={"query": text, "texts": [text]}).status_code == 200


def test_an_output_that_the_model_lacks(tmp_path: Path) -> None:
    with serving(tmp_path, FakeModel(card=replace(CARD, outputs=("dense",), colbert_dim=0))) as client:
        assert client.post("/tei/embed", json={"inputs": "a"}).status_code == 200
        for path in ("/tei/embed_sparse", "/tei/embed_all"):
            refused(client.post(path, json={"inputs": "a"}), 424, "Backend")
        (rank,) = client.post("/tei/rerank", json={"query": "a", "texts": ["a"]}).json()
        assert rank["score"] == pytest.approx(1, abs=1e-5)


def test_only_the_output_that_is_sent_is_computed(tmp_path: Path) -> None:
    model = FakeModel()
    with serving(tmp_path, model) as client:
        for path, outputs in (
            ("/tei/embed", {"dense"}),
            ("/tei/embed_sparse", {"sparse"}),
            ("/tei/embed_all", {"colbert"}),
        ):
            client.post(path, json={"inputs": "a"})
            assert model.asked[-1] == outputs
        client.post("/tei/rerank", json={"query": "a", "texts": ["a"]})
        assert model.asked[-1] == set(OUTPUTS)


def test_an_answer_that_is_too_large_is_refused_before_the_model_works(tmp_path: Path) -> None:
    model = FakeModel()
    with serving(tmp_path, model, max_json_numbers=100) as client:
        passes = len(model.batches)
        for path, body in (
            ("/tei/embed", {"inputs": ["a"] * 5}),
            ("/tei/embed_all", {"inputs": "a b c d e f g"}),
            ("/tei/embed_sparse", {"inputs": "a " * 60}),
            ("/tei/tokenize", {"inputs": "a " * 60}),
        ):
            assert "100" in refused(client.post(path, json=body), 413, "Validation")
        assert len(model.batches) == passes
        assert client.post("/tei/embed", json={"inputs": ["a"] * 20, "dimensions": 5}).status_code == 200


def test_a_forward_pass_that_fails(tmp_path: Path) -> None:
    model = FakeModel(poison={token_id("poison")})
    with serving(tmp_path, model) as client:
        for path, body in (
            ("/tei/embed", {"inputs": "poison"}),
            ("/tei/rerank", {"query": "a", "texts": ["poison"]}),
            ("/tei", {"inputs": "poison"}),
        ):
            words = refused(client.post(path, json=body), 424, "Backend")
            assert "SECRET" not in words and "poison" not in words
            assert client.post("/tei/embed", json={"inputs": "fine"}).status_code == 200


def test_keys_hold_here_too(tmp_path: Path) -> None:
    with serving(tmp_path, api_keys="writer,reader:read") as client:
        for path in ("/tei", "/tei/embed", "/tei/rerank", "/tei/tokenize", "/tei/decode", "/tei/similarity"):
            answer = client.post(path, json={"inputs": "a"})
            refused(answer, 401, "Validation")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        refused(client.get("/tei/info"), 401, "Validation")
        reader = {"Authorization": "Bearer reader"}
        assert client.post("/tei/embed", json={"inputs": "a"}, headers=reader).status_code == 200
        assert client.get("/tei/info", headers=reader).status_code == 200


def test_what_middleware_refuses_has_this_form_too(tmp_path: Path) -> None:
    with serving(tmp_path, max_body_bytes=2000) as client:
        refused(client.post("/tei/embed", json={"inputs": "x" * 3000}), 413, "Validation")
        answer = client.post("/tei/embed", json={"inputs": "a"}, headers={"X-Request-Timeout": "soon"})
        refused(answer, 422, "Validation")
        refused(client.post("/tei/predict", json={"inputs": "a"}), 404, "Validation")
        refused(client.get("/tei/embed"), 405, "Validation")
        zipped = {**JSON, "Content-Encoding": "br"}
        refused(client.post("/tei/embed", content=b"x", headers=zipped), 415, "Validation")
        assert set(client.get("/teiera").json()["error"]) == {"code", "message", "param", "request_id"}


def test_queue_deadline_and_drain_have_this_form(tmp_path: Path) -> None:
    async def run() -> None:
        model = FakeModel()
        knobs = {"max_batch_tokens": 8, "max_queue_tokens": 8}
        async with serving_async(tmp_path, model, **knobs) as (client, app):
            while model.entered.acquire(blocking=False):
                pass
            model.gate.clear()
            running = asyncio.create_task(client.post("/tei/embed", json={"inputs": "a"}))
            await asyncio.to_thread(model.entered.acquire)
            waiting = asyncio.create_task(client.post("/tei/embed", json={"inputs": "a b c d"}))
            while app.state.service.batcher.queued_tokens == 0:
                await asyncio.sleep(0.001)
            full = await client.post("/tei/embed", json={"inputs": "e f g h"})
            refused(full, 429, "Overloaded")
            assert full.headers["Retry-After"]
            waiting.cancel()
            hurried = {"X-Request-Timeout": "0.01"}
            refused(await client.post("/tei", json={"inputs": "a"}, headers=hurried), 504, "Overloaded")
            app.state.service.begin_drain()
            refused(await client.post("/tei/embed", json={"inputs": "a"}), 503, "Unhealthy")
            refused(await client.get("/tei/health"), 503, "Unhealthy")
            model.gate.set()
            assert (await running).status_code == 200

    asyncio.run(run())


def test_an_unexpected_error_says_nothing(tmp_path: Path) -> None:
    class Careless(FakeModel):
        def token_strings(self, ids: Any) -> list[str]:
            raise KeyError("user text: my diagnosis")

    with serving(tmp_path, Careless()) as client:
        words = refused(client.post("/tei/tokenize", json={"inputs": "my diagnosis"}), 500, "Backend")
        assert "diagnosis" not in words


def test_a_model_that_cannot_be_loaded_is_unhealthy(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        service = client.app.state.service  # type: ignore[attr-defined]
        assert isinstance(service, Service)
        service._batcher = None
        service.give_up()
        refused(client.get("/tei/health"), 500, "Unhealthy")
        with pytest.raises(ServiceFault):
            service.require_ready()
