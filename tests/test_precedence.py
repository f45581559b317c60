"""Bulk work waits for a search that is under way, for a while."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from app import precedence
from app.lanes import Lane
from app.precedence import Ahead, Precedence
from app.routes import search
from tests.fakes import FakeModel
from tests.http_helpers import serving_async
from tests.test_batcher import DENSE, Notes, batching, ids, queued, standing

LONG_S = 600.0
A_WHILE_S = 0.2
"""Bulk work that does not wait is done long before."""
GIVEN_S = 60.0
"""Instead of waiting for ever where bulk work waits for nobody."""


def within(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, GIVEN_S))


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precedence, "HOLD_S", LONG_S)


def test_bulk_work_waits_until_the_search_has_ended() -> None:
    async def run() -> None:
        model, notes = FakeModel(parts=True), Notes()
        async with batching(model, observer=notes) as batcher:
            async with standing(model, batcher, [ids(10 + place) for place in range(3)]) as bulk:
                with batcher.going_ahead() as ahead:
                    query = asyncio.create_task(batcher.submit([ids(5)], DENSE, ahead=ahead))
                    await queued(batcher, 3)
                    model.gate.set()
                    await query
                    # Others who come meanwhile are served.
                    assert (await batcher.submit([ids(6)], DENSE)).embeddings()
                    await asyncio.sleep(A_WHILE_S)
                    assert not bulk.done()
            assert notes.held_s >= A_WHILE_S
        assert model.batches == [[3, 3, 3], [3], [3]]

    within(run())


def test_bulk_work_waits_for_a_search_without_the_model() -> None:
    async def run() -> None:
        model = FakeModel(parts=True)
        async with batching(model) as batcher, standing(model, batcher, [ids(10), ids(11)]) as bulk:
            with batcher.going_ahead() as ahead:
                batcher.goes_ahead(ahead)
                model.gate.set()
                await asyncio.sleep(A_WHILE_S)
                assert not bulk.done()

    within(run())


def test_a_search_has_its_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precedence, "HOLD_S", 0.01)

    async def run() -> None:
        model = FakeModel(parts=True)
        async with batching(model) as batcher:
            with batcher.going_ahead() as endless, batcher.going_ahead() as other:
                async with standing(model, batcher, [ids(10 + place) for place in range(20)]):
                    batcher.goes_ahead(endless)
                    batcher.goes_ahead(other)
            async with standing(model, batcher, [ids(10), ids(11)]):
                batcher.goes_ahead(endless)  # it has had its time

    within(run())


@pytest.mark.parametrize("lane", ["interactive", "bulk"])
def test_who_has_left_or_takes_the_bulk_lane_holds_nobody(lane: Lane) -> None:
    async def run() -> None:
        model = FakeModel(parts=True)
        async with batching(model) as batcher:
            async with standing(model, batcher, [ids(10), ids(11)]):
                with batcher.going_ahead() as ahead:
                    query = asyncio.create_task(batcher.submit([ids(5)], DENSE, lane=lane, ahead=ahead))
                    await queued(batcher, 3)
                    if lane == "bulk":
                        model.gate.set()
                        await query
                        assert (await batcher.submit([ids(12), ids(13)], DENSE, lane="bulk")).embeddings()
            await query

    within(run())


def test_one_that_has_ended_does_not_begin_again() -> None:
    wake = threading.Condition()
    known = Precedence(wake)
    with wake:
        one = Ahead()
        known.ended(one)
        known.begun(one)
        assert known.wait(lambda: False) < LONG_S


@pytest.mark.parametrize(
    "body", [{"query": "cat"}, {"query": "cat", "mode": "dense"}, {"query": ["cat", "dog"]}]
)
@pytest.mark.parametrize("asked_before", [False, True])
def test_searches_over_http(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any], asked_before: bool
) -> None:
    """A search of one query holds bulk work while it is in the index, also where the query was known."""
    free, entered = threading.Event(), threading.Event()
    free.set()
    real = search._hits

    def hits(*arguments: Any) -> Any:
        entered.set()
        assert free.wait(30)
        return real(*arguments)

    monkeypatch.setattr(search, "_hits", hits)
    model = FakeModel(parts=True)

    async def run() -> None:
        async with serving_async(tmp_path, model=model, query_cache_bytes=1 << 20) as (client, _):
            many = {"texts": ["word " * 10 + str(place) for place in range(200)]}
            assert (await client.post("/collections/default/documents", json=[{"text": "cat"}])).is_success
            if asked_before:
                assert (await client.post("/search", json=body)).status_code == 200
            entered.clear()
            model.gate.clear()
            while model.entered.acquire(blocking=False):
                pass
            bulk = asyncio.create_task(client.post("/embed", json=many))
            await asyncio.to_thread(model.entered.acquire, timeout=20)
            free.clear()
            asked = asyncio.create_task(client.post("/search", json=body))
            if asked_before:
                assert await asyncio.to_thread(entered.wait, 20)
            else:
                while 'trivec_queue_texts{lane="interactive"} 0.0' in (await client.get("/metrics")).text:
                    await asyncio.sleep(0.001)
            model.gate.set()
            assert await asyncio.to_thread(entered.wait, 20)
            await asyncio.sleep(A_WHILE_S)
            assert bulk.done() == isinstance(body["query"], list)
            free.set()
            assert (await asked).status_code == (await bulk).status_code == 200
            found = (await client.get("/metrics")).text
            held = float(found.split("\ntrivec_bulk_held_seconds_total ")[1].split()[0])
            assert (held > 0) == (not isinstance(body["query"], list))

    within(run())
