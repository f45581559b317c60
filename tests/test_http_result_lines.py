"""Results of an upsert as lines: while the rest is stored, at the pace of who reads them, whole or cut."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from app.ingest import SLICE_DOCUMENTS, Report
from tests.fakes import FakeModel, token_id
from tests.http_helpers import problem, serving, serving_async
from tests.server import FAKE, running_server
from tests.test_http_limits import post_scope

DOCUMENTS = "/collections/default/documents"
NDJSON = {"Content-Type": "application/x-ndjson"}
ASKING = {**NDJSON, "Accept": "application/x-ndjson"}
SCOPE_HEADERS = [(b"content-type", b"application/x-ndjson"), (b"accept", b"application/x-ndjson")]


def line(number: int) -> bytes:
    return json.dumps({"id": f"d{number}", "text": f"word{number} cat"}).encode() + b"\n"


def parsed(content: bytes) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Results and summary of a whole answer."""
    assert content.endswith(b"\n")
    *results, last = [json.loads(one) for one in content.splitlines()]
    assert set(last) == {"summary"} and all("index" in one for one in results)
    return results, last["summary"]


@pytest.mark.parametrize("accept", ["application/x-ndjson", "application/jsonl", "Application/NDJSON, */*"])
def test_lines_say_what_the_one_answer_says(tmp_path: Path, accept: str) -> None:
    entries = [line(number) for number in range(700)]
    entries[3] = b"{broken\n"
    entries[300] = b'{"id": "p", "text": "arsenic"}\n'
    entries[301] = '{"id": "ü", "text": ""}\n'.encode()
    answers = []
    for place, headers in enumerate((NDJSON, {**NDJSON, "Accept": accept})):
        with serving(tmp_path / str(place), FakeModel(poison={token_id("arsenic")})) as client:
            answers.append(client.post(DOCUMENTS, content=b"".join(entries), headers=headers))
            assert client.get("/collections/default").json()["count"] == 697
    whole, lines = answers
    assert lines.status_code == 200 and lines.headers["content-type"] == "application/x-ndjson"
    results, summary = parsed(lines.content)
    expected = whole.json()
    assert sorted(results, key=lambda one: one["index"]) == expected.pop("results")
    assert summary == expected and summary["failed"] == 3


def test_a_list_is_answered_by_lines_too(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        documents = [{"id": "a", "text": "cat"}, {"text": ""}]
        answer = client.post(DOCUMENTS, json=documents, headers={"Accept": "application/x-ndjson"})
        results, summary = parsed(answer.content)
        assert {one["index"]: "error" in one for one in results} == {0: False, 1: True}
        assert (summary["upserted"], summary["failed"]) == (1, 1)
        nothing = client.post(DOCUMENTS, json=[{"text": ""}], headers={"Accept": "application/x-ndjson"})
        results, summary = parsed(nothing.content)
        assert nothing.status_code == 200 and summary["upserted"] == 0 and results[0]["error"]
        assert parsed(client.post(DOCUMENTS, content=b"", headers=ASKING).content)[0] == []


def test_what_is_wrong_before_the_first_result_is_an_ordinary_error(tmp_path: Path) -> None:
    with serving(tmp_path, api_keys=("key", "reader:read")) as client:

        def post(path: str, key: str = "key", **rest: Any) -> Any:
            headers = {**ASKING, "Authorization": f"Bearer {key}"}
            return client.post(path, content=line(1), headers={**headers, **rest})

        problem(post("/collections/none/documents"), 404, "collection_not_found")
        problem(post(DOCUMENTS, key="reader"), 403, "read_only_key")
        problem(post(DOCUMENTS, key="no"), 401, "unauthorized")
        wrong = post(DOCUMENTS, **{"Content-Type": "text/plain"})
        problem(wrong, 422, "invalid_request", "Content-Type")


class Wire:
    """Both ends of a connection: what the app reads, and what it has sent."""

    def __init__(self, body: AsyncIterator[bytes]) -> None:
        self._body = body
        self._ended = False
        self.received = 0
        self.sent: list[dict[str, Any]] = []
        self.gate = asyncio.Event()
        """`send` of a body waits until it is set."""
        self.gate.set()
        self.news = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        async for chunk in self._body:
            self.received += 1
            return {"type": "http.request", "body": chunk, "more_body": True}
        if self._ended:
            await asyncio.Event().wait()  # the client stays
        self._ended = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.body":
            await self.gate.wait()
        self.sent.append(message)
        self.news.set()

    @property
    def content(self) -> bytes:
        return b"".join(one.get("body", b"") for one in self.sent)


def test_results_come_while_the_body_is_still_sent(tmp_path: Path) -> None:
    """The client sends the second part only once it has seen the results of the first."""

    async def run() -> None:
        async def body() -> AsyncIterator[bytes]:
            for number in range(SLICE_DOCUMENTS):
                yield line(number)
            while wire.content.count(b"\n") < SLICE_DOCUMENTS:
                wire.news.clear()
                await wire.news.wait()
            yield line(SLICE_DOCUMENTS)

        wire = Wire(body())
        async with serving_async(tmp_path) as (_, app):
            await app(post_scope(DOCUMENTS, SCOPE_HEADERS), wire.receive, wire.send)
        results, summary = parsed(wire.content)
        assert [one["index"] for one in results] == list(range(SLICE_DOCUMENTS + 1))
        assert summary["upserted"] == SLICE_DOCUMENTS + 1
        assert wire.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}

    asyncio.run(asyncio.wait_for(run(), 60))


def test_results_come_as_soon_as_their_documents_are_durable(tmp_path: Path) -> None:
    """Long documents of one slice are stored in parts: the second is held until the first was answered."""
    answered = threading.Event()

    class Model(FakeModel):
        def forward(self, batch: Any, *rest: Any, **more: Any) -> Any:
            if any(token_id("dog") in ids for ids in batch):
                assert answered.wait(30), "no result came"
            return super().forward(batch, *rest, **more)

    async def run() -> None:
        async def body() -> AsyncIterator[bytes]:
            for number, word in enumerate(["cat", "cat", "dog", "dog"]):
                yield json.dumps({"id": f"d{number}", "text": f"{word} " * 60}).encode() + b"\n"

        wire = Wire(body())
        async with serving_async(tmp_path, Model(), max_batch_tokens=64) as (client, app):
            uploading = asyncio.create_task(
                app(post_scope(DOCUMENTS, SCOPE_HEADERS), wire.receive, wire.send)
            )
            while wire.content.count(b"\n") < 2:
                wire.news.clear()
                await wire.news.wait()
            assert (await client.get("/collections/default")).json()["count"] == 2
            answered.set()
            await uploading
        assert parsed(wire.content)[1]["upserted"] == 4

    asyncio.run(asyncio.wait_for(run(), 60))


def test_nothing_of_what_was_answered_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[Report] = []

    def noted() -> Report:
        reports.append(Report())
        return reports[-1]

    monkeypatch.setattr("app.ingest.Report", noted)
    with serving(tmp_path) as client:
        body = b"".join(line(number) for number in range(3 * SLICE_DOCUMENTS + 1))
        client.post(DOCUMENTS, content=body, headers=ASKING)
        (report,) = reports
        assert report.upserted == 3 * SLICE_DOCUMENTS + 1
        assert not report.results and not report.settled


def test_a_client_that_does_not_read_is_not_read_from(tmp_path: Path) -> None:
    """Of an endless body no more than a slice beyond what was answered is taken; then the answer is cut."""

    async def run() -> None:
        async def endless() -> AsyncIterator[bytes]:
            number = 0
            while True:
                yield line(number)
                number += 1

        async with serving_async(tmp_path) as (client, app):
            wire = Wire(endless())
            wire.gate.clear()
            headers = [*SCOPE_HEADERS, (b"x-request-timeout", b"1")]
            await app(post_scope(DOCUMENTS, headers), wire.receive, wire.send)
            assert wire.received <= SLICE_DOCUMENTS + 1
            # What is stored is stored; what the client got is visibly no whole answer.
            assert (await client.get("/collections/default")).json()["count"] <= SLICE_DOCUMENTS
            assert [one["type"] for one in wire.sent] == ["http.response.start"]

    asyncio.run(asyncio.wait_for(run(), 60))


def test_results_that_waited_for_a_slow_reader_come_once(tmp_path: Path) -> None:
    """The deadline passes while the first results wait; once the client reads, none is lost or doubled."""

    async def run() -> None:
        async def body() -> AsyncIterator[bytes]:
            for number in range(SLICE_DOCUMENTS + 5):
                yield line(number)

        wire = Wire(body())
        wire.gate.clear()
        sends = 0
        genuine = wire.send

        async def send(message: Any) -> None:
            nonlocal sends
            sends += message["type"] == "http.response.body"
            if sends == 2:  # the first was given up when the deadline passed
                wire.gate.set()
            await genuine(message)

        async with serving_async(tmp_path) as (client, app):
            headers = [*SCOPE_HEADERS, (b"x-request-timeout", b"1")]
            await app(post_scope(DOCUMENTS, headers), wire.receive, send)
            results, summary = parsed(wire.content)
            stored = [one["id"] for one in results if one.get("status")]
            assert len(stored) == len(set(stored)) == summary["upserted"]
            assert [one["index"] for one in results] == sorted({one["index"] for one in results})
            assert (await client.get("/collections/default")).json()["count"] == len(stored)
            late = [one for one in results if "error" in one]
            assert late and {one["error"]["code"] for one in late} == {"deadline_exceeded"}
            assert summary["failed"] == len(late)

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_client_that_leaves_amid_it_keeps_what_is_stored(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving_async(tmp_path) as (client, app):
            number = 0

            async def receive() -> dict[str, Any]:
                nonlocal number
                number += 1
                if number > SLICE_DOCUMENTS + 10:
                    return {"type": "http.disconnect"}
                return {"type": "http.request", "body": line(number), "more_body": True}

            sent: list[Any] = []

            async def send(message: Any) -> None:
                sent.append(message)

            await app(post_scope(DOCUMENTS, SCOPE_HEADERS), receive, send)
            assert (await client.get("/collections/default")).json()["count"] == SLICE_DOCUMENTS
            assert b"summary" not in b"".join(one.get("body", b"") for one in sent)

    asyncio.run(asyncio.wait_for(run(), 60))


def test_an_upload_without_lines_is_read_no_faster_than_it_is_stored(tmp_path: Path) -> None:
    """While the model stands still, no more than the slice under way is read."""

    async def run() -> None:
        async def body() -> AsyncIterator[bytes]:
            for number in range(5 * SLICE_DOCUMENTS):
                yield line(number)

        model = FakeModel()
        async with serving_async(tmp_path, model) as (_, app):
            model.entered.acquire()
            model.gate.clear()
            wire = Wire(body())
            headers = [(b"content-type", b"application/x-ndjson")]
            upload = asyncio.create_task(app(post_scope(DOCUMENTS, headers), wire.receive, wire.send))
            await asyncio.to_thread(model.entered.acquire, timeout=20)
            for _ in range(100):
                await asyncio.sleep(0)
            assert wire.received == SLICE_DOCUMENTS
            model.gate.set()
            await upload
            assert json.loads(wire.content)["upserted"] == 5 * SLICE_DOCUMENTS

    asyncio.run(asyncio.wait_for(run(), 60))


def conversation(url: str, headers: dict[str, str], talk: Callable[[socket.socket, Any], None]) -> None:
    """A request whose body is sent and whose answer is read by hand."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
    connection.putrequest("POST", DOCUMENTS)
    for name, value in {**headers, "Transfer-Encoding": "chunked"}.items():
        connection.putheader(name, value)
    connection.endheaders()
    talk(connection.sock, connection)
    connection.close()


def chunk(content: bytes) -> bytes:
    return f"{len(content):x}\r\n".encode() + content + b"\r\n"


def test_over_a_real_connection_results_are_read_while_documents_are_sent(tmp_path: Path) -> None:
    def talk(sock: socket.socket, connection: Any) -> None:
        first = b"".join(line(number) for number in range(SLICE_DOCUMENTS))
        sock.sendall(chunk(first))
        answer = connection.response_class(sock, method="POST")
        answer.begin()
        assert answer.status == 200 and answer.headers["Content-Type"] == "application/x-ndjson"
        content = b"".join(answer.readline() for _ in range(SLICE_DOCUMENTS))
        sock.sendall(chunk(line(SLICE_DOCUMENTS)) + b"0\r\n\r\n")
        results, summary = parsed(content + answer.read())
        assert len(results) == summary["upserted"] == SLICE_DOCUMENTS + 1

    with running_server(tmp_path, FAKE) as (client, _):
        conversation(str(client.base_url), ASKING, talk)
