"""The benchmark's half of the load generator: streams of requests in, answers out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from benchmarks.encode_sides.registry import ROOT
from benchmarks.search_sides.measuring import digits, percentile
from benchmarks.serve_sides.load import FIELDS, LEFT, NONE

PATIENCE_S = 600.0


class LoadError(RuntimeError):
    """The generator ended, or a server gave answers that a benchmark cannot use."""


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. `expects`: the statuses that are no error; a client may leave before the answer."""

    path: str
    body: Any = None
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    leave_after_s: float | None = None
    expects: tuple[int, ...] = (200,)

    def plain(self) -> dict[str, Any]:
        """As the generator takes it; a body of text is sent as it is."""
        body = self.body
        if not isinstance(body, str):
            body = "" if body is None else json.dumps(body, ensure_ascii=False)
        return {
            "method": self.method,
            "path": self.path,
            "body": body,
            "headers": dict(self.headers),
            "leave_after_s": self.leave_after_s,
            "expects": list(self.expects),
        }


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests in a closed loop of `clients`, or in an open loop of `rate` a second; see `load`."""

    name: str
    requests: Sequence[Request]
    clients: int = 0
    rate: float = 0.0
    jitter: float = 0.25
    seed: int = 0
    repeat: bool = False

    def plain(self) -> dict[str, Any]:
        """As the generator takes it."""
        shared = {
            "name": self.name,
            "requests": [one.plain() for one in self.requests],
            "repeat": self.repeat,
        }
        if self.clients:
            return {**shared, "clients": self.clients}
        return {**shared, "rate": self.rate, "jitter": self.jitter, "seed": self.seed}


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request; times in seconds since the load began, see `load.FIELDS`."""

    stream: int
    number: int
    due: float
    sent: float
    done: float
    status: int
    size: int
    tokens: int | None
    upserted: int | None
    retry_after: int | None
    queue_ms: float | None
    inference_ms: float | None

    @property
    def latency_s(self) -> float:
        """From when it was due, so that a client which could not send in time counts its wait."""
        return self.done - self.due


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answers of one load."""

    streams: tuple[Stream, ...]
    answers: tuple[Answer, ...]
    seconds: float
    cpu_s: float
    """Core time that the generator took."""
    problems: tuple[str, ...]

    def of(self, name: str) -> list[Answer]:
        """The answers of one stream."""
        return [one for one in self.answers if self.streams[one.stream].name == name]

    def statuses(self) -> dict[str, int]:
        """How many of each status; `left` by the client, `none` without an answer."""
        names = {LEFT: "left", NONE: "none"}
        counts = Counter(names.get(one.status, str(one.status)) for one in self.answers)
        return dict(sorted(counts.items()))

    def unexpected(self) -> list[Answer]:
        """The answers whose status is none of those that the request expects."""
        found = []
        for one in self.answers:
            requests = self.streams[one.stream].requests
            request = requests[one.number % len(requests)]
            left = one.status == LEFT and request.leave_after_s is not None
            if one.status not in request.expects and not left:
                found.append(one)
        return found

    def refuse_unexpected(self) -> None:
        """Raise LoadError where an answer was not the one that was expected."""
        if wrong := self.unexpected():
            said = "; ".join(self.problems[:3])
            raise LoadError(f"{len(wrong)} of {len(self.answers)} answers were not as expected: {said}")

    @property
    def lag_s(self) -> float:
        """How late the generator itself was at worst: sent after due."""
        return max((one.sent - one.due for one in self.answers), default=0.0)


def latencies(answers: Iterable[Answer]) -> dict[str, float]:
    """p50, p99 and number of the latencies, in milliseconds."""
    values = [1e3 * one.latency_s for one in answers]
    if not values:
        return {"requests": 0}
    return {
        "p50_ms": digits(percentile(values, 50)),
        "p99_ms": digits(percentile(values, 99)),
        "requests": len(values),
    }


class Generator:
    """The generator's process; a context manager that ends it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.serve_sides.load"],
            cwd=ROOT,
            env=dict(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def run(
        self,
        address: tuple[str, int],
        streams: Sequence[Stream],
        *,
        window_s: float | None = None,
        patience_s: float = PATIENCE_S,
    ) -> Outcome:
        """Load a server; see `load`. Raises LoadError where the generator has ended."""
        plan = {
            "address": list(address),
            "window_s": window_s,
            "patience_s": patience_s,
            "streams": [one.plain() for one in streams],
        }
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(plan) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise LoadError(f"the load generator ended with status {self._process.wait()}")
        reply = json.loads(line)
        answers = tuple(Answer(**dict(zip(FIELDS, row, strict=True))) for row in reply["answers"])
        return Outcome(tuple(streams), answers, reply["seconds"], reply["cpu_s"], tuple(reply["problems"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
