"""Requests that give up early: the threads that work for them are counted until they have ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from app.index.collection import Collection, Database
from app.service import INDEX_THREADS, LOOKING_THREADS
from app.tokenizing import LONG_CHARACTERS, PART_CHARACTERS, TokenizerThreads
from app.whole import abandonable
from model.embedding import Counting
from tests.fakes import FakeModel, FakeTokens
from tests.http_helpers import problem, serving_async

EARLY = {"X-Request-Timeout": "0.1"}


class Held:
    """Something that takes until it is released; counts who is at it."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun = 0
        self.now = 0
        self.most = 0
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.begun += 1
            self.now += 1
            self.most = max(self.most, self.now)
        self.gate.wait(20)
        with self._lock:
            self.now -= 1


class SlowTokenizer(FakeModel):
    """Texts with `hold` in them are held."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.held = Held()
        self.parts: list[int] = []

    def tokenize(
        self, texts: Sequence[str], max_length: int | None, *, count_terms: Counting | None = None
    ) -> list[FakeTokens]:
        self.parts.append(len(texts))
        if any("hold" in text for text in texts):
            self.held()
        return super().tokenize([text[:100] for text in texts], max_length, count_terms=count_terms)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("target", "name", "threads"),
    [(Database, "get", LOOKING_THREADS), (Collection, "search", INDEX_THREADS)],
    ids=["looking", "searching"],
)
def test_searches_that_were_given_up_are_still_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: type, name: str, threads: int
) -> None:
    held, real = Held(), getattr(target, name)

    def slow(*given: Any) -> Any:
        held()
        return real(*given)

    async def run() -> None:
        async with serving_async(tmp_path) as (client, _):
            stored = await client.post("/collections/default/documents", json=[{"text": "a"}])
            assert stored.status_code == 200
            monkeypatch.setattr(target, name, slow)
            ask = {"query": "cat"}
            answers = await asyncio.gather(
                *(client.post("/search", json=ask, headers=EARLY) for _ in range(3 * INDEX_THREADS))
            )
            for answer in answers:
                problem(answer, 504, "deadline_exceeded")
            assert held.most == held.begun == threads
            held.gate.set()
            await until(lambda: held.now == 0)
            assert (await client.post("/search", json=ask)).status_code == 200
            assert held.begun == threads + 1  # of those that waited for a place none has begun

    asyncio.run(run())


def test_a_tokenizer_that_hangs_takes_its_threads_only_and_shows(tmp_path: Path) -> None:
    async def run() -> None:
        model = SlowTokenizer()
        async with serving_async(tmp_path, model, request_timeout_s=0.2) as (client, _):
            assert (await client.get("/health/ready")).status_code == 200
            for answer in await asyncio.gather(
                *(client.post("/embed", json={"texts": "hold"}) for _ in range(9))
            ):
                problem(answer, 504, "deadline_exceeded")
            assert model.held.begun == 2  # the setting's default
            while (not_ready := await client.get("/health/ready")).status_code == 200:
                await asyncio.sleep(0.01)  # it began a little after its request
            problem(not_ready, 503, "not_ready")
            assert not_ready.headers["Retry-After"]
            assert (await client.get("/health/live")).status_code == 200
            model.held.gate.set()
            await until(lambda: model.held.now == 0)
            assert (await client.post("/embed", json={"texts": "cat"})).status_code == 200
            assert (await client.get("/health/ready")).status_code == 200

    asyncio.run(run())


def test_long_texts_leave_a_thread_to_short_ones(tmp_path: Path) -> None:
    async def run() -> None:
        model = SlowTokenizer()
        async with serving_async(tmp_path, model, tokenizer_threads=3) as (client, _):
            long = {"texts": "hold " * LONG_CHARACTERS}
            waiting = [asyncio.create_task(client.post("/embed", json=long)) for _ in range(5)]
            await until(lambda: model.held.now == 2)
            assert (await client.post("/embed", json={"texts": "cat"})).status_code == 200
            assert model.held.most == 2
            model.held.gate.set()
            assert {(await one).status_code for one in waiting} == {200}

    asyncio.run(run())


def test_tokenising_stops_where_nobody_waits() -> None:
    async def run() -> None:
        model, threads = SlowTokenizer(), TokenizerThreads(1)
        texts = ["cat", "hold " * (PART_CHARACTERS // 5), "dog", "fox", "bird " * PART_CHARACTERS]
        task = asyncio.create_task(threads.tokenize(model, texts, 16))
        await until(lambda: model.held.now)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert threads.longest_s > 0
        model.held.gate.set()
        await until(lambda: threads.longest_s < 0)
        assert model.parts == [1, 1]
        found = await threads.tokenize(model, texts, 16)
        assert [one.total for one in found] == [3, 22, 3, 3, 22] and model.parts[2:] == [1, 1, 2, 1]
        assert await threads.tokenize(model, [], 16) == []

    asyncio.run(run())


def test_a_place_is_given_back_whatever_happens() -> None:
    async def run() -> None:
        limiter = anyio.CapacityLimiter(1)

        def fail() -> None:
            raise ValueError("x")

        for _ in range(3):
            with pytest.raises(ValueError, match="x"):
                await abandonable(fail, limiter)
        held = Held()
        first = asyncio.create_task(abandonable(held, limiter))
        second = asyncio.create_task(abandonable(lambda: 5, limiter))
        await until(lambda: held.now)
        for task in (first, second):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert limiter.available_tokens == 0
        held.gate.set()
        assert await abandonable(lambda: 7, limiter) == 7
        assert limiter.available_tokens == 1

    asyncio.run(run())
