"""Connections that do not behave: too many, too slow, cut off in the middle, or no HTTP at all."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.connections import Connections, Patience
from tests.fakes import FakeModel
from tests.hostile.server import ROOT
from tests.hostile.sockets import Raw, Served, request, served

QUICK = Patience(head_s=0.5, body_s=0.3, stalled_s=0.5, linger_s=0.5)
BODY = json.dumps({"texts": "cat"}).encode()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 6
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def works(server: Served) -> None:
    """The next request works, and what misbehaved leaves nothing behind."""
    with server.client() as client:
        assert client.post("/embed", json={"texts": "cat"}).status_code == 200
        assert client.get("/health/ready").status_code == 200
    until(lambda: server.open == server.tasks == 0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("data"), patience=QUICK, request_timeout_s=3) as server:
        yield server


NO_HTTP = {
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "bytes": bytes(range(256)) + b"\r\n\r\n",
    "no request": b"\r\n" * 50 + b"x\r\n\r\n",
    "HTTP/0.9": b"GET /info\r\n\r\n",
    "no host": b"GET /info HTTP/1.1\r\n\r\n",
    "two lengths": request(extra="Content-Length: 5\r\n"),
    "a negative length": request(length=-5),
    "a length of a thousand digits": request(length=10**1000),
    "a length with a sign": b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\nabcde",
    "a length that is a list": b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 5,6\r\n\r\nabcde",
    "an encoding of the transfer": request(extra="Transfer-Encoding: gzip\r\n"),
    "NUL in a header": request(extra="X: a\0b\r\n"),
    "CR in a header": request(extra="X: a\rY: b\r\n"),
    "a space in a header's name": request(extra="X : b\r\n"),
    "bytes in a path": b"GET /collections/\xc3\xbc HTTP/1.1\r\nHost: x\r\n\r\n",
    "a head without end": b"GET /info HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 40_000,
    "a header without end": b"GET /info HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 300_000,
    "a target without end": b"GET /" + b"a" * 300_000,
}


@pytest.mark.parametrize("name", NO_HTTP)
def test_what_is_no_http_is_answered_400(server: Served, name: str) -> None:
    raw = server.raw()
    raw.send(NO_HTTP[name])
    assert raw.error() == (400, "malformed_http")
    assert raw.closed()
    works(server)


@pytest.mark.parametrize(
    "target", ["http://x/embed", "HTTPS://user@x:1/embed", "http://[::1]:80/embed?a=http://y/z"]
)
def test_a_target_in_absolute_form(server: Served, target: str) -> None:
    """As a client of a proxy sends it."""
    raw = server.raw().send(request(path=target))
    assert raw.answer()[0] == 200
    for other, status in ((b"http://x", 404), (b"http://x?y", 404), (b"http:///embed", 404)):
        raw.send(b"GET " + other + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert raw.error() == (status, "not_found"), other
    raw.send(b"GET http://x/collections/http://y HTTP/1.1\r\nHost: x\r\n\r\n")
    assert raw.answer()[0] in (404, 422)
    raw.close()


CHUNKED = (
    b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
)
NO_CHUNKS = [
    b"zz\r\nabc",
    b"-1\r\nabc",
    b"5;\r\nab\r\ncdeXX",
    b"\r\n\r\n",
    b"5\r\nabcdeXX",
    b"0x5\r\nabcde\r\n0\r\n\r\n",
]


@pytest.mark.parametrize("chunks", NO_CHUNKS)
def test_chunks_that_are_none(server: Served, chunks: bytes) -> None:
    raw = server.raw()
    raw.send(CHUNKED + chunks)
    assert raw.error() == (400, "malformed_http")
    assert raw.closed()
    works(server)


def test_chunks_that_are_some(server: Served) -> None:
    raw, (first, rest) = server.raw(), (BODY[:5], BODY[5:])
    for piece in (CHUNKED, b"5\r\n" + first + b"\r\n", b"%x;a=b\r\n" % len(rest), rest, b"\r\n0\r\n\r\n"):
        raw.send(piece)
    assert raw.answer()[0] == 200
    raw.close()


def test_a_length_and_chunks_are_refused(server: Served) -> None:
    """A proxy that believes the length and a server that believes the chunks see different requests."""
    raw = server.raw()
    inner = request(path="/nowhere")
    raw.send(CHUNKED.replace(b"Host: x", b"Host: x\r\nContent-Length: 4") + b"0\r\n\r\n" + inner)
    assert raw.error() == (400, "malformed_http")
    assert raw.closed()
    works(server)


def test_a_body_shorter_than_announced_is_late(server: Served) -> None:
    raw = server.raw().send(request(length=len(BODY) + 10, extra="X-Request-Timeout: 0.3\r\n"))
    assert raw.error() == (504, "deadline_exceeded")
    raw.close()
    works(server)


def test_a_body_longer_than_announced_is_another_request(server: Served) -> None:
    raw = server.raw().send(request(BODY + b"GARBAGE\r\n\r\n", length=len(BODY)))
    assert raw.answer()[0] == 200
    assert raw.error() == (400, "malformed_http")
    assert raw.closed()
    works(server)


def test_pipelined_requests_are_answered_in_order(server: Served) -> None:
    texts = [f"cat{number} " * number for number in range(1, 9)]
    raw = server.raw().send(b"".join(request({"texts": text}) for text in texts))
    counts = [json.loads(raw.answer()[2])["usage"]["tokens"] for _ in texts]
    assert counts == [number + 2 for number in range(1, 9)]
    raw.close()
    works(server)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("sent", ["a head's half", "a body's half", "all"])
def test_a_client_that_leaves(server: Served, sent: str, reset: bool) -> None:
    server.model.gate.clear()
    raw = server.raw()
    whole = request()
    raw.send({"a head's half": whole[:30], "a body's half": whole[:-3], "all": whole}[sent])
    if sent != "a head's half":
        until(lambda: server.tasks == 1)
    if reset:
        raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()
    until(lambda: server.tasks == 0 and server.open == 0)
    server.model.gate.set()
    works(server)


def test_a_client_that_sends_no_more_has_left(server: Served) -> None:
    """What TCP calls half-closed: nobody can tell it from a client that is gone."""
    server.model.gate.clear()
    raw = server.raw().send(request())
    until(lambda: server.tasks == 1)
    raw.socket.shutdown(socket.SHUT_WR)
    assert raw.closed()
    until(lambda: server.tasks == 0)
    server.model.gate.set()
    works(server)


@pytest.mark.parametrize("begun", [b"", b"G", b"POST /embed HTTP/1.1\r\nHost: x\r\n"])
def test_a_head_that_does_not_come(server: Served, begun: bytes) -> None:
    raw = server.raw().send(begun)
    assert raw.closed()
    works(server)


def test_a_head_that_trickles(server: Served) -> None:
    raw = server.raw().send(request())
    assert raw.answer()[0] == 200  # a connection that behaved before, too
    with pytest.raises(ConnectionError):
        for byte in b"GET /info HTTP/1.1\r\nHost: x\r\n" + b"X: a\r\n" * 1000:
            raw.send(bytes([byte]))
            time.sleep(0.02)
    works(server)


def test_the_rest_of_a_refused_body_is_read_for_a_time(server: Served) -> None:
    raw = server.raw().send(request(path="/nowhere", length=10**9))
    assert raw.error() == (404, "not_found")
    with pytest.raises(ConnectionError):
        while True:
            raw.send(bytes(1000))
            time.sleep(0.01)
    works(server)


def test_who_still_sends_can_read_why_nobody_listens(server: Served) -> None:
    raw = server.raw().send(CHUNKED.replace(b"Host: x", b"Host: x\r\nContent-Length: 4"))
    for _ in range(10):
        raw.send(b"5\r\nabcde\r\n")  # were the connection closed, it would be reset by now
        time.sleep(0.01)
    assert raw.error() == (400, "malformed_http")
    raw.close()
    works(server)


@pytest.mark.parametrize("extra", ["", "Connection: keep-alive\r\n"])
def test_http_1_0_is_answered_and_closed(server: Served, extra: str) -> None:
    raw = server.raw().send(request(extra=extra).replace(b"HTTP/1.1", b"HTTP/1.0"))
    status, headers, body = raw.answer()
    assert status == 200 and headers["connection"] == "close" and json.loads(body)["results"]
    assert raw.closed()
    works(server)


def test_a_client_that_asks_before_it_sends(server: Served) -> None:
    raw = server.raw().send(request(extra="Expect: 100-continue\r\n")[: -len(BODY)])
    assert raw.answer()[0] == 100
    assert raw.send(BODY).answer()[0] == 200
    raw.send(request(path="/nowhere", extra="Expect: 100-continue\r\n")[: -len(BODY)])
    assert raw.error() == (404, "not_found")
    raw.close()
    works(server)


def test_a_refused_body_that_ends_keeps_its_connection(server: Served) -> None:
    raw = server.raw().send(request(path="/nowhere", length=3000)[:-5] + bytes(1000))
    assert raw.error() == (404, "not_found")
    raw.send(bytes(3000 - 1000 - len(BODY) + 5))
    assert raw.send(request()).answer()[0] == 200
    raw.close()


class Wordy(FakeModel):
    """Its answers are larger than any buffer of the system."""

    def token_strings(self, ids: object) -> list[str]:
        return ["word" * 2_000_000]


def test_a_client_that_never_reads_is_dropped(tmp_path: Path) -> None:
    with served(tmp_path, Wordy(), patience=QUICK) as server:
        for _ in range(3):
            raw = server.raw()
            raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.send(request(path="/tokenize"))
            until(lambda: server.tasks == 1)
            until(lambda: server.tasks == 0 and server.open == 0)
            assert len(raw.read()) < 8_000_000
        works(server)


def test_a_client_that_reads_slowly_gets_its_answer(tmp_path: Path) -> None:
    with served(tmp_path, Wordy(), patience=QUICK) as server:
        raw = server.raw().send(request(path="/tokenize", extra="Connection: close\r\n"))
        time.sleep(0.2)
        found = b""
        while part := raw.socket.recv(1 << 18):
            found += part
            time.sleep(0.05)
        assert found.count(b"word") == 2_000_000
        works(server)


def test_an_answer_that_fits_the_buffers_is_not_kept_for_ever(tmp_path: Path) -> None:
    """All of it is written, none of it is read: closing alone would wait for the client."""
    with served(tmp_path, patience=QUICK, keep_alive_s=1) as server:
        raw = Raw.__new__(Raw)
        raw.socket = socket.socket()
        raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        raw.socket.connect(("127.0.0.1", server.port))
        raw.send(request({"texts": "cat " * 400}) * 40)
        until(lambda: server.open == 1)
        until(lambda: server.open == 0)
        raw.close()
        works(server)


def test_idle_connections_make_room(tmp_path: Path) -> None:
    with served(tmp_path, most=20) as server:
        idle = [server.raw() for _ in range(100)]
        used = [server.raw().send(request()) for _ in range(10)]
        assert [one.answer()[0] for one in used] == [200] * 10
        assert server.open <= 20
        until(lambda: idle[0].closed())
        works_meanwhile = server.raw().send(request())
        assert works_meanwhile.answer()[0] == 200
        # Of the idle ones the longest idle went.
        assert used[-1].send(request()).answer()[0] == 200
        for one in (*idle, *used, works_meanwhile):
            one.close()
        works(server)


@dataclass(eq=False)
class Stub:
    """What `Connections` asks of a connection."""

    asked: bool = False
    unsent: int = 0
    sends_slowly: bool = False
    body_is_coming: bool = False
    dropped: str = ""

    def drop(self, reason: str) -> None:
        self.dropped = reason


def test_who_makes_room() -> None:
    """The longest idle one; not who has just asked, and who has not read all only where no other is left."""

    def full(*idle: Stub, sending: tuple[Stub, ...] = ()) -> Connections:
        crowd: Any = Connections(most=len(idle) + len(sending))
        for one in (*idle, *sending):
            assert crowd.entered(one)
            crowd.idle(one)
        for one in sending:
            one.body_is_coming = True
            crowd.busy(one)
        return crowd  # type: ignore[no-any-return]

    def made_room(crowd: Any, *stubs: Stub) -> list[int]:
        crowd.entered(Stub())
        return [place for place, one in enumerate(stubs) if one.dropped]

    for stubs, gone in (
        ([Stub(), Stub()], [0]),
        ([Stub(asked=True), Stub(unsent=9), Stub()], [2]),
        ([Stub(asked=True), Stub(unsent=9)], [1]),
        ([Stub(asked=True)], []),
    ):
        assert made_room(full(*stubs), *stubs) == gone
        assert all(stubs[place].dropped == "made_room" for place in gone)
    slow, quick, busy = Stub(sends_slowly=True), Stub(), Stub(asked=True)
    assert made_room(full(busy, sending=(quick, slow)), busy, quick, slow) == [2]
    assert slow.dropped == "slow_body"
    idle, slow = Stub(), Stub(sends_slowly=True)
    assert made_room(full(idle, sending=(slow,)), idle, slow) == [0]


def test_one_connection_too_many_is_told(tmp_path: Path) -> None:
    with served(tmp_path, most=5) as server:
        server.model.gate.clear()
        busy = [server.raw().send(request()) for _ in range(5)]
        until(lambda: server.tasks == 5)
        for _ in range(3):
            refused = server.raw().send(request())
            status, headers, body = refused.answer()
            assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
            assert json.loads(body)["error"]["code"] == "too_many_connections"
            assert refused.closed()
        server.model.gate.set()
        assert [one.answer()[0] for one in busy] == [200] * 5
        for one in busy:
            one.close()
        works(server)


def test_bodies_that_hardly_come_make_room(tmp_path: Path) -> None:
    late = request(length=10**6, extra="X-Request-Timeout: 86400\r\n")
    with served(tmp_path, most=3, patience=QUICK) as server:
        slow = [server.raw().send(late) for _ in range(2)]
        quick = server.raw().send(late + b" " * 50_000)
        until(lambda: server.tasks == 3)
        refused = server.raw()
        assert refused.error() == (503, "too_many_connections")  # they have not had their time
        time.sleep(QUICK.body_s * 2)
        others: list[Raw] = []
        for one in slow:  # the first of them goes first
            assert server.raw().send(request(extra="Connection: close\r\n")).answer()[0] == 200
            assert one.closed()
            until(lambda: server.open < 3)
            # Another takes the place.
            others.append(server.raw().send(request(length=10**6) + b" " * 50_000))
            until(lambda: server.tasks == 3)
        quick.send(b" " * (10**6 - 50_000 - len(BODY)))
        assert quick.answer()[0] == 200
    # A slow one has all of its time where nobody needs its place.
    with served(tmp_path, patience=QUICK) as server:
        raw = server.raw().send(request()[:-1])
        time.sleep(QUICK.body_s * 2)
        server.raw()
        assert raw.send(request()[-1:]).answer()[0] == 200


def test_who_pipelines_and_never_reads(tmp_path: Path) -> None:
    with served(tmp_path, patience=QUICK) as server:
        raw = server.raw()
        raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.socket.setblocking(False)
        many, sent = request({"texts": "cat " * 400}) * 100, 0
        with pytest.raises(ConnectionError):
            while True:
                try:
                    sent += raw.socket.send(many)
                except BlockingIOError:
                    time.sleep(0.01)
        assert sent < 50_000_000  # reading stops where writing does
        raw.close()
        works(server)


def test_an_idle_connection_is_closed_in_the_end(tmp_path: Path) -> None:
    with served(tmp_path, keep_alive_s=1) as server:
        raw = server.raw().send(request())
        assert raw.answer()[0] == 200
        assert raw.closed()
        works(server)


def test_a_thousand_idle_connections(tmp_path: Path) -> None:
    with served(tmp_path, most=200) as server:
        idle = [server.raw() for _ in range(1000)]
        works_among = server.raw().send(request())
        assert works_among.answer()[0] == 200
        assert server.open <= 200
        for one in (*idle, works_among):
            one.close()
        works(server)


LIMITED = """
import resource, sys
from app.server import _connections_possible
soft, hard, wanted = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(_connections_possible(wanted), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "found"),
    [(256, 4096, 1000, (1000, 1512)), (256, 1200, 1000, (688, 1200)), (256, 256, 1000, (128, 256))],
)
def test_open_files_bound_connections(soft: int, hard: int, wanted: int, found: tuple[int, int]) -> None:
    command = [sys.executable, "-c", LIMITED, str(soft), str(hard), str(wanted)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert tuple(map(int, done.stdout.split())) == found
    assert ("at most" in done.stderr) == (found[0] < wanted)
