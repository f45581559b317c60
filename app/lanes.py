"""The two queues before the model, and which texts make the next batch; no threads, no model.

While both lanes wait, `interactive` goes first, and after `INTERACTIVE_TURNS` such batches `bulk` gets
one. Lanes never share a batch: a query of ten tokens must not wait for the sixteen thousand that a
bulk upload would add to it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from app.errors import InferenceFailed
from model.embedding import Embedding, IntArray, Output

Lane = Literal["interactive", "bulk"]

INTERACTIVE_TURNS = 4
"""Interactive batches in a row while bulk work waits; then one bulk batch."""


@dataclass(frozen=True, slots=True)
class Batched:
    """What a request got: results in its order, and the milliseconds it waited and computed."""

    results: list[Embedding | InferenceFailed]
    queue_ms: float
    inference_ms: float

    def embeddings(self) -> list[Embedding]:
        """All embeddings; raises the first InferenceFailed where a text has none."""
        good = [one for one in self.results if isinstance(one, Embedding)]
        if len(good) == len(self.results):
            return good
        raise next(one for one in self.results if isinstance(one, InferenceFailed))


@dataclass(slots=True, eq=False)
class Job:
    """One submit; all but `future` is touched under the batcher's lock only."""

    ids: Sequence[IntArray]
    outputs: frozenset[Output]
    normalize: bool
    lane: Lane
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Batched]
    queued_at: float
    results: list[Embedding | InferenceFailed | None]
    next: int = 0  # position of the first text that no batch has taken
    done: int = 0
    started_at: float | None = None
    inference_s: float = 0.0
    gone: bool = False

    def waiting_tokens(self) -> int:
        """Tokens of the texts that no batch has taken."""
        return sum(one.size for one in self.ids[self.next :])


@dataclass(frozen=True, slots=True)
class Item:
    job: Job
    position: int

    @property
    def ids(self) -> IntArray:
        """The text's token ids."""
        return self.job.ids[self.position]


@dataclass(slots=True)
class Lanes:
    """The two queues and whose turn it is; not thread-safe by itself."""

    jobs: dict[Lane, deque[Job]] = field(default_factory=lambda: {"interactive": deque(), "bulk": deque()})
    tokens: int = 0
    in_a_row: int = 0

    def add(self, job: Job) -> None:
        """Queue a request's texts."""
        self.jobs[job.lane].append(job)
        self.tokens += job.waiting_tokens()

    def drop(self, job: Job) -> None:
        """Forget the texts of a request that no batch has taken; harmless when there are none."""
        if not job.gone and job in self.jobs[job.lane]:
            self.jobs[job.lane].remove(job)
            self.tokens -= job.waiting_tokens()
        job.gone = True

    def choose(self) -> Lane | None:
        """The lane whose turn it is; None where nothing waits."""
        if not self.jobs["interactive"]:
            return "bulk" if self.jobs["bulk"] else None
        if self.jobs["bulk"] and self.in_a_row >= INTERACTIVE_TURNS:
            return "bulk"
        return "interactive"

    def take(self, budget: int) -> list[Item]:
        """The next batch: at least one text, then more of the same lane and normalisation in order."""
        lane = self.choose()
        if lane is None:
            return []
        self.in_a_row = self.in_a_row + 1 if lane == "interactive" else 0
        batch: list[Item] = []
        left = budget
        normalize = self.jobs[lane][0].normalize
        for job in list(self.jobs[lane]):
            if job.normalize != normalize:
                continue
            while job.next < len(job.ids) and (not batch or job.ids[job.next].size <= left):
                left -= job.ids[job.next].size
                batch.append(Item(job, job.next))
                job.next += 1
            if job.next < len(job.ids):
                break  # its next text does not fit, and nobody overtakes within a lane
            self.jobs[lane].remove(job)
        self.tokens -= sum(item.ids.size for item in batch)
        return batch
