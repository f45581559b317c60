"""A service that is as well after a test as before it, and what its answers may be."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from starlette.testclient import TestClient

from tests.hostile.openapi import LEAKS
from tests.http_helpers import serving

MEMORY_BYTES = 500 << 20
"""That the process may have grown by, once all is over: far less than a leak of what was sent and made."""
DOCUMENTS = "/collections/default/documents"
NDJSON = {"Content-Type": "application/x-ndjson"}


@contextmanager
def weathered(folder: Path, model: Any = None, **knobs: Any) -> Iterator[TestClient]:
    """A service that is as well afterwards as it was before."""
    with serving(folder, model, **knobs) as client:
        check_well(client)
        gc.collect()
        before = psutil.Process().memory_info().rss
        yield client
        check_well(client)
        gc.collect()
        grown = psutil.Process().memory_info().rss - before
        assert grown < MEMORY_BYTES, f"{grown >> 20} MiB more"


def check_well(client: Any) -> None:
    """Ready, and a plain search finds what was stored."""
    assert client.get("/health/ready").status_code == 200
    client.put("/collections/plain")
    stored = client.post("/collections/plain/documents", json=[{"id": "cat", "text": "the cat sleeps"}])
    assert stored.status_code == 200
    (hit,) = client.post("/collections/plain/search", json={"query": "where is the cat"}).json()["hits"]
    assert (hit["id"], hit["text"]) == ("cat", "the cat sleeps")


def ok(answer: Any) -> Any:
    assert answer.status_code == 200, answer.text[:500]
    return answer.json()


def refused(answer: Any, *sent: str) -> str:
    """A refusal in one of the forms that tells nothing of the inside and does not repeat what was sent."""
    assert answer.status_code in (400, 404, 413, 422), answer.text[:500]
    body = answer.json()
    error = body.get("error")
    message = str(error["message"] if isinstance(error, dict) else body.get("message") or error)
    assert message and not LEAKS.search(answer.text)
    assert not any(one in message for one in sent if len(one) > 8)
    return message


def written(body: Any, number: int) -> bytes:
    """JSON with letters as they are, or all as escapes."""
    return json.dumps(body, ensure_ascii=number % 2 == 0).encode()
