"""Large bodies both ways: nobody else waits for them, and an answer too large for JSON is refused before."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest

from app.service import Service
from app.whole import whole
from app.wire import LARGE_BODY_BYTES
from model.embedding import Embedding, IntArray, Output
from tests.fakes import CARD, COLBERT, HIDDEN, FakeModel
from tests.http_helpers import JSON, problem, serving, serving_async

WIDE = 1024
TENSORS = {"Accept": "application/vnd.safetensors"}


class WideModel(FakeModel):
    """Embeddings of the real width; all texts get the same numbers."""

    def forward(
        self,
        batch: Sequence[IntArray],
        outputs: Collection[Output],
        *,
        normalize: bool = True,
        between: Callable[[], None] | None = None,
    ) -> list[Embedding]:
        drawn = np.random.default_rng(0).normal(0, 0.03, (512, WIDE)).astype(np.float32)
        return [
            Embedding(tokens=int(one.size), dense=drawn[0], colbert=drawn[: one.size - 1]) for one in batch
        ]


def wide() -> WideModel:
    return WideModel(card=replace(CARD, outputs=("dense", "colbert"), hidden_size=WIDE, colbert_dim=WIDE))


async def answered_meanwhile(client: httpx.AsyncClient, path: str, body: Any, **headers: str) -> int:
    """How many /health/live requests were answered, one after the other, while a request was served."""
    content = json.dumps(body).encode()
    request = asyncio.create_task(client.post(path, content=content, headers={**JSON, **headers}))
    answered = 0
    while not request.done():
        assert (await client.get("/health/live")).status_code == 200
        answered += 1
        await asyncio.sleep(0.002)
    assert (await request).status_code == 200, (await request).text
    return answered


def test_a_large_answer_holds_nobody_up(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving_async(tmp_path, wide()) as (client, _):
            body = {"texts": ["word " * 500] * 12}  # 6 million numbers: seconds of work in one piece
            # Written in one piece on the event loop, it would let two or three through.
            assert await answered_meanwhile(client, "/embed", body) > 10

    asyncio.run(run())


def test_a_deadline_holds_while_a_large_answer_is_written(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving_async(tmp_path, wide(), max_json_numbers=10**9) as (client, _):
            late = await client.post(
                "/embed", json={"texts": ["word " * 500] * 60}, headers={"X-Request-Timeout": "0.7"}
            )
            problem(late, 504, "deadline_exceeded")

    asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"texts": "a" * LARGE_BODY_BYTES}),
        ("/collections/default/documents", [{"text": "a" * LARGE_BODY_BYTES}]),
        ("/tokenize", {"texts": "a " * 200}),
    ],
)
def test_large_bodies_wait_for_a_thread_and_small_ones_do_not(tmp_path: Path, path: str, body: Any) -> None:
    async def run() -> None:
        async with serving_async(tmp_path) as (client, app):
            service: Service = app.state.service
            taken = service._on_the_wire
            for place in range(int(taken.total_tokens)):
                await taken.acquire_on_behalf_of(place)
            large = len(json.dumps(body)) > LARGE_BODY_BYTES
            request = asyncio.create_task(client.post(path, json=body))
            done, _ = await asyncio.wait({request}, timeout=0.3 if large else 10)
            assert bool(done) is not large
            for place in range(int(taken.total_tokens)):
                taken.release_on_behalf_of(place)
            assert (await request).status_code == 200

    asyncio.run(run())


def test_a_large_body_is_checked_as_a_small_one(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        long = "a" * LARGE_BODY_BYTES
        problem(client.post("/embed", json={"texts": [long, ""]}), 422, "invalid_request", "texts.1")
        problem(client.post("/search", json={"query": [long, 5]}), 422, "invalid_request", "query.1")
        problem(client.post("/embed", content=f'["{long}'.encode(), headers=JSON), 422, "malformed_json")
        assert client.post("/search", json={"query": long}).status_code == 200


def test_an_answer_too_large_for_json_is_refused_before_the_model_works(tmp_path: Path) -> None:
    model = FakeModel()
    numbers = HIDDEN + 2 * 6 + 5 * COLBERT
    with serving(tmp_path, model, max_json_numbers=2 * numbers - 1) as client:
        body = {"texts": ["a b c d"] * 2}
        passes = len(model.batches)
        message = problem(client.post("/embed", json=body), 422, "limit_exceeded", "outputs")
        assert str(2 * numbers) in message and "base64" in message and "safetensors" in message
        chosen = {**body, "outputs": ["dense", "sparse", "colbert"]}
        problem(client.post("/embed", json=chosen), 422, "limit_exceeded", "encoding")
        assert len(model.batches) == passes
        for served in (
            {"texts": "a b c d"},
            {**body, "outputs": ["dense"]},
            {**body, "encoding": "base64"},
            {**body, "dtype": "binary"},
        ):
            assert client.post("/embed", json=served).status_code == 200
        assert client.post("/embed", json=body, headers=TENSORS).status_code == 200
        assert client.get("/info").json()["limits"]["max_json_numbers"] == 2 * numbers - 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_no_answer_holds_nan(tmp_path: Path, bad: float, dtype: str) -> None:
    class Broken(FakeModel):
        sound = True

        def _embed(self, ids: IntArray, outputs: frozenset[Output], length: float) -> Embedding:
            found = super()._embed(ids, outputs, length)
            return found if self.sound else replace(found, dense=np.full(HIDDEN, bad, np.float32))

    model = Broken()
    with serving(tmp_path, model) as client:
        model.sound = False
        answer = client.post("/embed", json={"texts": "a", "dtype": dtype})
        problem(answer, 500, "inference_failed")
        assert client.post("/rerank", json={"query": "a", "documents": ["b"]}).status_code == 500


def test_work_is_done_whole_or_not_at_all() -> None:
    async def run() -> None:
        limiter = anyio.CapacityLimiter(1)
        begun = asyncio.Event()
        loop, done = asyncio.get_running_loop(), []

        def slow() -> None:
            loop.call_soon_threadsafe(begun.set)
            time.sleep(0.2)
            done.append("first")

        first = asyncio.create_task(whole(slow, limiter))
        await begun.wait()
        second = asyncio.create_task(whole(lambda: done.append("second"), limiter))
        await asyncio.sleep(0.01)
        second.cancel()  # still queued: dropped, and nobody waits for the first
        with pytest.raises(asyncio.CancelledError):
            await second
        assert done == []
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert done == ["first"]
        assert await whole(lambda: 5, limiter) == 5

    asyncio.run(run())
