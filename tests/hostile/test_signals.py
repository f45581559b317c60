"""A server that is told to end: it answers what it has taken, keeps what it has acknowledged, and ends."""

from __future__ import annotations

import gzip
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.index.collection import Database
from app.leaving import let_nobody_in
from app.server import EXTRA_S
from tests.hostile.server import HOLD_LOAD, ROOT, Running, hostile_server

FEW_ROUNDS, MANY_ROUNDS = 5, 100
CLIENTS = 8
DOCUMENTS = "/collections/default/documents"
LINES = "application/x-ndjson"


@dataclass
class Seen:
    """What clients were told."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    stored: dict[str, str] = field(default_factory=dict)
    """Texts of the documents that were acknowledged, by id."""
    faults: list[str] = field(default_factory=list)

    def answered(self, kind: str, answer: httpx.Response) -> None:
        self.statuses[kind, answer.status_code] += 1
        if answer.status_code not in (200, 503):
            self.faults.append(f"{kind}: {answer.status_code} {answer.text}")
        if answer.status_code == 503 and not ("Retry-After" in answer.headers and "shut" in answer.text):
            self.faults.append(f"{kind}: {answer.headers} {answer.text}")

    def results(self, results: list[dict[str, Any]], sent: dict[str, str]) -> None:
        """Every document has a result: it is stored, or the service ended before."""
        for one in results:
            if one.get("status") == "upserted":
                self.stored[one["id"]] = sent[one["id"]]
            elif one["error"]["code"] != "draining":
                self.faults.append(str(one))


def _texts(rng: random.Random) -> str:
    slow = "zzslow " if rng.random() < 0.01 else ""
    return f"{slow}cat number {rng.randrange(10_000)}"


def _ask(client: httpx.Client, rng: random.Random, seen: Seen, name: str) -> None:
    """One request of a kind that chance chooses; its answer is read to the end."""
    text = _texts(rng)
    bodies: dict[str, Any] = {
        "/search": {"query": text},
        "/embed": {"texts": [text] * 40},  # large enough to be gzipped
        "/rerank": {"query": text, "documents": ["cat", "dog"]},
        "/v1/embeddings": {"input": text, "model": "m"},
        "/v1/rerank": {"query": text, "documents": ["cat"], "model": "m"},
        "/v2/embed": {"texts": [text], "model": "m", "input_type": "search_query"},
        "/tei/embed": {"inputs": text},
        "/tei/embed_all": {"inputs": text},
    }
    kind = rng.choice([*bodies, "list", "list", "lines", "upload"])
    if kind in bodies:
        seen.answered(kind, client.post(kind, json=bodies[kind]))
        return
    sent = {f"{name}-{n}": _texts(rng) for n in range(rng.choice([1, 3, 3, 3, 300]))}
    documents = [{"id": one, "text": text} for one, text in sent.items()]
    if kind == "list":
        answer = client.post(DOCUMENTS, json=documents)
        seen.answered(kind, answer)
        found = answer.json()
        # Refused before it was looked at, or with a result for each.
        if "results" in found:
            seen.results(found["results"], sent)
            assert len(found["results"]) == len(sent)
        return

    def upload() -> Iterator[bytes]:
        for one in documents[:20]:
            yield json.dumps(one).encode() + b"\n"
            time.sleep(0.01)

    lines = b"".join(json.dumps(one).encode() + b"\n" for one in documents)
    with client.stream(
        "POST",
        DOCUMENTS,
        content=gzip.compress(lines) if kind == "lines" else upload(),
        headers={
            "Content-Type": LINES,
            "Accept": LINES,
            **({"Content-Encoding": "gzip"} if kind == "lines" else {}),
        },
    ) as answer:
        answer.read()
    seen.answered(kind, answer)
    if answer.status_code == 200:
        *results, last = map(json.loads, answer.text.splitlines())
        seen.results(results, sent)
        if "summary" not in last:
            seen.faults.append(f"{kind}: ends with {last}")


def _round(folder: Path, seed: int) -> Counter[tuple[str, int]]:
    """Clients at work, SIGTERM at some moment: see the module's first line."""
    rng, seen = random.Random(seed), Seen()
    patience_s = rng.choice([0, 0.2, 5])
    with hostile_server(folder, shutdown_timeout_s=patience_s, log_level="warning") as running:
        ready = threading.Barrier(CLIENTS + 1)

        def work(number: int) -> None:
            own = random.Random(f"{seed} {number}")
            with running.client() as client:
                ready.wait()
                for n in range(10_000):
                    try:
                        _ask(client, own, seen, f"{number}-{n}")
                    except httpx.ConnectError:
                        return  # not accepted
                    except httpx.HTTPError as error:
                        seen.faults.append(f"accepted and not answered: {error!r}")
                        return
                    if own.random() < 0.2:
                        time.sleep(own.random() * 0.1)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        ready.wait()
        time.sleep(rng.random() * 0.6)
        running.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert running.process.wait(patience_s + EXTRA_S) == 0, running.lines
        assert not seen.faults, (seed, seen.faults[:3], running.lines)
    database = Database(folder / "data")
    try:
        if seen.stored:
            collection = database.get("default")
            for one, text in seen.stored.items():
                found = collection.get(one)
                assert found is not None and found.text == text, (seed, one)
    finally:
        database.close()
    return seen.statuses


@pytest.mark.parametrize("round_number", range(FEW_ROUNDS))
def test_all_that_was_accepted_is_answered_and_kept(tmp_path: Path, seed: int, round_number: int) -> None:
    _round(tmp_path, seed + round_number)


@pytest.mark.slow
def test_all_that_was_accepted_is_answered_and_kept_many_times(tmp_path: Path, seed: int) -> None:
    total: Counter[int] = Counter()
    for number in range(MANY_ROUNDS):
        for (_, status), count in _round(tmp_path / str(number), seed + number).items():
            total[status] += count
    assert total[200] > MANY_ROUNDS and total[503] > MANY_ROUNDS
    print(f"{MANY_ROUNDS} rounds: {dict(total)}")


def _in_background(work: Callable[[], httpx.Response]) -> Callable[[], httpx.Response]:
    found: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()

    def wait() -> httpx.Response:
        thread.join()
        return found[0]

    return wait


def _until_in_flight(running: Running, count: int = 1) -> None:
    with running.client() as client:
        while True:
            for line in client.get("/metrics").text.splitlines():
                # Of the two one is this request itself.
                if line.startswith("trivec_requests_in_flight") and float(line.split()[-1]) > count:
                    return
            time.sleep(0.01)


def _until_told(running: Running) -> None:
    """Wait until the server refuses requests, or connections already."""
    with suppress(httpx.TransportError), running.client() as client:
        while client.get("/health/ready").status_code == 200:
            pass


@pytest.mark.parametrize("word", ["zzhang", "zztokhang"])
def test_what_hangs_does_not_keep_the_server(tmp_path: Path, word: str) -> None:
    with hostile_server(tmp_path, shutdown_timeout_s=0.3) as running:
        with running.client() as client:
            client.post(DOCUMENTS, json=[{"id": "1", "text": "cat"}])
            ask = _in_background(lambda: client.post("/v1/embeddings", json={"input": word, "model": "m"}))
            write = _in_background(lambda: client.post(DOCUMENTS, json=[{"id": "2", "text": word}]))
            _until_in_flight(running, 2)
            running.process.send_signal(signal.SIGTERM)
            refused, answer = ask(), write()
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "draining"
        assert refused.headers["connection"] == "close" and refused.headers["retry-after"]
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "draining"
        assert running.process.wait(EXTRA_S) == 0, running.lines
    database = Database(tmp_path / "data")
    assert list(database.get("default").ids()) == ["1"]
    database.close()


def test_work_under_way_is_finished(tmp_path: Path) -> None:
    with hostile_server(tmp_path, shutdown_timeout_s=30) as running:
        with running.client() as client, running.client() as other:
            assert other.get("/info").status_code == 200  # a connection that stays open
            ask = _in_background(lambda: client.post("/embed", json={"texts": "zzhang"}))
            _until_in_flight(running)
            running.process.send_signal(signal.SIGTERM)
            while (refused := other.get("/info")).status_code == 200:
                pass
            assert refused.status_code == 503 and refused.headers["connection"] == "close"
            while True:  # soon nobody new is let in
                try:
                    socket.create_connection(("127.0.0.1", running.port), 5).close()
                except OSError:
                    break
            running.release()
            answer = ask()
            assert answer.status_code == 200 and answer.headers["connection"] == "close"
        assert running.process.wait(30 + EXTRA_S) == 0, running.lines


def _to_the_end(one: socket.socket) -> bytes:
    found = b""
    while part := one.recv(65536):
        found += part
    return found


def _dismissed(found: bytes) -> bool:
    head, _, body = found.partition(b"\r\n\r\n")
    return (
        head.startswith(b"HTTP/1.1 503 ")
        and b"Retry-After: 1" in head
        and b"Connection: close" in head
        and json.loads(body)["error"]["code"] == "draining"
    )


@pytest.mark.parametrize("patience_s", [0, 600])
def test_idle_connections_are_told_and_closed(tmp_path: Path, patience_s: float) -> None:
    with hostile_server(tmp_path, shutdown_timeout_s=patience_s) as running:
        idle = [socket.create_connection(("127.0.0.1", running.port), 60) for _ in range(20)]
        idle[0].sendall(b"HEAD /info HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle[0].recv(65536).endswith(b"\r\n\r\n")
        idle[1].sendall(b"GET /info HT")  # a head that does not come
        running.process.send_signal(signal.SIGTERM)
        for one in idle:
            assert _dismissed(_to_the_end(one))
            one.close()
        assert running.process.wait(EXTRA_S) == 0, running.lines


@pytest.mark.parametrize("patience_s", [0, 600])
def test_a_request_that_comes_late_on_an_idle_connection(tmp_path: Path, patience_s: float) -> None:
    """A client that asks in the moment in which its connection is closed is answered, not reset."""
    ask = b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n"
    with hostile_server(tmp_path, shutdown_timeout_s=patience_s) as running:
        soon, late = (socket.create_connection(("127.0.0.1", running.port), 60) for _ in range(2))
        for one in (soon, late):
            one.sendall(ask.replace(b"GET", b"HEAD"))
            first = one.recv(65536)
            assert first.startswith(b"HTTP/1.1 200 ") and first.endswith(b"\r\n\r\n")
        running.process.send_signal(signal.SIGTERM)
        _until_told(running)
        soon.sendall(ask)
        found = _to_the_end(soon)
        assert found.startswith(b"HTTP/1.1 503 ") and b'"draining"' in found
        late.recv(1, socket.MSG_PEEK)  # by now it is said that the service ends; this client has not looked
        late.sendall(ask)
        assert _dismissed(_to_the_end(late))
        soon.close(), late.close()
        assert running.process.wait(EXTRA_S) == 0, running.lines


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such filters")
def test_who_has_begun_to_connect_gets_through() -> None:
    """The door lets nobody begin; who has begun may finish."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        # The system then takes a client in with its first byte only: until then it has begun, and no more.
        door.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
        door.settimeout(10)
        begun = socket.create_connection(door.getsockname(), 60)
        let_nobody_in(door.fileno())
        with pytest.raises(TimeoutError):
            socket.create_connection(door.getsockname(), 0.3)
        begun.sendall(b"a")
        taken, _ = door.accept()
        assert taken.recv(1) == b"a"
        begun.close(), taken.close()


def test_a_bulk_upload_says_what_is_stored(tmp_path: Path) -> None:
    """An endless one: what was acknowledged is there, and the line it has come to is named."""
    with hostile_server(tmp_path, shutdown_timeout_s=0.5) as running:
        sent = 0

        def upload() -> Iterator[bytes]:
            nonlocal sent
            with running.client() as other:
                while True:
                    yield json.dumps({"id": str(sent), "text": f"cat {sent}"}).encode() + b"\n"
                    sent += 1
                    if sent == 2000:
                        while not other.get("/collections/default").json().get("count"):
                            time.sleep(0.01)
                        running.process.send_signal(signal.SIGTERM)

        with running.client() as client:
            answer = client.post(DOCUMENTS, content=upload(), headers={"Content-Type": LINES})
        assert sent >= 2000 and answer.status_code == 200
        *results, last = answer.json()["results"]
        stored = {one["id"] for one in results if "id" in one and "error" not in one}
        assert last["error"]["code"] == "draining" and "not read" in last["error"]["message"]
        assert len(stored) == answer.json()["upserted"] >= 256
        assert running.process.wait(EXTRA_S) == 0, running.lines
    database = Database(tmp_path / "data")
    assert set(database.get("default").ids()) >= stored
    database.close()


def test_a_body_that_is_still_being_sent_is_answered(tmp_path: Path) -> None:
    with hostile_server(tmp_path, shutdown_timeout_s=0.3) as running:
        raw = socket.create_connection(("127.0.0.1", running.port), 60)
        head = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        raw.sendall(head + b"Content-Length: 9000000\r\n\r\n" + b" " * 1000)
        _until_in_flight(running)
        running.process.send_signal(signal.SIGTERM)

        def go_on() -> None:
            try:
                while True:
                    raw.sendall(b" " * 1000)
                    time.sleep(0.01)
            except OSError:
                return

        sending = threading.Thread(target=go_on)
        sending.start()
        found = b""
        while part := raw.recv(65536):
            found += part
        raw.close()
        sending.join()
        assert found.startswith(b"HTTP/1.1 503 ") and b'"draining"' in found
        assert running.process.wait(EXTRA_S) == 0, running.lines


def test_while_the_model_loads(tmp_path: Path) -> None:
    (tmp_path / HOLD_LOAD).touch()
    with hostile_server(tmp_path, ready=False, shutdown_timeout_s=30) as running:
        with running.client() as client:
            assert client.post("/embed", json={"texts": "cat"}).json()["error"]["code"] == "not_ready"
            running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(30 + EXTRA_S) == 0, running.lines


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_told_twice_it_ends_at_once(tmp_path: Path, sig: signal.Signals) -> None:
    with hostile_server(tmp_path, shutdown_timeout_s=3600) as running, running.client() as client:
        client.post(DOCUMENTS, json=[{"id": "1", "text": "cat"}])

        def ask() -> httpx.Response:
            try:
                return client.post("/embed", json={"texts": "zzhang"})
            except httpx.TransportError:
                return httpx.Response(499)

        asked = _in_background(ask)
        _until_in_flight(running)
        running.process.send_signal(signal.SIGTERM)
        _until_told(running)  # so that the two are not one
        running.process.send_signal(sig)
        assert running.process.wait(60) == 128 + sig
        assert asked().status_code == 499
    database = Database(tmp_path / "data")
    assert list(database.get("default").ids()) == ["1"]
    database.close()


def test_ctrl_c(tmp_path: Path) -> None:
    with hostile_server(tmp_path) as running:
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(30 + EXTRA_S) == 128 + signal.SIGINT
        assert "Traceback" not in running.lines


@pytest.mark.parametrize("delay_s", [0.3, 1.5, 4.0])
def test_the_real_server_while_it_starts(tmp_path: Path, delay_s: float) -> None:
    """Imports, TensorFlow's among them, the index, and the bundled checkpoint, whatever is under way then."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT_THEN_SERVE, "serve", "--port", "0", "--data-dir", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline() == b"serving\n"
    time.sleep(delay_s)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30 + EXTRA_S)
    assert process.returncode == 0, errors.decode()
    assert b"Traceback" not in errors
    Database(tmp_path).close()


WAIT_THEN_SERVE = """
import sys
import app.server
from app.cli import main
own = app.server.import_engine
def said(engine):
    print("serving", flush=True)
    own(engine)
app.server.import_engine = said
sys.exit(main(sys.argv[1:]))
"""

WATCHED = """
import sys, threading, time
from app.leaving import Watchdog
dog = Watchdog(float(sys.argv[1]))
if sys.argv[2] == "wakes":
    dog.wake()
    time.sleep(60)
else:
    threading.Thread(target=time.sleep, args=(60,)).start()
    dog.end_if_threads_hang(0)
"""


@pytest.mark.parametrize(("limit_s", "what", "status"), [(0.1, "wakes", 1), (60, "threads", 0)])
def test_the_watchdog(limit_s: float, what: str, status: int) -> None:
    found = subprocess.run([sys.executable, "-c", WATCHED, str(limit_s), what], cwd=ROOT, capture_output=True)
    assert found.returncode == status
    assert (b"hangs" in found.stderr) == (what == "wakes")
