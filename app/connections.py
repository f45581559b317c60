"""What a connection may do around its requests: uvicorn bounds neither how many there are nor their silence.

A connection without a request is idle. For one too many the longest idle one is closed, so that those who
only hold connections never keep others out; then one whose body hardly comes; where all are at work, the
newest is answered 503. Once a request's first byte has come, its head must follow within a time, and so must
the rest of a body that was answered early. A client that takes nothing of its answer is dropped, for the
answer lies in memory. How long a body may take is the deadline's affair (`app.guard`).
"""

from __future__ import annotations

import asyncio
import json
import select
import socket
import struct
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from itertools import islice
from logging import getLogger
from typing import Any, ClassVar

from app.endings import Endings, Reason
from app.metrics import Metrics
from app.telemetry import PER_CONNECTION

REFUSED_AT_ONCE = 64
"""Connections that are told why they are refused, at the same time; others are just closed."""
LOOKED_AT = 16
"""Idle connections of which one is chosen to be closed."""
TAKEN_BYTES = 64 * 1024
"""What a client must take of its answer in the time that it has, or all that is left of it."""
SLOW_BYTES_S = 1024
"""Bytes of a body a second; one that comes more slowly makes room for others where there is none."""
DISMISSED_S = 1.0
"""Seconds for what was on its way on an idle connection, when the service ends, to come and be answered."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds."""

    head_s: float = 20.0
    """For the head of a request, from the connection or the head's first byte on."""
    body_s: float = 10.0
    """For a body before it can be called slow."""
    stalled_s: float = 30.0
    """For a client to take TAKEN_BYTES of its answer."""
    linger_s: float = 2.0
    """For a client that still sends to read why nobody listens: closed at once, it would only see a reset."""


class Connections:
    """The open connections of a server; `bounded` makes uvicorn's protocol obey them."""

    def __init__(
        self, most: int, patience: Patience | None = None, *, metrics: Metrics | None = None
    ) -> None:
        self.patience = patience or Patience()
        self._most = most
        self._open: set[Bounded] = set()
        self._idle: dict[Bounded, None] = {}
        self._sending: dict[Bounded, None] = {}
        self._refused: set[Bounded] = set()
        metrics = metrics or Metrics()
        metrics.watch_connections(most, lambda: len(self._open), lambda: len(self._idle))
        self.endings = Endings(metrics.connection_closed)

    def bounded(self, protocol: type[asyncio.Protocol]) -> type[asyncio.Protocol]:
        """uvicorn's protocol, for connections of this server."""
        return type(f"Bounded{protocol.__name__}", (Bounded, protocol), {"crowd": self})

    def entered(self, one: Bounded) -> bool:
        """Take a new connection in, if there is room or room can be made."""
        if len(self._open) >= self._most:
            if (victim := self._dispensable()) is None:
                return False
            reason: Reason = "made_room" if victim in self._idle else "slow_body"
            self.left(victim)
            victim.drop(reason)
        self._open.add(one)
        return True

    def _dispensable(self) -> Bounded | None:
        """The one that loses least: best, one that has read its answer and asked for nothing since."""
        quiet = [one for one in islice(self._idle, LOOKED_AT) if not one.asked]
        slow = (one for one in self._sending if one.sends_slowly)
        return next((one for one in quiet if one.unsent == 0), None) or next(iter(quiet), next(slow, None))

    def refused(self, one: Bounded) -> bool:
        """Whether there is room for one more who is told that there is none."""
        if len(self._refused) >= REFUSED_AT_ONCE:
            return False
        self._refused.add(one)
        return True

    def left(self, one: Bounded) -> None:
        """A connection is closed."""
        self._open.discard(one)
        self._refused.discard(one)
        self._idle.pop(one, None)
        self._sending.pop(one, None)

    def idle(self, one: Bounded) -> None:
        """A connection waits for a request from now on."""
        if one in self._open:
            self._sending.pop(one, None)
            self._idle.pop(one, None)
            self._idle[one] = None

    def busy(self, one: Bounded) -> None:
        """A connection has a request, or a bit more of it."""
        if one in self._open:
            self._idle.pop(one, None)
            if one.body_is_coming:
                self._sending[one] = None
            else:
                self._sending.pop(one, None)

    def dismiss_idle(self) -> None:
        """Tell idle connections that the service ends, but those whose next request has just come."""
        for one in list(self._idle):
            one.dismiss()

    def drop_all(self) -> None:
        """Close what is still open, whatever has not been sent."""
        for one in (*self._open, *self._refused):
            one.drop("cut_off")


class Bounded(asyncio.Protocol):
    """Goes before a protocol class of uvicorn: its `cycle` is the request at work, or the last one."""

    crowd: ClassVar[Connections]
    cycle: Any
    transport: Any
    logger: Any

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection in, or say that there are too many."""
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._deaf = False
        self._counted = False
        self._begun = False
        self.logger = getLogger(PER_CONNECTION)
        self._body_since, self._body_bytes = 0.0, 0
        super().connection_made(_Gentle(transport, self))  # type: ignore[arg-type]
        if self.crowd.entered(self):
            self.crowd.idle(self)
            self._after("head", self.crowd.patience.head_s, self.retire)
        elif self.crowd.refused(self):
            words = "there are too many connections; try again"
            self._answer("too_many", 503, "too_many_connections", words, "1")
        else:
            self.drop("too_many")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        for timer in self._timers.values():
            timer.cancel()
        self.crowd.left(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request: the first of them set the time for its head."""
        if self._deaf:
            return
        was_at_work = self.at_work
        if not was_at_work and not self._begun:
            self._begun = True
            self._after("head", self.crowd.patience.head_s, self._give_up)
        super().data_received(data)
        if self.at_work:
            if not was_at_work:
                self._begun = False
                self._stop("head")
                self._body_since, self._body_bytes = time.monotonic(), 0
            self._body_bytes += len(data)
            self.crowd.busy(self)

    def eof_received(self) -> bool | None:
        """The client sends no more: it has left, as far as anybody can tell."""
        if self.unsent:
            self.watch_unsent()
        return super().eof_received()

    def on_response_complete(self) -> None:
        """uvicorn has sent an answer; it may have begun the next request in the same breath."""
        super().on_response_complete()  # type: ignore[misc]
        if self.at_work:
            self._body_since, self._body_bytes = time.monotonic(), 0
            self.crowd.busy(self)
        else:
            self.crowd.idle(self)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP like every other mistake, unless an answer is on its way."""
        if self.at_work:
            started, self.cycle.disconnected = self.cycle.response_started, True
            self.cycle.message_event.set()
            if started:
                self.drop("malformed_http")
                return
        self._answer("malformed_http", 400, "malformed_http", "the bytes are no HTTP request")

    def pause_writing(self) -> None:
        """The client reads more slowly than its answer is written."""
        super().pause_writing()
        self.watch_unsent()

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        self._stop("stalled")

    @property
    def at_work(self) -> bool:
        """Whether a request has come and is not answered."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def body_is_coming(self) -> bool:
        """Whether the client may still send what belongs to its last request."""
        return self.cycle is not None and bool(self.cycle.more_body)

    @property
    def sends_slowly(self) -> bool:
        """Whether the body under way has had its time and hardly comes."""
        took_s = time.monotonic() - self._body_since
        return took_s > self.crowd.patience.body_s and self._body_bytes < took_s * SLOW_BYTES_S

    @property
    def unsent(self) -> int:
        """Bytes that the client has not taken."""
        return int(self.transport.get_write_buffer_size())

    @property
    def asked(self) -> bool:
        """Whether bytes have come that nobody has read yet."""
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def retire(self) -> None:
        """Close it unless it has a request."""
        if not self.at_work and not self.transport.is_closing() and not self._deaf and not self.asked:
            self._give_up()

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self._count("slow_head")
            self.transport.close()

    def dismiss(self) -> None:
        """Refuse the request that may be on its way, and close: closed alone, it would be met by a reset.

        A client that has asked takes the answer for its own, one that has not throws it away (RFC 9112, 9.2).
        """
        if not self.at_work and not self.transport.is_closing() and not self._deaf and not self.asked:
            self._answer("dismissed", 503, "draining", "the service is shutting down", "1", DISMISSED_S)

    def drop(self, reason: Reason | None = None) -> None:
        """Close it now; what is unsent is thrown away, by the system too."""
        if reason is not None:
            self._count(reason)
        if self.unsent:
            off = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, off)
        self.transport.abort()

    def watch_unsent(self) -> None:
        """Drop the client where it takes too little of its answer."""
        before = self.unsent

        def look() -> None:
            if before - self.unsent < min(before, TAKEN_BYTES):
                self.drop("stalled_reader")
            else:
                self.watch_unsent()

        self._after("stalled", self.crowd.patience.stalled_s, look)

    def linger(self, seconds: float | None = None) -> None:
        """Send what is unsent and the end, and let the client read it before the connection is closed."""
        if not self._deaf:
            self._deaf = True
            self.transport.resume_reading()
            self.transport.write_eof()
            self._after("linger", seconds or self.crowd.patience.linger_s, self.drop)

    def _count(self, reason: Reason, request_id: str | None = None) -> None:
        """A connection ends once: what closes it in the end is not why."""
        if not self._counted:
            self._counted = True
            self.crowd.endings.add(reason, request_id)

    def _answer(
        self,
        reason: Reason,
        status: int,
        code: str,
        message: str,
        retry_after: str | None = None,
        linger_s: float | None = None,
    ) -> None:
        request_id = uuid.uuid4().hex
        self._count(reason, request_id)
        error = {"code": code, "message": message, "param": None, "request_id": request_id}
        body = json.dumps({"error": error}).encode()
        headers = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            f"X-Request-ID: {request_id}",
            *([f"Retry-After: {retry_after}"] if retry_after is not None else []),
            "Connection: close",
        ]
        self.transport.write("\r\n".join([*headers, "", ""]).encode() + body)
        self.linger(linger_s)

    def _after(self, name: str, seconds: float, call: Callable[[], object]) -> None:
        def ring() -> None:
            self._timers.pop(name, None)
            call()

        self._stop(name)
        self._timers[name] = asyncio.get_running_loop().call_later(seconds, ring)

    def _stop(self, name: str) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()


class _Gentle:
    """A transport that lets the client read its answer before it is closed, but not for ever."""

    def __init__(self, transport: asyncio.BaseTransport, connection: Bounded) -> None:
        self._transport = transport
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        """Close; where the client still sends, only after it could read the answer."""
        one = self._connection
        if self._transport.is_closing():
            return
        if one.body_is_coming and not one.cycle.disconnected:
            one.linger()
        else:
            self._transport.close()
            if one.unsent:
                one.watch_unsent()
