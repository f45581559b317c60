"""The token-budget queue between many requests and the one thread that runs the model.

A batch is filled by tokens, not by texts; `app.lanes` says which texts are next.
A request that no longer wants its answer (client gone, deadline) takes its queued texts along.
It does not tokenise, and it does not sort by length: that is the model's business.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

import numpy as np

from app.errors import DeadlineExceeded, Draining, InferenceFailed, QueueFull
from app.lanes import Batched, Item, Job, Lane, Lanes
from app.observer import Observer, Unobserved
from app.ports import TextModel
from model.embedding import Embedding, IntArray, Output

MAX_RETRY_AFTER_S = 60
_SMOOTHING = 0.2  # weight of the newest batch in the running throughput
_log = logging.getLogger("trivec.batcher")


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
        self._closed = False
        self._tokens_per_s: float | None = None
        self._last_forward_worked = False
        self._forward_since: float | None = None
        self._running: list[Item] = []
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
            jobs = {lane: list(found) for lane, found in self._lanes.jobs.items()}
        # Counted without the lock, which would hold up all who submit: a batch taken meanwhile is half seen.
        return {
            lane: (
                sum(len(job.ids) - job.next for job in found),
                sum(job.waiting_tokens() for job in found),
            )
            for lane, found in jobs.items()
        }

    async def submit(
        self,
        ids: Sequence[IntArray],
        outputs: Collection[Output],
        *,
        lane: Lane = "interactive",
        normalize: bool = True,
        deadline: float | None = None,
    ) -> Batched:
        """Embed texts given as token ids; a text whose forward pass fails has InferenceFailed in its place.

        `deadline` is a time of the running loop's clock. Raises QueueFull, Draining, DeadlineExceeded.
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
            [None] * len(ids),
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
            self._observer.waited(lane, (job.started_at or time.monotonic()) - job.queued_at)

    def _enqueue(self, job: Job) -> None:
        with self._wake:
            if self._closed:
                raise Draining("the service is shutting down")
            waiting, wanted = self._lanes.tokens, job.waiting_tokens()
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
            left = {job for lane in self._lanes.jobs.values() for job in lane}
            left.update(item.job for item in self._running)  # a pass that hangs: its callers must not
            for job in left:
                self._lanes.drop(job)
        for job in left:
            _tell(job, Draining("the service shut down before the model had answered"))

    def _run(self) -> None:
        while batch := self._next_batch():
            try:
                self._serve(batch)
            except Exception as error:  # noqa: BLE001 - a defect in delivery must not end the only model thread
                _log.error("delivery of a batch failed: %s", type(error).__name__)
                for job in {item.job for item in batch}:
                    _tell(job, InferenceFailed("the model could not answer this request"))

    def _next_batch(self) -> list[Item]:
        """Wait for work; an empty list means closed and drained."""
        with self._wake:
            while self._lanes.choose() is None and not self._closed:
                self._wake.wait()
            self._running = batch = self._lanes.take(self._max_batch_tokens)
            now = time.monotonic()
            for item in batch:
                item.job.started_at = item.job.started_at or now
            return batch

    def _serve(self, batch: list[Item]) -> None:
        began = time.monotonic()
        self._forward_since = began
        try:
            results = self._forward(batch)
            if len(batch) > 1 and isinstance(results[0], InferenceFailed):
                # One bad text fails the whole pass: alone, each shows whether it is the one.
                results = [self._forward([item])[0] for item in batch]
        finally:
            self._forward_since = None
        took, tokens = time.monotonic() - began, sum(item.ids.size for item in batch)
        self._observe(tokens, took)
        self._observer.batch(batch[0].job.lane, len(batch), tokens, took)
        self._deliver(batch, results, took)

    def _forward(self, batch: Sequence[Item]) -> list[Embedding | InferenceFailed]:
        """One forward pass; where it raises or returns nonsense, InferenceFailed for each text."""
        outputs = frozenset[Output]().union(*(item.job.outputs for item in batch))
        try:
            found = self._model.forward(
                [item.ids for item in batch], outputs, normalize=batch[0].job.normalize
            )
            _check(found, len(batch), outputs)
        except Exception as error:  # noqa: BLE001 - whatever the engine raises is this batch's fault only
            self._last_forward_worked = False
            self._observer.forward_failed()
            _log.error("forward pass over %d texts failed: %s", len(batch), type(error).__name__)
            return [InferenceFailed("the model could not answer this request") for _ in batch]
        self._last_forward_worked = True
        return [_only(one, item.job.outputs) for one, item in zip(found, batch, strict=True)]

    def _observe(self, tokens: int, took_s: float) -> None:
        rate = tokens / max(took_s, 1e-6)
        old = self._tokens_per_s
        self._tokens_per_s = rate if old is None else (1 - _SMOOTHING) * old + _SMOOTHING * rate

    def _deliver(
        self, batch: list[Item], results: Sequence[Embedding | InferenceFailed], took_s: float
    ) -> None:
        finished: list[Job] = []
        with self._wake:
            for job in {item.job for item in batch}:
                job.inference_s += took_s
            for item, result in zip(batch, results, strict=True):
                item.job.results[item.position] = result
                item.job.done += 1
                if item.job.done == len(item.job.ids):
                    finished.append(item.job)
        for job in finished:
            _tell(job, _answer(job))


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


def _only(embedding: Embedding, outputs: frozenset[Output]) -> Embedding:
    """The embedding without the outputs that another request of the same batch asked for."""
    if embedding.outputs == outputs:
        return embedding
    return replace(
        embedding,
        dense=embedding.dense if "dense" in outputs else None,
        sparse=embedding.sparse if "sparse" in outputs else None,
        colbert=embedding.colbert if "colbert" in outputs else None,
    )
