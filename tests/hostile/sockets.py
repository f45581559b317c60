"""A server in a thread of this process, and clients that write their own bytes."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from app.connections import Connections, Patience
from app.main import create_app
from app.server import _AnnouncingServer
from app.service import Service
from app.settings import Settings
from tests.fakes import FakeModel

WAIT_S = 6


@dataclass(frozen=True)
class Served:
    """A server and what a test wants to look at."""

    port: int
    service: Service
    server: _AnnouncingServer
    model: FakeModel

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=WAIT_S)

    def raw(self) -> Raw:
        return Raw(self.port)

    @property
    def open(self) -> int:
        """Connections that the server holds."""
        return len(self.server.server_state.connections)

    @property
    def tasks(self) -> int:
        """Requests at work."""
        return len(self.server.server_state.tasks)


class Raw:
    """A connection without manners."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)

    def send(self, data: bytes) -> Raw:
        self.socket.sendall(data)
        return self

    def read(self) -> bytes:
        """All bytes until the server closes; what a reset has not destroyed."""
        found = bytearray()
        try:
            while part := self.socket.recv(65536):
                found += part
        except ConnectionError:
            pass
        return bytes(found)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """One whole answer, the connection left open: status, headers in lower case, body."""
        head = self._until(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
        body = bytearray()
        while len(body) < int(headers.get("content-length", "0")):
            body += self._some(int(headers["content-length"]) - len(body))
        return int(first.split()[1]), headers, bytes(body)

    def error(self) -> tuple[int, str]:
        """Status and code of an answer that is no success."""
        status, headers, body = self.answer()
        error = json.loads(body)["error"]
        assert set(error) == {"code", "message", "param", "request_id"}
        assert error["request_id"] == headers["x-request-id"]
        return status, error["code"]

    def closed(self) -> bool:
        """Wait until the server has closed, having sent nothing more."""
        return self.read() == b""

    def close(self) -> None:
        self.socket.close()

    def _some(self, count: int) -> bytes:
        part = self.socket.recv(count)
        if not part:
            raise ConnectionError("closed before its answer")
        return part

    def _until(self, mark: bytes) -> bytes:
        found = bytearray()
        while not found.endswith(mark):
            found += self._some(1)
        return bytes(found)


def request(
    body: Any = None,
    path: str = "/embed",
    *,
    method: str = "POST",
    length: int | None = None,
    extra: str = "",
) -> bytes:
    """The bytes of a request; a `body` that is no bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body or {"texts": "cat"}).encode()
    if method == "GET":
        content = b""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content) if length is None else length}\r\n{extra}\r\n"
    )
    return head.encode() + content


@contextmanager
def served(
    folder: Path,
    model: FakeModel | None = None,
    *,
    patience: Patience | None = None,
    most: int = 1000,
    keep_alive_s: int = 30,
    **knobs: Any,
) -> Iterator[Served]:
    """A running server; in the end it is told to stop and everything the model holds is released."""
    model = model or FakeModel()
    settings = Settings(data_dir=folder, port=0, **{"shutdown_timeout_s": 2, **knobs})
    app = create_app(settings, model=model)
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        http="h11",
        log_config=None,
        access_log=False,
        timeout_keep_alive=keep_alive_s,
    )
    server = _AnnouncingServer(config, app, Connections(most, patience, metrics=app.state.metrics))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not (server.started and getattr(server, "servers", None)):
            assert thread.is_alive()
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Served(port, app.state.service, server, model)
    finally:
        model.gate.set()
        server.should_exit = True
        thread.join(WAIT_S)
        assert not thread.is_alive()
