"""`trivec serve`: the application under uvicorn, and what to try once it is ready."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import resource
import signal
import socket
import sys
import time
from contextlib import suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app.connections import Connections
from app.cores import cores
from app.index.collection import Database
from app.leaving import Watchdog, end, let_nobody_in
from app.main import create_app
from app.quiet import import_engine
from app.service import Service
from app.settings import Settings
from app.telemetry import configure_logging
from model.heap import limit_arenas

EXTRA_S = 20.0
"""After `shutdown_timeout_s`, to answer who still waits and to close the index; then the process is ended."""
ANSWERING_S = 2.5
"""Of that, for the last answers to be sent and read."""
IDLE_S = 0.5
"""For requests that are on their way when the signal comes, on connections that have none."""
DOOR_S = 0.1
"""For clients that have begun to connect when the signal comes; others are dropped by the system."""
OTHER_FILES = 512
"""Open files beside connections: databases, segments, the model."""
_TICK_S = 0.02
_TURNS = 10
"""Of the event loop, in which connections are taken out of the system's queue and their requests are read."""

_log = logging.getLogger("trivec.server")


def serve(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT; the exit status is 1 where the model or the port was not to be had.

    Stopping as told is a success, 0 (130 after Ctrl-C). A second signal ends the process at once.
    Raises IndexFault where the data folder cannot be used.
    """
    limit_arenas(cores())
    # Until the server has a handler of its own, there is nothing to finish.
    signal.signal(signal.SIGTERM, lambda *_: end(0))
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
        loop="asyncio",
        http="h11",  # it bounds heads (16 KB)
        ws="none",
        log_config=None,
        access_log=False,
        timeout_keep_alive=math.ceil(settings.keep_alive_s),
        server_header=False,
    )
    configure_logging(settings.log_level)
    watchdog = Watchdog(settings.shutdown_timeout_s + EXTRA_S)
    most = _connections_possible(settings.max_connections)
    connections = Connections(most, metrics=app.state.metrics)
    server = _AnnouncingServer(config, app, connections, watchdog)
    try:
        server.run()
        status = 1 if failures or not server.started else 0
    except SystemExit as stop:  # a port that is taken
        status = 1 if stop.code else 0
    if server.told == signal.SIGINT and not failures:
        status = 128 + signal.SIGINT
    for error in failures:
        _say(f"trivec: {error}")
    watchdog.end_if_threads_hang(status)
    return status


def _connections_possible(wanted: int) -> int:
    """Raise the limit of open files to what so many connections need; fewer, where the system says no."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    with suppress(ValueError, OSError):  # a system may have bounds that it does not tell
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (needed if hard == resource.RLIM_INFINITY else min(needed, hard), hard)
        )
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = max(1, min(wanted, max(soft - OTHER_FILES, soft // 2)))
    if possible < wanted:
        _log.warning("there will be %d connections at most: %d files may be open", possible, soft)
    return possible


class _AnnouncingServer(uvicorn.Server):
    """A server that says where it listens, and answers all that it has taken before it ends."""

    def __init__(
        self,
        config: uvicorn.Config,
        app: FastAPI,
        connections: Connections | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        super().__init__(config)
        self.told: int | None = None
        """The signal that has come."""
        self._app = app
        self._crowd = connections or Connections(most=1000, metrics=app.state.metrics)
        self._watchdog = watchdog
        self._welcome: asyncio.Task[None] | None = None
        if not config.loaded:
            config.load()
        config.http_protocol_class = self._crowd.bounded(config.http_protocol_class)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Refuse new work from the signal on; uvicorn would only stop taking connections. Told twice, end.

        It would raise the signal again at the end, too: stopping as told is no failure.
        """
        if self.told is not None:
            os.write(2, b"trivec: told twice, ends at once\n")
            os._exit(128 + sig)
        self.told = sig
        if self._watchdog is not None:
            self._watchdog.wake()
        self._refuse()
        self.should_exit = True

    def _refuse(self) -> None:
        self._app.state.under_way.draining = True
        service = getattr(self._app.state, "service", None)
        if isinstance(service, Service):
            service.begin_drain()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then tell the data folder's lock file the address, and the operator when it is ready."""
        await super().startup(sockets)
        if self.should_exit or not self.servers:
            return
        service: Service = self._app.state.service
        port = self.servers[0].sockets[0].getsockname()[1]  # port 0 is known only now
        url = f"http://{_reachable(self.config.host)}:{port}"
        service.database.announce(url)
        _say(f"Trivec listens on {url} and loads {service.settings.checkpoint} ...")
        self._welcome = asyncio.create_task(_welcome_when_ready(service, url))

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: what there is to tell of connections is told when its time has come."""
        self._crowd.endings.tell_due()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, answer what has been sent on those there are, then close the index.

        uvicorn's own would close connections whose request nobody has read yet, and cut off who still waits.
        """
        self._refuse()  # there may have been no signal
        service: Service = self._app.state.service
        idle_until = time.monotonic() + IDLE_S
        await self._stop_listening()
        while self._busy and service.drain_left_s > 0:
            await self._dismiss_idle(idle_until)
        self._app.state.under_way.cut()
        answered_by = max(time.monotonic(), idle_until) + ANSWERING_S
        while self._busy and time.monotonic() < answered_by:
            await self._dismiss_idle(idle_until)
        self._crowd.drop_all()
        self._crowd.endings.tell_rest()
        tasks = [task for task in (*self.server_state.tasks, self._welcome) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_TICK_S)
        await self.lifespan.shutdown()

    @property
    def _busy(self) -> bool:
        return bool(self.server_state.tasks or self.server_state.connections)

    async def _dismiss_idle(self, idle_until: float) -> None:
        if time.monotonic() > idle_until:
            self._crowd.dismiss_idle()
        await asyncio.sleep(_TICK_S)

    async def _stop_listening(self) -> None:
        """Close the door behind those who are through it: the system has taken in more than we have."""
        for server in self.servers:
            for door in server.sockets:
                let_nobody_in(door.fileno())
        await asyncio.sleep(DOOR_S)
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        for server in self.servers:
            server.close()


async def _welcome_when_ready(service: Service, url: str) -> None:
    while not service.ready:
        await asyncio.sleep(0.05)
    card = service.model.card
    _say(
        f"""Ready: {card.name}, {card.precision} on {card.engine}, texts of up to {card.max_length} tokens.

Try, in another terminal (documentation: {url}/docs; stop here with Ctrl-C):

  curl -s {url}/collections/default/documents -H 'Content-Type: application/json' -d '[
    {{"id": "tower-en", "text": "The Eiffel Tower was finished in 1889."}},
    {{"id": "dom-de", "text": "Der Kölner Dom wurde 1880 vollendet."}}]'

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
