"""The `openai` library against a running server: results, requests as written down, exceptions."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.clients import payloads
from tests.clients.conftest import Server, wait_until

openai = pytest.importorskip("openai", reason="the openai library is not installed: make test-clients")
pytestmark = pytest.mark.clients

Start = Callable[..., AbstractContextManager[Server]]


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    server.sent()
    with openai.OpenAI(base_url=server.v1, api_key="unused", max_retries=0) as client:
        yield client


def test_one_text(server: Server, client: openai.OpenAI) -> None:
    found = client.embeddings.create(model="any", input="the cat sat")
    assert server.sent() == [{"path": "/v1/embeddings", "body": payloads.OPENAI_ONE}]
    assert found.data[0].embedding == pytest.approx(server.embed(["the cat sat"])[0])
    assert (found.object, found.model, found.usage.prompt_tokens) == ("list", "fake", 5)


def test_texts_with_every_parameter(server: Server, client: openai.OpenAI) -> None:
    found = client.embeddings.create(
        model="any", input=payloads.TEXTS, encoding_format="float", dimensions=24, user="u-1"
    )
    assert server.sent() == [{"path": "/v1/embeddings", "body": payloads.OPENAI_ALL}]
    assert [one.index for one in found.data] == [0, 1]
    assert [one.embedding for one in found.data] == [
        pytest.approx(one) for one in server.embed(payloads.TEXTS)
    ]


def test_token_ids(server: Server, client: openai.OpenAI) -> None:
    found = client.embeddings.create(model="any", input=[[0, 17, 18, 2], [0, 2]])
    assert server.sent() == [{"path": "/v1/embeddings", "body": payloads.OPENAI_IDS}]
    assert found.usage.total_tokens == 6
    assert found.data[1].embedding == pytest.approx(server.embed([" "])[0])


def test_asynchronously(server: Server) -> None:
    async def run() -> list[list[float]]:
        async with openai.AsyncOpenAI(base_url=server.v1, api_key="unused", max_retries=0) as client:
            calls = [client.embeddings.create(model="any", input=text) for text in payloads.TEXTS]
            return [one.data[0].embedding for one in await asyncio.gather(*calls)]

    assert asyncio.run(run()) == [pytest.approx(one) for one in server.embed(payloads.TEXTS)]


def test_models(client: openai.OpenAI) -> None:
    assert [one.id for one in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").owned_by == "trivec"
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("BAAI/bge-m3")
    assert missing.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": "a", "dimensions": 256}, "dimensions"),
        ({"input": [9906, 1917]}, "input"),
        ({"input": "a b c", "extra_body": {"truncate": False, "max_length": 3}}, "input.0"),
    ],
)
def test_bad_requests(client: openai.OpenAI, arguments: dict[str, object], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="any", **arguments)  # type: ignore[arg-type]
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"
    assert refused.value.request_id == refused.value.body["request_id"]  # type: ignore[index]


def test_unknown_route(server: Server) -> None:
    with (
        openai.OpenAI(base_url=f"{server.v1}/nowhere", api_key="unused", max_retries=0) as client,
        pytest.raises(openai.NotFoundError),
    ):
        client.embeddings.create(model="any", input="a")


def test_keys(start: Start) -> None:
    with start(api_keys=["good"]) as server:
        with openai.OpenAI(base_url=server.v1, api_key="good", max_retries=0) as client:
            assert client.embeddings.create(model="any", input="a").data
        with openai.OpenAI(base_url=server.v1, api_key="bad", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError) as refused:
                client.embeddings.create(model="any", input="a")
            assert refused.value.code == "invalid_api_key"
            with pytest.raises(openai.AuthenticationError):
                client.models.list()


def test_a_full_queue_and_a_deadline(start: Start) -> None:
    with (
        start(max_batch_tokens=8, max_queue_tokens=8) as server,
        openai.OpenAI(base_url=server.v1, api_key="unused", max_retries=0) as client,
    ):
        server.hold()
        answers: list[int] = []

        def ask(text: str) -> None:
            answers.append(len(client.embeddings.create(model="any", input=text).data))

        waiting = [threading.Thread(target=ask, args=(text,)) for text in ("first text", "a b c d")]
        passes = server.passes()
        waiting[0].start()
        wait_until(lambda: server.passes() == passes + 1)
        waiting[1].start()
        wait_until(lambda: server.queued_tokens() == 6)
        with pytest.raises(openai.RateLimitError) as refused:
            client.embeddings.create(model="any", input="a b")
        assert refused.value.code == "rate_limit_exceeded"
        assert int(refused.value.response.headers["Retry-After"]) >= 1
        server.release()
        for thread in waiting:
            thread.join(20)
        assert answers == [1, 1]
        server.hold()
        with pytest.raises(openai.InternalServerError) as late:
            client.embeddings.create(model="any", input="a", extra_headers={"X-Request-Timeout": "0.2"})
        assert (late.value.status_code, late.value.code) == (504, "deadline_exceeded")
        server.release()


def test_a_body_over_its_limit(start: Start) -> None:
    with (
        start(max_body_bytes=2048) as server,
        openai.OpenAI(base_url=server.v1, api_key="unused", max_retries=0) as client,
        pytest.raises(openai.APIStatusError) as refused,
    ):
        client.embeddings.create(model="any", input="x" * 3000)
    assert (refused.value.status_code, refused.value.code) == (413, "body_too_large")
