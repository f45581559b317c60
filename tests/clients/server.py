"""A server of its own process for the client libraries: the service with a fake model.

    python -m tests.clients.server '{"api_keys": ["key"]}'

Prints its address, ends when its standard input does. GET /_test/sent gives what it was sent. POST
/_test/hold keeps the model from answering until POST /_test/release. GET /_test/queue gives the tokens that
wait and the number of forward passes that have begun.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from app.main import create_app
from app.service import Service
from app.settings import Settings
from tests.fakes import FakeModel


class Watched:
    """The application, with what it was sent written down and the model's gate within reach."""

    def __init__(self, app: FastAPI, model: FakeModel) -> None:
        self._app = app
        self._model = model
        self._sent: list[dict[str, Any]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"].startswith("/_test/"):
            await JSONResponse(self._control(scope))(scope, receive, send)
        else:
            await self._app(scope, self._noted(scope, receive), send)

    def _noted(self, scope: Scope, receive: Receive) -> Receive:
        body = bytearray()

        async def noted() -> Message:
            message = await receive()
            body.extend(message.get("body", b""))
            if message["type"] == "http.request" and not message.get("more_body", False) and body:
                self._sent.append({"path": scope["path"], "body": json.loads(body)})
            return message

        return noted

    def _control(self, scope: Scope) -> Any:
        match scope["path"]:
            case "/_test/hold":
                self._model.gate.clear()
            case "/_test/release":
                self._model.gate.set()
            case "/_test/sent":
                found, self._sent = self._sent, []
                return found
            case "/_test/queue":
                service: Service = self._app.state.service
                return {"tokens": service.batcher.queued_tokens, "passes": len(self._model.batches)}
        return None


def main() -> None:
    """Serve until standard input ends."""
    knobs = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    model = FakeModel()
    with tempfile.TemporaryDirectory() as folder:
        app = create_app(Settings(data_dir=Path(folder), **knobs), model=model)
        listening = socket.create_server(("127.0.0.1", 0))
        print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        server = uvicorn.Server(uvicorn.Config(Watched(app, model), log_level="warning", access_log=False))
        threading.Thread(target=_end_with_stdin, args=(server, model), daemon=True).start()
        server.run(sockets=[listening])


def _end_with_stdin(server: uvicorn.Server, model: FakeModel) -> None:
    os.read(sys.stdin.fileno(), 1)
    model.gate.set()
    server.should_exit = True


if __name__ == "__main__":
    main()
