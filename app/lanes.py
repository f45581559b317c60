"""The two queues before the model, and which texts make the next batch; no threads, no model.

While both lanes wait, `interactive` goes first, and after `INTERACTIVE_TURNS` such batches `bulk` gets
one. Lanes never share a batch: a query of ten tokens must not wait for the thousands that a bulk upload
would add to it. Within a lane requests take turns, a text each, so that a short one is not stuck behind a
long one. A text that several requests wait for is computed once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from app.errors import InferenceFailed
from app.precedence import Ahead
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
    ahead: Ahead | None = None
    """The search that goes on with the answer, ahead of bulk work."""
    results: list[Embedding | InferenceFailed | None] = field(default_factory=list)
    left: int = 0
    """Results that are missing."""
    works: deque[Work] = field(default_factory=deque)
    """Texts that no batch has taken, and that are taken when it is this request's turn."""
    waits_for: list[Work] = field(default_factory=list)
    """All of its texts, also those that another request's turn brings."""
    started_at: float | None = None
    inference_s: float = 0.0
    gone: bool = False

    def __post_init__(self) -> None:
        self.results = [None] * len(self.ids)
        self.left = len(self.ids)


@dataclass(slots=True, eq=False)
class Work:
    """A text to compute once, and the places where its embedding is awaited."""

    ids: IntArray
    normalize: bool
    lane: Lane
    outputs: frozenset[Output]
    waiters: list[tuple[Job, int]]

    @property
    def key(self) -> Key:
        """What it is known by among those that wait."""
        return self.lane, self.normalize, self.ids.tobytes()


Key = tuple[Lane, bool, bytes]


@dataclass(slots=True)
class Lanes:
    """The two queues and whose turn it is; not thread-safe by itself."""

    jobs: dict[Lane, deque[Job]] = field(default_factory=lambda: {"interactive": deque(), "bulk": deque()})
    tokens: int = 0
    """Tokens that wait, in both lanes."""
    in_a_row: int = 0
    _queued: dict[Key, Work] = field(default_factory=dict)
    _running: dict[tuple[bool, bytes], Work] = field(default_factory=dict)

    def depth(self, lane: Lane) -> tuple[int, int]:
        """Texts and tokens that wait in a lane."""
        sizes = [work.ids.size for job in self.jobs[lane] for work in job.works]
        return len(sizes), sum(sizes)

    def cost(self, job: Job) -> int:
        """Tokens that a request would add to the queue: texts that others wait for add none."""
        fresh = {ids.tobytes(): ids.size for ids in job.ids if self._known(job, ids.tobytes()) is None}
        return sum(fresh.values())

    def add(self, job: Job) -> None:
        """Queue a request's texts."""
        for position, ids in enumerate(job.ids):
            work = self._known(job, ids.tobytes())
            if work is None:
                work = Work(ids, job.normalize, job.lane, job.outputs, [])
                self._queued[work.key] = work
                job.works.append(work)
                self.tokens += ids.size
            # One that is being computed has all the outputs already, see `_known`.
            work.outputs |= job.outputs
            work.waiters.append((job, position))
            job.waits_for.append(work)
        if job.works:
            self.jobs[job.lane].append(job)

    def _known(self, job: Job, raw: bytes) -> Work | None:
        running = self._running.get((job.normalize, raw))
        if running is not None and job.outputs <= running.outputs:
            return running
        return self._queued.get((job.lane, job.normalize, raw))

    def drop(self, job: Job) -> None:
        """Forget what a request waits for; texts that others wait for too become theirs to bring."""
        if job.gone:
            return
        job.gone = True
        if not job.left:
            return
        own, job.works = job.works, deque()
        if own:
            self.jobs[job.lane].remove(job)
        for work in job.waits_for:
            work.waiters = [one for one in work.waiters if one[0] is not job]
        for work in own:
            if not work.waiters:
                del self._queued[work.key]
                self.tokens -= work.ids.size
                continue
            heir = work.waiters[0][0]
            if not heir.works:
                self.jobs[heir.lane].append(heir)
            heir.works.append(work)

    def choose(self) -> Lane | None:
        """The lane whose turn it is; None where nothing waits."""
        if not self.jobs["interactive"]:
            return "bulk" if self.jobs["bulk"] else None
        if self.jobs["bulk"] and self.in_a_row >= INTERACTIVE_TURNS:
            return "bulk"
        return "interactive"

    def take(self, budget: int, lane: Lane | None = None) -> list[Work]:
        """The next batch, of that lane or of the one whose turn it is: at least one text, if any waits."""
        if lane is None and (lane := self.choose()) is None:
            return []
        queue = self.jobs[lane]
        if not queue:
            return []
        self.in_a_row = self.in_a_row + 1 if lane == "interactive" else 0
        batch: list[Work] = []
        normalize, others = queue[0].normalize, list[Job]()
        while queue:
            job = queue.popleft()
            if job.normalize != normalize:
                others.append(job)
                continue
            if batch and job.works[0].ids.size > budget:
                queue.appendleft(job)  # nobody overtakes: it is the first of the next batch
                break
            work = job.works.popleft()
            budget -= work.ids.size
            batch.append(work)
            if job.works:
                queue.append(job)
        queue.extendleft(reversed(others))
        for work in batch:
            del self._queued[work.key]
            self._running[work.normalize, work.ids.tobytes()] = work
            self.tokens -= work.ids.size
        return batch

    def waiting(self) -> set[Job]:
        """The requests that wait for a text, be it computed or not yet."""
        works = (*self._queued.values(), *self._running.values())
        return {job for work in works for job, _ in work.waiters}

    def done(self, work: Work) -> None:
        """A text is no longer being computed: whoever comes with it now has it computed again."""
        # It and its requests point at each other: in that cycle their answers would be kept until Python's
        # collector runs, which counts objects and does not see that each of these holds megabytes.
        work.waiters = []
        at = work.normalize, work.ids.tobytes()
        if self._running.get(at) is work:
            del self._running[at]
