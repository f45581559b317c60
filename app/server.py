"""`trivec serve`: the application under uvicorn, and what to try once it is ready."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app.cores import cores
from app.index.collection import Database
from app.main import create_app
from app.quiet import import_engine
from app.service import Service
from app.settings import Settings
from app.telemetry import configure_logging
from model.heap import limit_arenas


def serve(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT; the exit status is 1 where the model or the port was not to be had.

    Raises IndexFault where the data folder cannot be used.
    """
    limit_arenas(cores())
    # uvicorn shuts down in order and then raises the signal again: stopping as told is a success.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    failures: list[Exception] = []

    def give_up(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    # Opened here, so that a folder in use or a full disk is one line and not a start-up traceback.
    database = Database(settings.data_dir)
    import_engine(settings.engine)
    app = create_app(settings, database=database, on_load_failure=give_up)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=int(settings.shutdown_timeout_s) + 1,
        server_header=False,
    )
    server = _AnnouncingServer(config, app)
    configure_logging(settings.log_level)
    try:
        server.run()
    except SystemExit as stop:  # a port that is taken, or SIGTERM
        return 1 if stop.code else 0
    for error in failures:
        _say(f"trivec: {error}")
    return 1 if failures or not server.started else 0


class _AnnouncingServer(uvicorn.Server):
    """A server that says where it listens: port 0 is known only once it does."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app
        self._welcome: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Refuse new work from the signal on; uvicorn itself would only stop taking connections."""
        service = getattr(self._app.state, "service", None)
        if isinstance(service, Service):
            service.begin_drain()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then tell the data folder's lock file the address, and the operator when it is ready."""
        await super().startup(sockets)
        if self.should_exit or not self.servers:
            return
        service: Service = self._app.state.service
        port = self.servers[0].sockets[0].getsockname()[1]
        url = f"http://{_reachable(self.config.host)}:{port}"
        service.database.announce(url)
        _say(f"Trivec listens on {url} and loads {service.settings.checkpoint} ...")
        self._welcome = asyncio.create_task(_welcome_when_ready(service, url))


async def _welcome_when_ready(service: Service, url: str) -> None:
    while not service.ready:
        await asyncio.sleep(0.05)
    card = service.model.card
    _say(
        f"""Ready: {card.name}, {card.precision} on {card.engine}, texts of up to {card.max_length} tokens.

Try, in another terminal (documentation: {url}/docs; stop here with Ctrl-C):

  curl -s {url}/collections/default/documents -H 'Content-Type: application/json' -d '[
    {{"id": "tower", "text": "The Eiffel Tower was finished in 1889."}},
    {{"id": "dom", "text": "Der Kölner Dom wurde 1880 vollendet."}}]'

  curl -s {url}/search -H 'Content-Type: application/json' -d '{{"query": "When was the tower finished?"}}'
"""
    )


def _reachable(host: str) -> str:
    """An address that this machine can call: 0.0.0.0 and :: listen but are not called."""
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
