"""/v1/embeddings and /v1/models: what OpenAI's and Jina's clients send, and what they get."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from app.schemas.openai import EmbeddingsResponse, ModelList, ModelObject
from app.service import Service
from tests.clients import payloads
from tests.fakes import BOS, EOS, HIDDEN, VOCAB, FakeModel, token_id
from tests.http_helpers import JSON, dense_vectors, serving, serving_async, v1_problem

PATH = "/v1/embeddings"
TEXTS = payloads.TEXTS


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("data"), max_texts=5, max_body_bytes=8192) as client:
        yield client


def vectors(answer: Any) -> np.ndarray:
    """The vectors of an answer, numbers or base64. Shape: [N, D]."""
    assert answer.status_code == 200, answer.text
    body = EmbeddingsResponse.model_validate_json(answer.content)
    assert [one.index for one in body.data] == list(range(len(body.data)))
    rows = [one.embedding for one in body.data]
    return np.array(
        [np.frombuffer(base64.b64decode(row), "<f4") if isinstance(row, str) else row for row in rows],
        np.float32,
    )


@pytest.mark.parametrize("name", payloads.EMBEDDINGS)
def test_what_clients_send(client: TestClient, name: str) -> None:
    payload = payloads.EMBEDDINGS[name]
    answer = client.post(PATH, json=payload)
    found = vectors(answer)
    assert isinstance(answer.json()["data"][0]["embedding"], str) == (
        payload.get("encoding_format") == "base64"
    )
    if name == "openai-token-ids":
        (first,) = FakeModel().forward([np.array([BOS, 17, 18, EOS], np.int32)], ["dense"])
        np.testing.assert_array_equal(found, [first.dense, dense_vectors(client, [" "])[0]])
        assert answer.json()["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    else:
        texts = payload["input"] if isinstance(payload["input"], list) else [payload["input"]]
        np.testing.assert_array_equal(found, dense_vectors(client, texts))
        assert answer.json()["usage"]["total_tokens"] == 5 * len(texts)
    assert answer.json()["model"] == "fake" and answer.json()["object"] == "list"
    assert answer.headers["Server-Timing"] and "X-Truncated-Texts" not in answer.headers


@pytest.mark.parametrize(
    "given", [{"text": "the cat sat"}, [{"text": "the cat sat"}], ["the cat sat"], "the cat sat"]
)
def test_a_text_in_every_form(client: TestClient, given: Any) -> None:
    np.testing.assert_array_equal(
        vectors(client.post(PATH, json={"input": given})), dense_vectors(client, ["the cat sat"])
    )


def test_texts_and_objects_mixed(client: TestClient) -> None:
    found = vectors(client.post(PATH, json={"input": [TEXTS[0], {"text": TEXTS[1], "id": 7}]}))
    np.testing.assert_array_equal(found, dense_vectors(client, TEXTS))


def test_token_ids_are_the_text_they_are_of(client: TestClient) -> None:
    tokens = client.post("/tokenize", json={"texts": TEXTS}).json()["results"]
    wanted = dense_vectors(client, TEXTS)
    found = vectors(client.post(PATH, json={"input": [one["ids"] for one in tokens]}))
    np.testing.assert_array_equal(found, wanted)
    one = vectors(client.post(PATH, json={"input": tokens[0]["ids"]}))
    np.testing.assert_array_equal(one, wanted[:1])


def test_unknown_fields_and_nulls_are_ignored(client: TestClient) -> None:
    unknown = {"input": "a", "user": {"id": 1}, "extra": [1], "priority": 5, "encoding_format": None}
    nulls = dict.fromkeys(["model", "dimensions", "task", "truncate", "normalized", "embedding_type"])
    np.testing.assert_array_equal(
        vectors(client.post(PATH, json={**unknown, **nulls})), dense_vectors(client, ["a"])
    )


def test_every_format(client: TestClient) -> None:
    (exact,) = dense_vectors(client, ["the cat"])

    def of(**format_: Any) -> Any:
        answer = client.post(PATH, json={"input": "the cat", **format_})
        return answer.json()["data"][0]["embedding"]

    assert np.array_equal(np.frombuffer(base64.b64decode(of(embedding_type="base64")), "<f4"), exact)
    bits = np.packbits(exact > 0)
    assert of(embedding_type=["ubinary"]) == bits.tolist()
    assert of(encoding_type="binary") == (bits.astype(int) - 128).tolist()
    small = np.array(of(embedding_type="int8"))
    assert np.abs(small).max() == 127
    np.testing.assert_allclose(small / 127 * np.abs(exact).max(), exact, atol=np.abs(exact).max() / 250)
    assert of(embedding_type="uint8") == (small + 128).tolist()
    assert np.array_equal(np.array(of(embedding_type="float", encoding_format="float"), np.float32), exact)


def test_hints_choose_the_length_limit_only(tmp_path: Path) -> None:
    with serving(tmp_path, query_max_length=4, passage_max_length=6) as client:

        def read(**fields: Any) -> int:
            answer = client.post(PATH, json={"input": "a b c d e f g", **fields})
            assert answer.headers["X-Truncated-Texts"] == "1"
            return int(answer.json()["usage"]["prompt_tokens"])

        assert read() == read(task="retrieval.passage") == read(input_type="passage") == 6
        assert (
            read(task="retrieval.query") == read(input_type="query") == read(input_type="search_query") == 4
        )
        assert read(max_length=5) == 5
        cut = vectors(client.post(PATH, json={"input": "a b c d e f g"}))
        np.testing.assert_array_equal(cut, dense_vectors(client, ["a b c d"]))
        ids = [BOS, *(token_id(word) for word in "abcdefg"), EOS]
        np.testing.assert_array_equal(vectors(client.post(PATH, json={"input": ids})), cut)


def test_normalisation_can_be_turned_off(client: TestClient) -> None:
    (long,) = vectors(client.post(PATH, json={"input": "cat", "normalized": False}))
    (unit,) = vectors(client.post(PATH, json={"input": "cat", "normalized": True}))
    assert (np.linalg.norm(long), np.linalg.norm(unit)) == (
        pytest.approx(3, abs=1e-5),
        pytest.approx(1, abs=1e-5),
    )


def test_long_texts_are_cut_or_refused(client: TestClient) -> None:
    body = {"input": ["a", "a b c d"], "max_length": 4}
    for word in (True, "END", None):
        answer = client.post(PATH, json={**body, "truncate": word})
        assert answer.status_code == 200 and answer.headers["X-Truncated-Texts"] == "1"
    for word in (False, "NONE"):
        answer = client.post(PATH, json={**body, "truncate": word})
        assert "6 tokens" in v1_problem(answer, 400, "context_length_exceeded", "input.1")
    answer = client.post(PATH, json={**body, "truncate": "START"})
    assert "end" in v1_problem(answer, 400, "invalid_request", "input.1")
    assert client.post(PATH, json={"input": "a", "max_length": 4, "truncate": "START"}).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ([], None),
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input.1"),
        ({"input": ["a", 5]}, "input.1"),
        ({"input": ["a", [0, 2]]}, "input.1"),
        ({"input": [{"image": "x"}]}, "input.0.text"),
        ({"input": [[]]}, "input.0"),
        ({"input": [[0, 2], "a"]}, "input.1"),
        ({"input": [0, "2"]}, "input.1"),
        ({"input": [True, 2]}, "input.0"),
        ({"input": [0, 1.5, 2]}, "input.1"),
        ({"input": [0, -1, 2]}, "input.1"),
        ({"input": [0, VOCAB, 2]}, "input"),
        ({"input": [0, 10**400, 2]}, "input"),
        ({"input": [[0, 2], [0, VOCAB, 2]]}, "input.1"),
        ({"input": [17, 18]}, "input"),
        ({"input": [0, 17]}, "input"),
        ({"input": [17, 2]}, "input"),
        ({"input": [0]}, "input"),
        ({"input": "a", "model": 5}, "model"),
        ({"input": "a", "dimensions": HIDDEN - 1}, "dimensions"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": "24"}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "embedding_type": "hex"}, "embedding_type"),
        ({"input": "a", "embedding_type": ["float", "binary"]}, "embedding_type"),
        ({"input": "a", "embedding_type": "binary", "encoding_format": "float"}, "embedding_type"),
        ({"input": "a", "embedding_type": 1}, "embedding_type"),
        ({"input": "a", "truncate": "end"}, "truncate"),
        ({"input": "a", "truncate": 1}, "truncate"),
        ({"input": "a", "normalized": 1}, "normalized"),
        ({"input": "a", "max_length": 1}, "max_length"),
        ({"input": "a", "late_chunking": True}, "late_chunking"),
        ({"input": "a", "return_multivector": True}, "return_multivector"),
    ],
)
def test_what_cannot_be_served_is_named(client: TestClient, body: Any, param: str | None) -> None:
    v1_problem(client.post(PATH, json=body), 400, "invalid_request", param)


def test_ids_of_another_tokenizer_are_told_what_to_do(client: TestClient) -> None:
    message = v1_problem(client.post(PATH, json={"input": [[9906, 1917]]}), 400, "invalid_request", "input.0")
    assert "tiktoken" in message and "check_embedding_ctx_length=False" in message


@pytest.mark.parametrize("given", [["a"] * 6, [[0, 2]] * 6])
def test_too_many_texts(client: TestClient, given: Any) -> None:
    assert "5" in v1_problem(client.post(PATH, json={"input": given}), 400, "limit_exceeded", "input")


def test_more_tokens_than_the_model_takes(client: TestClient) -> None:
    answer = client.post(PATH, json={"input": "a", "max_length": 513})
    v1_problem(answer, 400, "limit_exceeded", "max_length")


def test_an_answer_of_too_many_numbers(tmp_path: Path) -> None:
    with serving(tmp_path, max_json_numbers=HIDDEN) as client:
        assert client.post(PATH, json={"input": ["a"]}).status_code == 200
        answer = client.post(PATH, json={"input": ["a", "b"]})
        assert "base64" in v1_problem(answer, 400, "limit_exceeded", "encoding_format")
        body = {"input": ["a", "b"], "encoding_format": "base64"}
        assert client.post(PATH, json=body).status_code == 200


@pytest.mark.parametrize("body", [b"{", b"\xff", b'{"input": NaN}', b'{"input": [' + b"9" * 5000 + b"]}"])
def test_malformed_json(client: TestClient, body: bytes) -> None:
    v1_problem(client.post(PATH, content=body, headers=JSON), 400, "malformed_json")


def test_half_a_surrogate_pair(client: TestClient) -> None:
    answer = client.post(PATH, content=rb'{"input": ["a", "\ud800"]}', headers=JSON)
    v1_problem(answer, 400, "invalid_request", "input.1")


@pytest.mark.parametrize(
    "text", ["\x00", " ", "\u202eabc", "👩‍👩‍👧‍👦", "\U0010ffff", "</s><pad>", "x" * 5000]
)
def test_strange_texts_are_served(client: TestClient, text: str) -> None:
    np.testing.assert_array_equal(
        vectors(client.post(PATH, json={"input": text})), dense_vectors(client, [text])
    )


def test_bodies_that_are_not_read(client: TestClient) -> None:
    v1_problem(client.post(PATH, content=b"{}"), 400, "invalid_request", "Content-Type")
    zipped = client.post(PATH, content=b"{}", headers={**JSON, "Content-Encoding": "br"})
    v1_problem(zipped, 415, "unsupported_encoding", "Content-Encoding")
    big = json.dumps({"input": "x" * 9000}).encode()
    v1_problem(client.post(PATH, content=big, headers=JSON), 413, "body_too_large")
    late = client.post(PATH, json={"input": "a"}, headers={"X-Request-Timeout": "soon"})
    v1_problem(late, 400, "invalid_request", "X-Request-Timeout")


def test_models(client: TestClient) -> None:
    listed = client.get("/v1/models")
    (one,) = ModelList.model_validate_json(listed.content).data
    assert one.id == "fake" and one.created > 1_700_000_000
    assert ModelObject.model_validate_json(client.get("/v1/models/fake").content) == one
    for unknown in ("BAAI/bge-m3", "BAAI%2Fbge-m3", "fake%0A", "Fake"):
        v1_problem(client.get(f"/v1/models/{unknown}"), 404, "model_not_found", "model")


def test_keys(tmp_path: Path) -> None:
    with serving(tmp_path, api_keys=("writer", "reader:read")) as client:
        for key in ("writer", "reader"):
            headers = {"Authorization": f"Bearer {key}"}
            assert client.post(PATH, json={"input": "a"}, headers=headers).status_code == 200
            assert client.get("/v1/models", headers=headers).status_code == 200
        for path in (PATH, "/v1/rerank"):
            answer = client.post(path, json={"broken": 1}, headers={"Authorization": "Bearer no"})
            v1_problem(answer, 401, "invalid_api_key")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        v1_problem(client.get("/v1/models"), 401, "invalid_api_key")


def test_a_full_queue_a_deadline_and_a_shutdown(tmp_path: Path) -> None:
    async def run() -> None:
        model = FakeModel()
        async with serving_async(tmp_path, model, max_batch_tokens=8, max_queue_tokens=8) as (client, app):
            service: Service = app.state.service
            model.entered.acquire()
            model.gate.clear()

            async def ask(text: str, **headers: str) -> httpx.Response:
                return await client.post(PATH, json={"input": text}, headers=headers)

            running = asyncio.create_task(ask("first"))
            await asyncio.to_thread(model.entered.acquire, timeout=10)
            waiting = asyncio.create_task(ask("a b c d"))
            while service.batcher.queued_tokens != 6:
                await asyncio.sleep(0.001)
            full = await ask("a b")
            v1_problem(full, 429, "rate_limit_exceeded")
            assert full.json()["error"]["type"] == "rate_limit_error"
            assert int(full.headers["Retry-After"]) >= 1
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            while service.batcher.queued_tokens:
                await asyncio.sleep(0.001)
            late = await ask("late", **{"X-Request-Timeout": "0.05"})
            v1_problem(late, 504, "deadline_exceeded")
            assert late.json()["error"]["type"] == "server_error"
            assert service.batcher.queued_tokens == 0
            model.gate.set()
            assert (await running).status_code == 200
            service.begin_drain()
            draining = await ask("a")
            v1_problem(draining, 503, "draining")
            assert "Retry-After" in draining.headers

    asyncio.run(run())


def test_a_forward_pass_that_fails(tmp_path: Path) -> None:
    with serving(tmp_path, FakeModel(poison={token_id("bad")})) as client:
        message = v1_problem(client.post(PATH, json={"input": ["ok", "bad"]}), 500, "inference_failed")
        assert "SECRET" not in message
        assert client.post(PATH, json={"input": "ok"}).status_code == 200


def test_only_the_dense_vector_is_computed(tmp_path: Path) -> None:
    model = FakeModel()
    with serving(tmp_path, model) as client:
        client.post(PATH, json={"input": "a"})
    assert model.asked[-1] == frozenset(["dense"])
