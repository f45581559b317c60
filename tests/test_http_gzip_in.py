"""Gzipped request bodies: what they hold is read, bombs are stopped, broken ones are named."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.http_helpers import JSON, problem, serving, serving_async
from tests.test_http_limits import post_scope

GZIP = {**JSON, "Content-Encoding": "gzip"}
NDJSON = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}
DOCUMENTS = "/collections/default/documents"
LIMIT = 100_000


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("data"), max_body_bytes=LIMIT) as client:
        yield client


def lines(count: int, words: int = 3) -> bytes:
    return b"".join(
        json.dumps({"id": str(n), "text": f"word{n} " + "cat " * words}).encode() + b"\n"
        for n in range(count)
    )


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip", "identity, gzip", " gzip "])
def test_a_gzipped_body_is_read_as_the_plain_one(client: TestClient, encoding: str) -> None:
    for path, body in [
        ("/embed", {"texts": ["the cat", "长城 🧱"], "outputs": ["dense"]}),
        ("/search", {"query": "the cat"}),
        (DOCUMENTS, [{"id": "a", "text": "the cat"}]),
        ("/embed", {"texts": 5}),
    ]:
        packed = gzip.compress(json.dumps(body).encode())
        found = client.post(path, content=packed, headers={**JSON, "Content-Encoding": encoding})
        plain = client.post(path, json=body)
        answers = [found.json(), plain.json()]
        for one in answers:
            one.get("error", {}).pop("request_id", None)
        assert found.status_code == plain.status_code and answers[0] == answers[1]


def test_levels_and_several_members_are_one_body(client: TestClient) -> None:
    body = json.dumps({"texts": "x y " * 5000, "outputs": ["dense"]}).encode()
    plain = client.post("/embed", content=body, headers=JSON).json()
    for level in (0, 1, 9):
        assert client.post("/embed", content=gzip.compress(body, level), headers=GZIP).json() == plain
    parts = [gzip.compress(body[place : place + 999]) for place in range(0, len(body), 999)]
    empty = gzip.compress(b"")
    for members in (b"".join([empty, *parts, empty]), b"".join(parts)):
        assert client.post("/embed", content=members, headers=GZIP).json() == plain
    # Said to be gzipped, but there is nothing: as HTTP libraries send a PUT without a body.
    assert client.put("/collections/nothing", headers={"Content-Encoding": "gzip"}).status_code == 201


def test_a_body_may_arrive_in_any_pieces(tmp_path: Path) -> None:
    async def run() -> None:
        body = json.dumps({"texts": "x y " * 50}).encode()
        packed = gzip.compress(body[:70]) + gzip.compress(body[70:])

        async def bytewise() -> AsyncIterator[bytes]:
            for one in packed:
                yield bytes([one])
                yield b""

        async with serving_async(tmp_path) as (client, _):
            found = await client.post("/tokenize", content=bytewise(), headers=GZIP)
            assert found.json()["results"][0]["count"] == 102

    asyncio.run(run())


def test_sizes_around_the_pieces_come_whole(tmp_path: Path, seed: int) -> None:
    """Output that ends where a piece ends; input that ends where what is fed ends."""
    generator = random.Random(seed)
    with serving(tmp_path) as client:
        for size in (65_536, 65_537, 131_072, 65_536 - 20, 300_000, generator.randrange(1, 400_000)):
            for text in ("a" * size, "".join(generator.choices("abcdefghij ", k=size))):
                body = json.dumps({"texts": text}).encode()
                found = client.post("/tokenize", content=gzip.compress(body), headers=GZIP)
                assert found.status_code == 200
                assert found.json()["results"][0]["count"] == len(text.split()) + 2


@pytest.mark.parametrize("path", ["/embed", DOCUMENTS])
def test_a_body_that_unpacks_beyond_the_limit_is_refused(client: TestClient, path: str) -> None:
    inside = b'{"texts": "' + b"a" * (LIMIT - 13) + b'"}'
    assert len(inside) == LIMIT
    assert client.post("/embed", content=gzip.compress(inside), headers=GZIP).status_code == 200
    for beyond in (inside + b" ", b"a" * 50_000_000):
        packed = gzip.compress(beyond)
        assert len(packed) < LIMIT
        message = problem(client.post(path, content=packed, headers=GZIP), 413, "body_too_large")
        assert str(LIMIT) in message and "unpacked" in message
    # What arrives is bounded as well.
    noise = random.Random(0).randbytes(LIMIT + 1)
    problem(client.post(path, content=noise, headers=GZIP), 413, "body_too_large")


def test_a_bomb_is_stopped_while_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted where zlib gives bytes out: of 1 GB little more than the limit is ever unpacked."""
    unpacked = 0
    genuine = zlib.decompressobj

    class Counting:
        def __init__(self, *arguments: Any) -> None:
            self._inner = genuine(*arguments)

        def decompress(self, data: bytes, most: int = 0) -> bytes:
            nonlocal unpacked
            piece = self._inner.decompress(data, most)
            unpacked += len(piece)
            return piece

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

    monkeypatch.setattr("app.inflate.zlib.decompressobj", Counting)
    packer = zlib.compressobj(9, wbits=31)
    zeros = bytes(10_000_000)
    bomb = b"".join(packer.compress(zeros) for _ in range(100))

    async def run() -> None:
        async def chunks() -> AsyncIterator[bytes]:
            for place in range(0, len(bomb), 4096):
                yield bomb[place : place + 4096]

        async with serving_async(tmp_path, max_body_bytes=LIMIT) as (client, _):
            problem(await client.post("/embed", content=chunks(), headers=GZIP), 413, "body_too_large")

    asyncio.run(run())
    assert LIMIT < unpacked < LIMIT + 100_000


WHOLE = gzip.compress(lines(5))
BROKEN = {
    "no gzip": b'{"texts": "a"}',
    "zlib, not gzip": zlib.compress(b'{"texts": "a"}'),
    "cut in the header": WHOLE[:5],
    "cut in the middle": WHOLE[: len(WHOLE) // 2],
    "cut before the checksum": WHOLE[:-8],
    "cut in the checksum": WHOLE[:-1],
    "a wrong checksum": WHOLE[:-8] + bytes(4) + WHOLE[-4:],
    "a wrong length": WHOLE[:-4] + bytes(4),
    "something after it": WHOLE + b"more",
    "a bit turned": WHOLE[:20] + bytes([WHOLE[20] ^ 0x55]) + WHOLE[21:],
}


@pytest.mark.parametrize("packed", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_body_is_named(client: TestClient, packed: bytes) -> None:
    for path in ("/embed", "/search", DOCUMENTS):
        problem(client.post(path, content=packed, headers=GZIP), 422, "malformed_gzip", "Content-Encoding")
    answer = client.post(DOCUMENTS, content=packed, headers=NDJSON)
    results = answer.json()["results"]
    assert results[-1]["error"]["code"] == "malformed_gzip"
    assert answer.status_code in (200, 422)


def test_ndjson_of_any_size_is_unpacked_line_by_line(tmp_path: Path) -> None:
    with serving(tmp_path, max_body_bytes=4096, max_batch_tokens=512) as client:
        body = lines(700)
        body += b'{"id": "long", "text": "' + b"x" * 5000 + b'"}\n' + b'{"id": "last", "text": "dog"}'
        assert len(body) > 8 * 4096
        packed = gzip.compress(body)
        report = client.post(DOCUMENTS, content=packed, headers=NDJSON).json()
        assert (report["upserted"], report["failed"]) == (701, 1)
        assert report["results"][700]["error"]["code"] == "malformed_json"
        assert client.get(f"{DOCUMENTS}/last").json()["text"] == "dog"


def test_what_came_before_a_break_in_a_stream_is_stored_and_reported(tmp_path: Path) -> None:
    """The rest is read but passed over, so that a client which still sends sees the answer."""

    async def run() -> None:
        sent = 0

        async def body() -> AsyncIterator[bytes]:
            nonlocal sent
            for part in (gzip.compress(lines(300)), b"damage", *[b"more"] * 50):
                sent += 1
                yield part

        async with serving_async(tmp_path) as (client, _):
            answer = await client.post(DOCUMENTS, content=body(), headers=NDJSON)
            report = answer.json()
            assert answer.status_code == 200 and sent == 52
            assert (report["upserted"], report["failed"]) == (300, 1)
            assert report["results"][300]["error"]["code"] == "malformed_gzip"
            assert (await client.get("/collections/default")).json()["count"] == 300

    asyncio.run(run())


def test_others_are_served_while_a_large_body_is_unpacked(tmp_path: Path) -> None:
    """Counted in turns of the event loop, of which there is one for each piece."""

    async def run() -> None:
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        async with serving_async(tmp_path) as (_, app):
            packed = gzip.compress(b'{"texts": "' + b"a " * 5_000_000 + b'"}')
            arrived = False
            turns_then = 0

            async def receive() -> dict[str, Any]:
                nonlocal arrived, turns_then
                if arrived:
                    await asyncio.Event().wait()
                arrived, turns_then = True, turns
                return {"type": "http.request", "body": packed, "more_body": False}

            statuses: list[int] = []

            async def send(message: Any) -> None:
                statuses.extend([message["status"]] if "status" in message else [])

            headers = [(b"content-type", b"text/plain"), (b"content-encoding", b"gzip")]
            counting = asyncio.create_task(others())
            await app(post_scope("/tokenize", headers), receive, send)
            counting.cancel()
            assert statuses == [422] and turns - turns_then > 100

    asyncio.run(run())


def test_a_client_that_leaves_amid_a_gzipped_body_leaves_nothing_behind(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving_async(tmp_path) as (_, app):
            messages: list[dict[str, Any]] = [
                {"type": "http.disconnect"},
                {"type": "http.request", "body": gzip.compress(b"{}")[:5], "more_body": True},
            ]

            async def receive() -> dict[str, Any]:
                return messages.pop() if messages else {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                raise AssertionError("nobody listens")

            headers = [(b"content-type", b"application/json"), (b"content-encoding", b"gzip")]
            await app(post_scope("/embed", headers), receive, send)

    asyncio.run(run())
