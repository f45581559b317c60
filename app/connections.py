"""The connections of a server, as its end needs them: which are idle, and which still hear an answer.

uvicorn closes a connection as soon as its answer is written. Where the client still sends, its system throws
the answer away then: so such a connection is closed for writing first, and wholly once the client could read.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds."""

    linger_s: float = 2.0
    """For a client that still sends to read why nobody listens: closed at once, it would only see a reset."""


class Connections:
    """The open connections of a server; `bounded` makes uvicorn's protocol obey them."""

    def __init__(self, patience: Patience | None = None) -> None:
        self.patience = patience or Patience()
        self._open: set[Bounded] = set()

    def bounded(self, protocol: type[asyncio.Protocol]) -> type[asyncio.Protocol]:
        """uvicorn's protocol, for connections of this server."""
        return type(f"Bounded{protocol.__name__}", (Bounded, protocol), {"crowd": self})

    def entered(self, one: Bounded) -> None:
        """A connection is open."""
        self._open.add(one)

    def left(self, one: Bounded) -> None:
        """A connection is closed."""
        self._open.discard(one)

    def retire_idle(self) -> None:
        """Close idle connections, but those whose next request has just come."""
        for one in list(self._open):
            one.retire()

    def drop_all(self) -> None:
        """Close what is still open, whatever has not been sent."""
        for one in list(self._open):
            one.drop()


class Bounded(asyncio.Protocol):
    """Goes before a protocol class of uvicorn: its `cycle` is the request at work, or the last one."""

    crowd: ClassVar[Connections]
    cycle: Any
    transport: Any

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection in."""
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._deaf = False
        super().connection_made(_Gentle(transport, self))  # type: ignore[arg-type]
        self.crowd.entered(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        for timer in self._timers.values():
            timer.cancel()
        self.crowd.left(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        if not self._deaf:
            super().data_received(data)

    @property
    def at_work(self) -> bool:
        """Whether a request has come and is not answered."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def body_is_coming(self) -> bool:
        """Whether the client may still send what belongs to a request that was answered."""
        return self.cycle is not None and bool(self.cycle.more_body)

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
            self.transport.close()

    def drop(self) -> None:
        """Close it now; what is unsent is thrown away, by the system too."""
        if self.unsent:
            off = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, off)
        self.transport.abort()

    def linger(self) -> None:
        """Send what is unsent and the end, and let the client read it before the connection is closed."""
        if not self._deaf:
            self._deaf = True
            self.transport.resume_reading()
            self.transport.write_eof()
            self._after("linger", self.crowd.patience.linger_s, self.drop)

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
