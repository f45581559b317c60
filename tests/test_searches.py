"""The bound on searches that need nothing of the model, and what does not wait behind them."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from app.errors import QueueFull
from app.routes import search
from app.searches import MAX_RETRY_AFTER_S, Searches
from app.service import INDEX_THREADS
from tests.fakes import HIDDEN
from tests.http_helpers import problem, serving, serving_async

DOCUMENTS = "/collections/default/documents"


def test_searches_over_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there may be are under way, in the index's threads and before them."""
    held, most = threading.Event(), INDEX_THREADS + 3
    real = search._hits

    def hits(*arguments: Any) -> Any:
        assert held.wait(30)
        return real(*arguments)

    monkeypatch.setattr(search, "_hits", hits)

    async def run() -> None:
        async with serving_async(tmp_path, max_searches=most) as (client, _):
            assert (await client.post(DOCUMENTS, json=[{"id": "1", "text": "cat"}])).status_code == 200
            body = {"query": {"embedding": {"dense": [1.0] + [0.0] * (HIDDEN - 1)}}, "mode": "dense"}
            running = [asyncio.create_task(client.post("/search", json=body)) for _ in range(most)]
            await asyncio.sleep(0)
            while True:
                refused = await client.post("/collections/default/search", json=body)
                if refused.status_code == 429:
                    break
            assert str(most) in problem(refused, 429, "queue_full")
            assert 1 <= int(refused.headers["Retry-After"]) <= MAX_RETRY_AFTER_S
            for path in (f"{DOCUMENTS}/1", "/collections/default", "/collections"):
                assert (await client.get(path)).status_code == 200, path
            held.set()
            assert {(await one).status_code for one in running} == {200}
            assert (await client.post("/search", json=body)).status_code == 200

    asyncio.run(run())


def test_a_search_that_fails_leaves_its_place(tmp_path: Path) -> None:
    with serving(tmp_path, max_searches=1) as client:
        assert client.get("/info").json()["limits"]["max_searches"] == 1
        for _ in range(3):
            nowhere = client.post("/search", json={"query": "a", "collection": "nowhere"})
            problem(nowhere, 404, "collection_not_found")
            assert client.post("/search", json={"query": "a", "top_k": 10**6}).status_code == 422
        assert client.post("/search", json={"query": "a"}).status_code == 200


def test_when_to_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that are under way take turns on the threads."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    searches = Searches(most=10, threads=2)

    def work() -> None:
        now[0] += 1.5

    def refused() -> int | None:
        with pytest.raises(QueueFull) as caught, searches.admitted():
            pass
        return caught.value.retry_after_s

    places = [searches.admitted() for _ in range(10)]
    for place in places:
        place.__enter__()
    assert refused() == 1  # nothing is known yet
    searches.timed(work)()
    assert refused() == 8
    for _ in range(100):
        searches.timed(lambda: now.__setitem__(0, now[0] + 60))()
    assert refused() == MAX_RETRY_AFTER_S
    places[0].__exit__(None, None, None)
    with searches.admitted():
        assert refused()
