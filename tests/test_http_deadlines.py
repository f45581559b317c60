"""A deadline that passes while documents are written: the answer says what is stored and what is not."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import httpx

from app.guard import Deadline
from app.ingest import SLICE_DOCUMENTS
from app.service import Service
from model.embedding import Embedding, IntArray, Output
from tests.fakes import FakeModel
from tests.http_helpers import problem, serving_async

DOCUMENTS = "/collections/default/documents"


class HangingModel(FakeModel):
    """Answers a few forward passes, then waits for the gate."""

    passes_left = 10**9

    def forward(
        self,
        batch: Sequence[IntArray],
        outputs: Collection[Output],
        *,
        normalize: bool = True,
        between: Callable[[], None] | None = None,
    ) -> list[Embedding]:
        self.passes_left -= 1
        if self.passes_left < 0:
            self.gate.clear()
        return super().forward(batch, outputs, normalize=normalize, between=between)


def line(number: int) -> bytes:
    return json.dumps({"id": str(number), "text": f"word{number}"}).encode() + b"\n"


async def upload(client: httpx.AsyncClient, body: AsyncIterator[bytes], timeout_s: float) -> Any:
    headers = {"Content-Type": "application/x-ndjson", "X-Request-Timeout": str(timeout_s)}
    return await client.post(DOCUMENTS, content=body, headers=headers)


async def count(client: httpx.AsyncClient) -> int:
    return int((await client.get("/collections/default")).json()["count"])


def test_a_long_upload_is_not_late_while_it_gets_on(tmp_path: Path) -> None:
    async def body() -> AsyncIterator[bytes]:
        for part in range(4):
            yield b"".join(line(part * SLICE_DOCUMENTS + place) for place in range(SLICE_DOCUMENTS))
            await asyncio.sleep(2)

    async def run() -> None:
        async with serving_async(tmp_path) as (client, _):
            answer = await upload(client, body(), 5)
            assert answer.status_code == 200, answer.text
            assert answer.json()["upserted"] == 4 * SLICE_DOCUMENTS == await count(client)

    asyncio.run(run())


def test_lines_that_trickle_in_are_stored(tmp_path: Path) -> None:
    async def body() -> AsyncIterator[bytes]:
        for number in range(10):
            yield line(number)
            await asyncio.sleep(0.8)

    async def run() -> None:
        async with serving_async(tmp_path) as (client, _):
            answer = await upload(client, body(), 5)
            assert answer.status_code == 200 and answer.json()["upserted"] == 10, answer.text

    asyncio.run(run())


def test_an_upload_that_stops_says_what_is_stored(tmp_path: Path) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"".join(line(place) for place in range(SLICE_DOCUMENTS + 3))
        await asyncio.sleep(60)

    async def nothing() -> AsyncIterator[bytes]:
        yield b'{"id": "x", '
        await asyncio.sleep(60)

    async def run() -> None:
        async with serving_async(tmp_path) as (client, _):
            answer = await upload(client, body(), 1)
            assert answer.status_code == 200, answer.text
            report = answer.json()
            assert report["upserted"] == SLICE_DOCUMENTS == await count(client)
            assert [one["index"] for one in report["results"]] == list(range(SLICE_DOCUMENTS + 4))
            late = [one["error"] for one in report["results"][SLICE_DOCUMENTS:]]
            assert {one["code"] for one in late} == {"deadline_exceeded"}
            assert "not read" in late[-1]["message"] and "dropped" not in answer.text
            alone = await upload(client, nothing(), 0.2)
            assert alone.status_code == 504 and alone.json()["error"]["code"] == "deadline_exceeded"
            assert len(alone.json()["results"]) == 1

    asyncio.run(run())


def test_a_list_that_is_late_says_what_is_stored(tmp_path: Path) -> None:
    documents = [{"id": str(number), "text": f"word{number}"} for number in range(600)]

    async def run() -> None:
        model = HangingModel()
        async with serving_async(tmp_path, model, max_batch_tokens=30) as (client, _):
            model.passes_left = 10
            answer = await client.post(DOCUMENTS, json=documents, headers={"X-Request-Timeout": "1"})
            model.passes_left = 10**9
            model.gate.set()
            assert answer.status_code == 200, answer.text
            report = answer.json()
            assert 0 < report["upserted"] < 200
            assert report["upserted"] == await count(client)
            assert report["upserted"] + report["failed"] == 600
            assert [one["index"] for one in report["results"]] == list(range(600))
            for one in report["results"]:
                found = await client.get(f"{DOCUMENTS}/{one['index']}")
                assert (found.status_code == 200) == (one.get("status") == "upserted")
                assert "status" in one or one["error"]["code"] == "deadline_exceeded"

    asyncio.run(run())


def test_a_list_of_which_nothing_was_stored_is_504(tmp_path: Path) -> None:
    async def run() -> None:
        model = HangingModel()
        async with serving_async(tmp_path, model) as (client, app):
            model.passes_left = 0
            body = [{"id": "1", "text": "a"}, {"id": "2", "text": "b"}]
            answer = await client.post(DOCUMENTS, json=body, headers={"X-Request-Timeout": "1"})
            assert answer.status_code == 504
            assert [one["id"] for one in answer.json()["results"]] == ["1", "2"]
            service: Service = app.state.service
            assert service.batcher.queued_tokens == 0
            model.gate.set()

    asyncio.run(run())


def test_a_write_that_is_late_is_not_called_dropped(tmp_path: Path) -> None:
    """The write is committed while its deadline passes: the answer waits for it and does not deny it."""

    async def run() -> None:
        async with serving_async(tmp_path) as (client, app):
            await client.post(DOCUMENTS, json=[{"id": "1", "text": "a"}])
            service: Service = app.state.service
            held, get = threading.Event(), service.database.get

            def slow_get(name: str) -> Any:
                held.wait(10)
                return get(name)

            service.database.get = slow_get  # type: ignore[method-assign]
            request = asyncio.create_task(
                client.delete(f"{DOCUMENTS}/1", headers={"X-Request-Timeout": "0.2"})
            )
            await asyncio.sleep(0.5)
            assert not request.done()
            held.set()
            message = problem(await request, 504, "deadline_exceeded")
            assert "dropped" not in message and "stays written" in message
            service.database.get = get  # type: ignore[method-assign]
            assert (await client.get(f"{DOCUMENTS}/1")).status_code == 404

    asyncio.run(run())


def test_a_read_that_is_late_was_dropped() -> None:
    assert "dropped" in Deadline(1).passed().message
