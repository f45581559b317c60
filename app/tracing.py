"""Where the time of a request went, as spans; nothing at all unless OpenTelemetry is installed and asked for.

A span holds names, counts and times, as a log line does: never text, ids of documents, paths as they were
sent, or the words of an exception.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from starlette.types import Scope

from app.settings import traces_wanted

_log = logging.getLogger("trivec.tracing")

Fact = str | int | float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a request's own span says in the end."""

    method: str
    route: str
    status: int
    code: str
    """Of the error; empty where there is none."""
    facts: dict[str, Fact]


class RequestSpan(Protocol):
    """The span of a request under way."""

    @property
    def trace_id(self) -> str | None:
        """32 hex digits, the caller's own where it sent some; None without tracing."""

    @property
    def sampled(self) -> bool:
        """Whether the trace is kept."""

    def finish(self, outcome: Outcome) -> None:
        """Say how it ended; the span itself ends with its block."""


class Tracing(Protocol):
    """Makes spans. Those of `span` and `interval` belong to the request in whose context they are made, in
    worker threads too; outside of any request there are none.
    """

    def open(self) -> None:
        """Get ready, before the first request."""

    def close(self, timeout_s: float) -> None:
        """Hand over what is left, within the time. Blocks."""

    def request(self, scope: Scope) -> AbstractContextManager[RequestSpan]:
        """Around a request; a trace that the client has begun goes on."""

    def span(self, name: str, **facts: Fact) -> AbstractContextManager[None]:
        """Around a part of a request."""

    def interval(self, name: str, began: float, ended: float, **facts: Fact) -> None:
        """A part that is over, by `time.monotonic`."""


class _NoSpan:
    trace_id: str | None = None
    sampled = False

    def finish(self, outcome: Outcome) -> None:
        """Nobody listens."""


class Untraced:
    """Fits `Tracing` and does nothing."""

    def open(self) -> None:
        """See `Tracing`."""

    def close(self, timeout_s: float) -> None:
        """See `Tracing`."""

    @contextmanager
    def request(self, scope: Scope) -> Iterator[RequestSpan]:
        """See `Tracing`."""
        yield _NoSpan()

    def span(self, name: str, **facts: Fact) -> AbstractContextManager[None]:
        """See `Tracing`."""
        return nullcontext()

    def interval(self, name: str, began: float, ended: float, **facts: Fact) -> None:
        """See `Tracing`."""


def configured_tracing(version: str) -> Tracing:
    """Tracing as OpenTelemetry's own variables want it; its packages are imported only then."""
    if not traces_wanted():
        return Untraced()
    try:
        from app.otel import exporting
    except ImportError:
        _log.warning("OTEL_* variables ask for traces, which need the extra: pip install 'trivec[otel]'")
        return Untraced()
    return exporting(version)
