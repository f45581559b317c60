"""Connections that the server ends by itself: each is counted by its reason, and none fills the log."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.endings import TOLD_EVERY_S, Endings
from app.telemetry import JsonLines
from tests.hostile.server import hostile_server
from tests.hostile.sockets import Raw, Served, request, served
from tests.hostile.test_connections import CHUNKED, QUICK, Wordy, until
from tests.metrics_helpers import Scrape, scraped

GARBAGE = b"SECRET words\r\n\r\n"


def closed(server: Served) -> dict[str, float]:
    """How many were ended by which reason; read without a connection."""
    text = server.service.metrics.exposition("")[0].decode()
    return {
        sample.labels["reason"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "trivec_connections_closed_total" and sample.value
    }


def told(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    found = [one for one in caplog.records if one.name == "trivec.connections"]
    return [json.loads(JsonLines().format(one)) for one in found]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path, Wordy(), patience=QUICK) as server:
        yield server


def never_reads(server: Served) -> Raw:
    raw = server.raw()
    raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return raw.send(request(path="/tokenize"))


@pytest.mark.parametrize(
    ("reason", "misbehave"),
    [
        ("malformed_http", lambda server: server.raw().send(GARBAGE)),
        ("malformed_http", lambda server: server.raw().send(CHUNKED + b"zz\r\nabc")),
        ("slow_head", lambda server: server.raw()),
        ("slow_head", lambda server: server.raw().send(b"POST /embed HTTP/1.1\r\n")),
        ("stalled_reader", never_reads),
    ],
)
def test_who_is_closed_is_counted_once(
    server: Served, reason: str, misbehave: Callable[[Served], Raw]
) -> None:
    before = closed(server)
    raw = misbehave(server)
    until(lambda: closed(server) != before)
    until(lambda: server.open == 0)  # also what lingers
    raw.close()
    assert closed(server) == {**before, reason: before.get(reason, 0) + 1}


def test_who_behaves_is_not_counted(server: Served) -> None:
    before = closed(server)
    with server.client() as client:
        assert client.post("/embed", json={"texts": "cat"}).status_code == 200
        assert client.post("/nowhere", json={}).status_code == 404
    server.raw().send(request(extra="Connection: close\r\n")).read()
    server.raw().send(b"POST /embed HTTP/1.1\r\n").close()
    refused = server.raw().send(request(path="/nowhere", length=10**9))
    assert refused.error() == (404, "not_found")
    refused.close()
    until(lambda: server.open == 0)
    assert closed(server) == before


def test_open_and_idle_connections_are_told(tmp_path: Path) -> None:
    with served(tmp_path, most=77) as server, server.client() as client:
        idle = [server.raw() for _ in range(3)]
        server.model.gate.clear()
        busy = [server.raw().send(request()) for _ in range(2)]
        until(lambda: server.open == 5 and server.tasks == 2)
        found = scraped(client)
        assert found("trivec_connections") == 3 + 2 + 1
        assert found("trivec_idle_connections") == 3
        assert found("trivec_connections_limit") == 77
        server.model.gate.set()
        assert [one.answer()[0] for one in busy] == [200, 200]
        for one in (*idle, *busy):
            one.close()
        until(lambda: server.open == 1)
        assert scraped(client)("trivec_connections") == 1


def test_a_full_house_is_counted(tmp_path: Path) -> None:
    with served(tmp_path, most=2) as server:
        idle = [server.raw() for _ in range(2)]
        until(lambda: server.open == 2)
        server.model.gate.clear()
        slow = server.raw().send(request(length=10**6, extra="X-Request-Timeout: 86400\r\n"))
        busy = server.raw().send(request())
        until(lambda: server.tasks == 2)
        assert closed(server) == {"made_room": 2}
        assert server.raw().error() == (503, "too_many_connections")
        assert closed(server) == {"made_room": 2, "too_many": 1}
        server.server._crowd.patience = QUICK
        until(lambda: any(one.sends_slowly for one in server.server._crowd._sending))
        newest = server.raw().send(request())
        until(lambda: "slow_body" in closed(server))
        server.model.gate.set()
        assert (busy.answer()[0], newest.answer()[0]) == (200, 200)
        assert closed(server) == {"made_room": 2, "too_many": 1, "slow_body": 1}
        for one in (*idle, slow, busy, newest):
            one.close()


def test_the_end_is_counted(tmp_path: Path) -> None:
    with served(tmp_path, Wordy(), shutdown_timeout_s=1) as server:
        idle = [server.raw().send(request()) for _ in range(3)]
        assert [one.answer()[0] for one in idle] == [200] * 3
        unread = never_reads(server)
        until(lambda: server.open == 4)
        with server.client() as client:
            until(lambda: Scrape.of(client.get("/metrics"))("trivec_requests_in_flight") == 2)
    assert closed(server) == {"dismissed": 3, "cut_off": 1}
    for one in (*idle, unread):
        one.close()


def test_a_flood_has_few_lines_and_no_bytes_of_the_client(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ids = []
    with caplog.at_level(logging.INFO, "trivec.connections"), served(tmp_path) as server:
        for _ in range(60):
            _, headers, body = server.raw().send(GARBAGE).answer()
            assert json.loads(body)["error"]["code"] == "malformed_http"
            ids.append(headers["x-request-id"])
    lines = told(caplog)
    assert {(one["reason"], one["level"]) for one in lines} == {("malformed_http", "info")}
    assert sum(one["count"] for one in lines) == 60 and len(lines) < 10
    assert [one["request_id"] for one in (lines[0], lines[-1])] == [ids[0], ids[-1]]
    assert "SECRET" not in json.dumps(lines)


def test_uvicorn_does_not_fill_the_log_either(tmp_path: Path) -> None:
    """It would warn of every head that is no HTTP, and twice of every upgrade: some clients ask each time."""
    upgrade = request(extra="Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n")
    with hostile_server(tmp_path) as server:
        for _ in range(5):
            assert Raw(server.port).send(GARBAGE).error() == (400, "malformed_http")
            assert Raw(server.port).send(upgrade).answer()[0] == 200
        until(lambda: server.lines.count('"/embed"') == 5)
        found = [json.loads(line) for line in server.lines.splitlines() if line.startswith("{")]
    assert {one["logger"] for one in found} <= {"trivec.requests", "trivec.connections"}
    assert "SECRET" not in json.dumps(found)


def test_when_the_log_hears_of_it(caplog: pytest.LogCaptureFixture) -> None:
    now, counted = 100.0, []
    endings = Endings(counted.append, lambda: now)
    with caplog.at_level(logging.INFO, "trivec.connections"):
        endings.add("malformed_http", "a")
        for name in ("b", "c"):
            endings.add("malformed_http", name)
        endings.add("too_many")
        now += TOLD_EVERY_S - 0.1
        endings.tell_due()
        assert len(told(caplog)) == 2
        now += 0.1
        endings.tell_due()
        endings.tell_due()  # nothing has come since
        endings.add("malformed_http", "d")
        endings.tell_rest()
        endings.tell_rest()
    assert [(one["reason"], one["count"], one["request_id"]) for one in told(caplog)] == [
        ("malformed_http", 1, "a"),
        ("too_many", 1, None),
        ("malformed_http", 2, "c"),
        ("malformed_http", 1, "d"),
    ]
    assert [one["level"] for one in told(caplog)] == ["info", "warning", "info", "info"]
    assert counted == ["malformed_http"] * 3 + ["too_many", "malformed_http"]
