"""What the batcher tells of its work to whoever counts it."""

from __future__ import annotations

from typing import Protocol

from app.lanes import Lane


class Observer(Protocol):
    """Called by event loops and by the model thread: quick, thread-safe, and never raising."""

    def waited(self, lane: Lane, seconds: float) -> None:
        """A request waited so long until a batch took its first text, or until it left."""

    def batch(self, lane: Lane, texts: int, tokens: int, seconds: float) -> None:
        """A batch is done, whether well or not; `seconds` is all that the model worked on it."""

    def forward_failed(self) -> None:
        """A forward pass raised, or gave what is no result."""

    def held(self, seconds: float) -> None:
        """A bulk batch has waited so long for searches that were under way."""


class Unobserved:
    """Nobody counts."""

    def waited(self, lane: Lane, seconds: float) -> None:
        """See `Observer`."""

    def batch(self, lane: Lane, texts: int, tokens: int, seconds: float) -> None:
        """See `Observer`."""

    def forward_failed(self) -> None:
        """See `Observer`."""

    def held(self, seconds: float) -> None:
        """See `Observer`."""
