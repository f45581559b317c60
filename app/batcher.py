"""The token-budget queue between many requests and the one thread that runs the model.

A batch is filled by tokens, not by texts; `app.lanes` says which texts are next. Between the parts of a
bulk batch the model thread serves whoever waits in the interactive lane, so that a query waits for one part
and not for a whole batch. A request that no longer wants its answer (client gone, deadline) takes its queued
texts along. It does not tokenise, and it does not sort by length: that is the model's business.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from app.errors import DeadlineExceeded, Draining, InferenceFailed, QueueFull
from app.lanes import INTERACTIVE_TURNS, Batched, Job, Lane, Lanes, Work
from app.observer import Observer, Unobserved
from app.ports import TextModel
from app.precedence import Ahead, Precedence
from model.embedding import Embedding, IntArray, Output

MAX_RETRY_AFTER_S = 60
RECOVERY_BATCHES = 64
"""After so many batches that had memory enough, a budget that was halved for want of it is doubled again."""
_SMOOTHING = 0.2  # weight of the newest batch in the running throughput
_log = logging.getLogger("trivec.batcher")

Result = Embedding | InferenceFailed


class Batcher:
    """Owns the model thread. `submit` is for event loops; `start` and `close` bracket its life."""

    def __init__(
        self,
        model: TextModel,
        *,
        max_batch_tokens: int,
        max_queue_tokens: int,
        observer: Observer | None = None,
    ) -> None:
        self._model = model
        self._observer = observer or Unobserved()
        self._max_batch_tokens = max_batch_tokens
        self._max_queue_tokens = max_queue_tokens
        self._lanes = Lanes()
        self._wake = threading.Condition()
        self._precedence = Precedence(self._wake)
        self._closed = False
        self._tokens_per_s: float | None = None
        self._last_forward_worked = False
        # Of the model thread alone, but for `_forward_since`, which others look at.
        self._forward_since: float | None = None
        self._budget = max_batch_tokens
        self._fitting = 0
        self._nested_s = 0.0
        # A daemon: a forward pass that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="trivec-model", daemon=True)

    def start(self) -> None:
        """Start the model thread; call once."""
        self._thread.start()

    @property
    def last_forward_worked(self) -> bool:
        """Whether the most recent forward pass returned sound results; False before the first."""
        return self._last_forward_worked

    @property
    def busy_s(self) -> float:
        """Seconds that the forward pass under way has taken so far; 0 when there is none."""
        since = self._forward_since
        return time.monotonic() - since if since is not None else 0.0

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait and that no batch has taken."""
        with self._wake:
            return self._lanes.tokens

    def waiting(self) -> dict[Lane, tuple[int, int]]:
        """Texts and their tokens that wait in each lane."""
        with self._wake:
            return {lane: self._lanes.depth(lane) for lane in self._lanes.jobs}

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch: the setting, or less while memory does not suffice for it."""
        return self._budget

    async def submit(
        self,
        ids: Sequence[IntArray],
        outputs: Collection[Output],
        *,
        lane: Lane = "interactive",
        normalize: bool = True,
        deadline: float | None = None,
        ahead: Ahead | None = None,
    ) -> Batched:
        """Embed texts given as token ids; a text whose forward pass fails has InferenceFailed in its place.

        `deadline` is a time of the running loop's clock; `ahead` is the search for which bulk work waits from
        the answer on, if the answer is the interactive lane's. Raises QueueFull, Draining, DeadlineExceeded.
        """
        if not ids:
            return Batched([], 0.0, 0.0)
        loop = asyncio.get_running_loop()
        job = Job(
            ids,
            frozenset(outputs),
            normalize,
            lane,
            loop,
            loop.create_future(),
            time.monotonic(),
            ahead,
        )
        self._enqueue(job)
        try:
            async with asyncio.timeout_at(deadline):
                return await job.future
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the model had answered") from None
        finally:
            with self._wake:
                self._lanes.drop(job)
            # Who found all of its texts under way already has waited for no batch.
            taken = job.started_at or (time.monotonic() if job.left else job.queued_at)
            self._observer.waited(lane, taken - job.queued_at)

    @contextmanager
    def going_ahead(self) -> Iterator[Ahead]:
        """Around a search for which bulk work waits once `submit` or `goes_ahead` has been told."""
        ahead = Ahead()
        try:
            yield ahead
        finally:
            with self._wake:
                self._precedence.ended(ahead)

    def goes_ahead(self, ahead: Ahead) -> None:
        """Have bulk work wait for a search that asks nothing of the model, or no more."""
        with self._wake:
            self._precedence.begun(ahead)

    def _enqueue(self, job: Job) -> None:
        with self._wake:
            if self._closed:
                raise Draining("the service is shutting down")
            waiting, wanted = self._lanes.tokens, self._lanes.cost(job)
            # A request larger than the whole bound is let in when nothing waits: else it never could be.
            if waiting and waiting + wanted > self._max_queue_tokens:
                raise QueueFull(
                    f"{waiting} tokens wait for the model, the limit is {self._max_queue_tokens}; try again",
                    retry_after_s=self._retry_after_s(waiting),
                )
            self._lanes.add(job)
            self._wake.notify()

    def _retry_after_s(self, waiting: int) -> int:
        if not self._tokens_per_s:
            return 1
        return min(MAX_RETRY_AFTER_S, max(1, math.ceil(waiting / self._tokens_per_s)))

    async def close(self, timeout_s: float) -> None:
        """Take no more work, finish what waits within the time, then fail what is left with Draining."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, timeout_s)
        with self._wake:
            left = self._lanes.waiting()  # those of a pass that hangs too: its callers must not
            for job in left:
                self._lanes.drop(job)
        for job in left:
            _tell(job, Draining("the service shut down before the model had answered"))

    def _run(self) -> None:
        while batch := self._next_batch():
            self._serve(batch)

    def _next_batch(self) -> list[Work]:
        """Wait for work; an empty list means closed and drained."""
        with self._wake:
            while self._lanes.choose() is None and not self._closed:
                self._wake.wait()
            return self._take(None)

    def _take(self, lane: Lane | None) -> list[Work]:
        """The next batch, marked as begun. The lock is held."""
        batch = self._lanes.take(self._budget, lane)
        now = time.monotonic()
        for work in batch:
            for job, _ in work.waiters:
                job.started_at = job.started_at or now
        return batch

    def _serve(self, batch: list[Work]) -> None:
        nested, self._nested_s, began = self._nested_s, 0.0, time.monotonic()
        try:
            results = self._results(batch)
            took, tokens = time.monotonic() - began - self._nested_s, sum(work.ids.size for work in batch)
            self._observe(tokens, took)
            self._observer.batch(batch[0].lane, len(batch), tokens, took)
            self._deliver(batch, results, took)
        except Exception as error:  # noqa: BLE001 - a defect in delivery must not end the only model thread
            _log.error("delivery of a batch failed: %s", type(error).__name__)
            with self._wake:
                waiting = {job for work in batch for job, _ in work.waiters}
                self._forget(batch)
            for job in waiting:
                _tell(job, InferenceFailed("the model could not answer this request"))
        finally:
            self._nested_s = nested + time.monotonic() - began

    def _serve_interactive(self) -> None:
        """Serve who waits in the interactive lane, for some turns; called between parts of a bulk batch.

        Then wait for the searches that are under way with what they were served.
        """
        for _ in range(INTERACTIVE_TURNS):
            with self._wake:
                held_s = self._precedence.wait(lambda: bool(self._lanes.jobs["interactive"]))
                batch = self._take("interactive")
            if held_s:
                self._nested_s += held_s
                self._observer.held(held_s)
            if not batch:
                break
            self._serve(batch)
        self._forward_since = time.monotonic()  # the bulk pass gets on: it does not hang

    def _results(self, batch: Sequence[Work]) -> list[Result]:
        """A result for each text: in halves where memory does not suffice, one by one where a pass fails."""
        try:
            found = self._forward(batch)
        except MemoryError:
            self._observer.forward_failed()
            return self._halved(batch)
        if len(batch) > 1 and isinstance(found[0], InferenceFailed):
            # One bad text fails the whole pass: alone, each shows whether it is the one.
            return [self._results([work])[0] for work in batch]
        self._fitted()
        return found

    def _halved(self, batch: Sequence[Work]) -> list[Result]:
        tokens = sum(work.ids.size for work in batch)
        self._fitting = 0
        if len(batch) == 1:
            _log.error("a text of %d tokens does not fit into memory", tokens)
            self._last_forward_worked = False
            return [InferenceFailed("there is not enough memory for a text of this length")]
        self._budget = max(2, min(self._budget, tokens) // 2)
        _log.warning("a batch of %d tokens did not fit into memory; from now on %d", tokens, self._budget)
        middle = len(batch) // 2
        return self._results(batch[:middle]) + self._results(batch[middle:])

    def _fitted(self) -> None:
        self._fitting += 1
        if self._fitting >= RECOVERY_BATCHES and self._budget < self._max_batch_tokens:
            self._fitting = 0
            self._budget = min(2 * self._budget, self._max_batch_tokens)

    def _forward(self, batch: Sequence[Work]) -> list[Result]:
        """One forward pass; where it raises or returns nonsense, InferenceFailed for each text.

        MemoryError is the one error that says nothing of the texts.
        """
        outputs = frozenset[Output]().union(*(work.outputs for work in batch))
        between = self._serve_interactive if batch[0].lane == "bulk" else None
        self._forward_since = time.monotonic()
        try:
            found = self._model.forward(
                [work.ids for work in batch], outputs, normalize=batch[0].normalize, between=between
            )
            _check(found, len(batch), outputs)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the engine raises is this batch's fault only
            self._last_forward_worked = False
            self._observer.forward_failed()
            _log.error("forward pass over %d texts failed: %s", len(batch), type(error).__name__)
            return [InferenceFailed("the model could not answer this request") for _ in batch]
        finally:
            self._forward_since = None
        self._last_forward_worked = True
        return list(found)

    def _observe(self, tokens: int, took_s: float) -> None:
        rate = tokens / max(took_s, 1e-6)
        old = self._tokens_per_s
        self._tokens_per_s = rate if old is None else (1 - _SMOOTHING) * old + _SMOOTHING * rate

    def _deliver(self, batch: list[Work], results: Sequence[Result], took_s: float) -> None:
        finished: list[Job] = []
        with self._wake:
            for job in {job for work in batch for job, _ in work.waiters}:
                job.inference_s += took_s
            for work, result in zip(batch, results, strict=True):
                for job, position in work.waiters:
                    job.results[position] = _only(result, job.outputs)
                    job.left -= 1
                    if not job.left:
                        finished.append(job)
                        if job.ahead is not None and job.lane == "interactive":
                            self._precedence.begun(job.ahead)
            self._forget(batch)
        for job in finished:
            _tell(job, _answer(job))

    def _forget(self, batch: Sequence[Work]) -> None:
        """The batch is no longer running. The lock is held."""
        for work in batch:
            self._lanes.done(work)


def _answer(job: Job) -> Batched:
    waited = (job.started_at or job.queued_at) - job.queued_at
    return Batched([one for one in job.results if one is not None], waited * 1000, job.inference_s * 1000)


def _tell(job: Job, outcome: Batched | Exception) -> None:
    """Hand an outcome to the waiter's own loop; a waiter that has gone hears nothing."""

    def settle() -> None:
        if job.future.done():
            return
        if isinstance(outcome, Batched):
            job.future.set_result(outcome)
        else:
            job.future.set_exception(outcome)

    try:
        job.loop.call_soon_threadsafe(settle)
    except RuntimeError:
        _log.debug("an event loop closed before its answer came")


def _check(found: Sequence[Embedding], wanted: int, outputs: Iterable[Output]) -> None:
    """Raise ValueError unless there is a finite result of every output for every text."""
    if len(found) != wanted:
        raise ValueError(f"{len(found)} results for {wanted} texts")
    for one in found:
        for name in outputs:
            part = getattr(one, name)
            values = part.values if name == "sparse" and part is not None else part
            if values is None or not bool(np.isfinite(values).all()):
                raise ValueError(f"the {name} output is missing or not finite")


def _only(result: Result, outputs: frozenset[Output]) -> Result:
    """An embedding without the outputs that another request of the same batch asked for."""
    if isinstance(result, InferenceFailed) or result.outputs == outputs:
        return result
    return replace(
        result,
        dense=result.dense if "dense" in outputs else None,
        sparse=result.sparse if "sparse" in outputs else None,
        colbert=result.colbert if "colbert" in outputs else None,
    )
