"""The load generator: one process, one thread, HTTP/1.1 over kept connections. Standard library only.

A plan is a JSON line on stdin, what became of its requests a line on stdout:

    {"address": [HOST, PORT], "window_s": S or null, "patience_s": S, "streams": [
        {"name", "requests": [{"method", "path", "headers", "body", "leave_after_s", "expects"}],
         "clients": N, "repeat": false}                            closed loop: N requests under way
        {"name", "requests": [...], "rate": R, "jitter": J, "seed": I, "repeat": false}    open loop
    ]} -> {"seconds", "cpu_s", "answers": [[stream, number, due, sent, done, status, ...], ...], "problems"}

A closed loop sends the next request when one is answered; an open loop sends at its own times, R a second,
each
moved by up to J of the interval, whatever the server does, and `due` is that time. Without a window every
request is sent once. With one, repeating streams go on, and when it ends they keep the load up until
all that was sent inside it is answered; what is under way then is given up and not told. A request that the
client leaves has status LEFT, one without an answer NONE. Times are seconds since the plan began.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import re
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

LEFT, NONE = -1, 0
FIELDS = (
    "stream",
    "number",
    "due",
    "sent",
    "done",
    "status",
    "size",
    "tokens",
    "upserted",
    "retry_after",
    "queue_ms",
    "inference_ms",
)
"""The columns of an answer; `tokens` and `upserted` are what the body says of itself, or null."""

_ENDS = 320  # bytes kept of each end of a body: counts stand there, and what an error says
_PROBLEMS = 20
_TOKENS = re.compile(rb'"(?:prompt_)?tokens":\s*(\d+)')
_UPSERTED = re.compile(rb'"upserted":\s*(\d+)')
_TIMING = re.compile(rb"server-timing: queue;dur=([\d.]+), inference;dur=([\d.]+)")
_LENGTH = re.compile(rb"\ncontent-length: *(\d+)")
_RETRY = re.compile(rb"\nretry-after: *(\d+)")


class LostError(Exception):
    """The connection ended before the answer did; `unread` where not a byte of it had come."""

    def __init__(self, unread: bool) -> None:
        super().__init__("the connection was closed before the answer was complete")
        self.unread = unread


class Connection(asyncio.Protocol):
    """One kept connection, one request at a time."""

    def __init__(self) -> None:
        self.open = True
        self.used = False
        self._answer: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def ask(self, data: bytes) -> asyncio.Future[None]:
        """Send a request; done when the answer has come, which then is in the attributes."""
        self.head, self.body, self.end, self.size, self._left = b"", b"", b"", 0, -1
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(data)
        return self._answer

    def data_received(self, data: bytes) -> None:
        if self._left < 0:
            self.head += data
            if (end := self.head.find(b"\r\n\r\n")) < 0:
                return
            data, self.head = self.head[end + 4 :], self.head[:end].lower()
            length = _LENGTH.search(self.head)
            if length is None:
                self.transport.abort()  # chunked: none of the servers here does that
                return
            self._left = int(length[1])
        self._left -= len(data)
        self.size += len(data)
        if len(self.body) < _ENDS:
            self.body += data[:_ENDS]
        self.end = (self.end + data)[-_ENDS:] if len(data) < _ENDS else data[-_ENDS:]
        if self._left <= 0 and self._answer is not None and not self._answer.done():
            self.used = True
            self._answer.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(LostError(not self.head))

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])


class Load:
    """One plan under way."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        self.host, self.port = plan["address"]
        self.window_s, self.patience_s = plan["window_s"], plan["patience_s"]
        self.streams = plan["streams"]
        self.answers: list[list[Any]] = []
        self.problems: list[str] = []
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._under_way: dict[asyncio.Task[Any], tuple[int, int, float]] = {}
        self._stopped = False
        self._began = 0.0
        self._data = [
            [
                (encoded(one, self.host), one.get("leave_after_s"), one["expects"])
                for one in stream["requests"]
            ]
            for stream in self.streams
        ]

    def now(self) -> float:
        """Seconds since the plan began."""
        return time.perf_counter() - self._began

    async def run(self) -> float:
        """Run the plan; the seconds until the last answer that counts."""
        self._began = time.perf_counter()
        loops = [
            asyncio.ensure_future(self._open(place) if "rate" in stream else self._closed(place))
            for place, stream in enumerate(self.streams)
        ]
        if self.window_s is None:
            await asyncio.wait(loops, timeout=self.patience_s)
        else:
            await asyncio.sleep(self.window_s)
            if inside := set(self._under_way):
                await asyncio.wait(inside, timeout=self.patience_s)
        seconds = self.now()
        self._stopped = True
        for loop in loops:
            if loop.done():
                loop.result()  # a defect of this file must not pass for a server's
        for stream, number, due in self._under_way.values():
            if self.window_s is None or due < self.window_s:
                self.answers.append([stream, number, due, due, seconds, NONE, 0, *[None] * 5])
                self._problem(f"no answer within {self.patience_s} s")
        tasks = [*loops, *self._under_way]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in self._all:
            connection.transport.abort()
        return seconds

    async def _closed(self, place: int) -> None:
        """`clients` at a time; each takes the next request of the list when its own is answered."""
        stream, turn = self.streams[place], iter(range(sys.maxsize))
        count = len(self._data[place])

        async def client() -> None:
            while not self._stopped and ((number := next(turn)) < count or stream["repeat"]):
                await self._start(place, number, self.now())

        await asyncio.gather(*(client() for _ in range(stream["clients"])))

    async def _open(self, place: int) -> None:
        """At the stream's own times."""
        stream, data = self.streams[place], self._data[place]
        source, interval = random.Random(stream["seed"]), 1 / stream["rate"]
        number = 0
        tasks: set[asyncio.Task[Any]] = set()
        while not self._stopped and (number < len(data) or stream["repeat"]):
            due = (number + 0.5 + source.uniform(-1, 1) * stream["jitter"]) * interval
            if (wait := due - self.now()) > 0:
                await asyncio.sleep(wait)
            tasks.add(self._start(place, number, due))
            number += 1
            if len(tasks) > 1000:
                tasks = {task for task in tasks if not task.done()}
        if tasks:
            await asyncio.wait(tasks)

    def _start(self, place: int, number: int, due: float) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(self._one(place, number, due))
        self._under_way[task] = place, number, due
        task.add_done_callback(lambda done: self._under_way.pop(done, None))
        return task

    async def _one(self, place: int, number: int, due: float) -> None:
        data, leave_after_s, expects = self._data[place][number % len(self._data[place])]
        sent = self.now()
        connection: Connection | None = None
        try:
            async with asyncio.timeout(leave_after_s):
                connection = await self._answered(data)
        except TimeoutError:
            self.answers.append([place, number, due, sent, self.now(), LEFT, 0, *[None] * 5])
        except (OSError, LostError) as error:
            self.answers.append([place, number, due, sent, self.now(), NONE, 0, *[None] * 5])
            self._problem(f"{type(error).__name__}: {error}")
        else:
            self.answers.append([place, number, due, sent, self.now(), *told(connection)])
            if connection.status not in expects:
                name = self.streams[place]["name"]
                self._problem(
                    f"{name}: {connection.status} {connection.body[:_ENDS].decode(errors='replace')}"
                )
            self._idle.append(connection)

    async def _answered(self, data: bytes) -> Connection:
        """A connection with the answer on it. A kept one that the server has just closed is no fault."""
        while True:
            connection = await self._connection()
            reused = connection.used
            try:
                await connection.ask(data)
            except asyncio.CancelledError:
                connection.transport.abort()
                raise
            except LostError as lost:
                if reused and lost.unread:
                    continue
                raise
            return connection

    async def _connection(self) -> Connection:
        while self._idle:
            if (connection := self._idle.pop()).open:
                return connection
            self._all.discard(connection)
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self.host, self.port)
        self._all.add(connection)
        return connection

    def _problem(self, text: str) -> None:
        if len(self.problems) < _PROBLEMS:
            self.problems.append(text)


def told(connection: Connection) -> list[Any]:
    """What an answer says, as the columns from `status` on."""
    tokens = _TOKENS.findall(connection.end)
    upserted = _UPSERTED.search(connection.body)
    retry, timing = _RETRY.search(connection.head), _TIMING.search(connection.head)
    return [
        connection.status,
        connection.size,
        int(tokens[-1]) if tokens else None,
        int(upserted[1]) if upserted else None,
        int(retry[1]) if retry else None,
        float(timing[1]) if timing else None,
        float(timing[2]) if timing else None,
    ]


def encoded(request: Mapping[str, Any], host: str) -> bytes:
    """A request's bytes."""
    body = request.get("body", "").encode()
    headers = {
        "Host": host,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **request.get("headers", {}),
    }
    lines = [f"{request['method']} {request['path']} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def main(lines: Sequence[str] | Any = sys.stdin) -> None:
    """Run plans until stdin ends."""
    # A connection for each request that waits: the usual 1,024 files do not do.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for line in lines:
        load = Load(json.loads(line))
        gc.collect()
        gc.freeze()
        cpu = time.process_time()
        seconds = asyncio.run(load.run())
        reply = {
            "seconds": seconds,
            "cpu_s": time.process_time() - cpu,
            "answers": load.answers,
            "problems": load.problems,
        }
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
