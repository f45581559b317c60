"""The index's work by name, so that whoever opens it can time it; the index itself counts nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

Stage = Literal["filter", "candidates", "scoring", "reading"]
"""Parts of a search: what the filter allows, the legs' candidates, all true scores, texts of the hits."""
Change = Literal["upsert", "delete"]
"""From the wait for one's turn until it is durable and searchable."""
Upkeep = Literal["seal", "merge"]
"""A segment written; see `upkeep.py`."""
Work = Literal["search"] | Stage | Change | Upkeep

Timed = Callable[[Work], AbstractContextManager[None]]
"""Gives what the named work is done in: a search around its stages, all in the caller's own thread."""


def untimed(work: Work) -> AbstractContextManager[None]:
    """Nobody wants to know."""
    return nullcontext()
