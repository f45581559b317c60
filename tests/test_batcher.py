"""The queue before the model: order, splitting, lanes, cancellation, faults, bounds."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest

from app.batcher import RECOVERY_BATCHES, Batcher
from app.errors import DeadlineExceeded, Draining, InferenceFailed, QueueFull
from app.lanes import INTERACTIVE_TURNS, Batched, Lane
from app.observer import Observer
from model.embedding import OUTPUTS, Embedding, IntArray, Output
from tests.fakes import BOS, EOS, FakeModel

DENSE: frozenset[Output] = frozenset({"dense"})


def ids(*words: int) -> IntArray:
    return np.array([BOS, *words, EOS], np.int32)


@asynccontextmanager
async def batching(
    model: FakeModel, batch: int = 100, queue: int = 10_000, observer: Observer | None = None
) -> AsyncIterator[Batcher]:
    batcher = Batcher(model, max_batch_tokens=batch, max_queue_tokens=queue, observer=observer)
    batcher.start()
    try:
        yield batcher
    finally:
        model.gate.set()
        await batcher.close(5)


@asynccontextmanager
async def held(model: FakeModel, batcher: Batcher) -> AsyncIterator[asyncio.Task[object]]:
    """The model thread stands in a forward pass of one text while the block queues more."""
    model.gate.clear()
    first = asyncio.create_task(batcher.submit([ids(900)], DENSE))
    await asyncio.to_thread(model.entered.acquire, timeout=10)
    yield first
    model.gate.set()
    await first


async def queued(batcher: Batcher, tokens: int) -> None:
    """Wait until that many tokens are in the queue."""
    while batcher.queued_tokens != tokens:
        await asyncio.sleep(0.001)


def same(one: Sequence[Embedding], other: Sequence[Embedding]) -> None:
    assert len(one) == len(other)
    for ours, theirs in zip(one, other, strict=True):
        assert ours.tokens == theirs.tokens
        assert (ours.dense is None) == (theirs.dense is None)
        if ours.dense is not None and theirs.dense is not None:
            np.testing.assert_array_equal(ours.dense, theirs.dense)


def test_a_large_request_is_split_and_comes_back_in_order() -> None:
    async def run() -> None:
        model = FakeModel()
        texts = [ids(*range(10, 10 + length)) for length in (3, 9, 1, 5, 7, 2, 8, 4)]
        async with batching(model, batch=16) as batcher:
            answer = await batcher.submit(texts, DENSE, lane="bulk")
        assert all(sum(batch) <= 16 for batch in model.batches)
        assert len(model.batches) > 1
        same(answer.embeddings(), FakeModel().forward(texts, DENSE))

    asyncio.run(run())


def test_a_text_over_the_budget_gets_a_batch_of_its_own() -> None:
    async def run() -> None:
        model = FakeModel()
        async with batching(model, batch=8) as batcher:
            await batcher.submit([ids(5), ids(*range(10, 30)), ids(6)], DENSE)
        assert model.batches == [[3], [22], [3]]

    asyncio.run(run())


def test_waiting_requests_share_a_batch_and_each_gets_only_what_it_asked_for() -> None:
    async def run() -> None:
        model = FakeModel()
        async with batching(model) as batcher:
            async with held(model, batcher):
                one = asyncio.create_task(batcher.submit([ids(5)], {"dense"}))
                two = asyncio.create_task(batcher.submit([ids(6)], {"sparse", "colbert"}))
                await queued(batcher, 6)
            assert (await one).embeddings()[0].outputs == {"dense"}
            assert (await two).embeddings()[0].outputs == {"sparse", "colbert"}
        assert model.batches == [[3], [3, 3]]
        assert model.asked[1] == set(OUTPUTS)

    asyncio.run(run())


def test_normalised_and_raw_never_share_a_batch() -> None:
    async def run() -> None:
        model = FakeModel()
        async with batching(model) as batcher:
            async with held(model, batcher):
                one = asyncio.create_task(batcher.submit([ids(5)], DENSE, normalize=True))
                two = asyncio.create_task(batcher.submit([ids(5)], DENSE, normalize=False))
                await queued(batcher, 6)
            unit, raw = (await one).embeddings()[0].dense, (await two).embeddings()[0].dense
        assert unit is not None and raw is not None
        assert np.linalg.norm(unit) == pytest.approx(1, abs=1e-5)
        assert np.linalg.norm(raw) == pytest.approx(3, abs=1e-5)

    asyncio.run(run())


def test_interactive_goes_first_but_bulk_is_not_starved() -> None:
    async def run() -> list[str]:
        model = FakeModel()
        order: list[str] = []
        async with batching(model, batch=3) as batcher:

            async def one(lane: str, token: int) -> None:
                await batcher.submit([ids(token)], DENSE, lane="bulk" if lane == "bulk" else "interactive")
                order.append(lane)

            async with held(model, batcher):
                tasks = [asyncio.create_task(one("bulk", 50 + place)) for place in range(2)]
                await queued(batcher, 6)
                tasks += [asyncio.create_task(one("interactive", 70 + place)) for place in range(8)]
                await queued(batcher, 30)
            await asyncio.gather(*tasks)
        return order

    order = asyncio.run(run())
    # The text that held the model was interactive too, and counts as the first of its turns.
    assert order[: INTERACTIVE_TURNS - 1] == ["interactive"] * (INTERACTIVE_TURNS - 1)
    assert order.index("bulk") == INTERACTIVE_TURNS - 1
    assert order.count("bulk") == 2 and order.count("interactive") == 8


def test_a_cancelled_request_takes_its_queued_texts_along() -> None:
    async def run() -> None:
        model = FakeModel()
        async with batching(model, batch=3) as batcher:
            async with held(model, batcher):
                gone = asyncio.create_task(batcher.submit([ids(5), ids(6)], DENSE))
                stays = asyncio.create_task(batcher.submit([ids(7)], DENSE))
                await queued(batcher, 9)
                gone.cancel()
                await asyncio.gather(gone, return_exceptions=True)
                assert batcher.queued_tokens == 3
            await stays
        assert model.batches == [[3], [3]]

    asyncio.run(run())


def test_a_deadline_drops_the_work() -> None:
    async def run() -> None:
        model = FakeModel()
        async with batching(model) as batcher, held(model, batcher):
            with pytest.raises(DeadlineExceeded):
                await batcher.submit([ids(5)], DENSE, deadline=asyncio.get_running_loop().time() + 0.01)
            assert batcher.queued_tokens == 0
        assert model.batches == [[3]]

    asyncio.run(run())


def test_a_poisonous_text_fails_alone_and_the_thread_goes_on() -> None:
    async def run() -> None:
        model = FakeModel(poison={66})
        async with batching(model) as batcher:
            async with held(model, batcher):
                good = asyncio.create_task(batcher.submit([ids(5)], DENSE))
                bad = asyncio.create_task(batcher.submit([ids(6), ids(66)], DENSE))
                await queued(batcher, 9)
            assert (await good).embeddings()
            answer = await bad
            assert isinstance(answer.results[0], Embedding)
            with pytest.raises(InferenceFailed) as failure:
                answer.embeddings()
            assert "SECRET" not in str(failure.value)
            assert not batcher.last_forward_worked
            assert (await batcher.submit([ids(8)], DENSE)).embeddings()
            assert batcher.last_forward_worked
        # Together, then one by one, then the next request.
        assert model.batches == [[3], [3, 3, 3], [3], [3], [3], [3]]

    asyncio.run(run())


class Nonsense(FakeModel):
    """Returns what a broken engine might."""

    what = "missing"

    def forward(self, batch, outputs, *, normalize=True, between=None):  # type: ignore[no-untyped-def]
        found = super().forward(batch, outputs, normalize=normalize, between=between)
        if self.what == "missing":
            return found[:-1]
        return [Embedding(tokens=one.tokens, dense=np.full_like(one.dense, np.nan)) for one in found]


@pytest.mark.parametrize("what", ["missing", "nan"])
def test_results_that_are_no_results_fail_the_request(what: str) -> None:
    async def run() -> None:
        model = Nonsense()
        model.what = what
        async with batching(model) as batcher:
            with pytest.raises(InferenceFailed):
                (await batcher.submit([ids(5)], DENSE)).embeddings()

    asyncio.run(run())


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async def run() -> None:
        model = FakeModel()
        async with batching(model, queue=10) as batcher:
            async with held(model, batcher):
                waiting = asyncio.create_task(batcher.submit([ids(5), ids(6)], DENSE))
                await queued(batcher, 6)
                with pytest.raises(QueueFull) as refusal:
                    await batcher.submit([ids(1, 2, 3)], DENSE)
                assert refusal.value.retry_after_s is not None and refusal.value.retry_after_s >= 1
                fits = asyncio.create_task(batcher.submit([ids(1, 2)], DENSE))
                await queued(batcher, 10)
            await asyncio.gather(waiting, fits)
            # Nothing waits now: a request larger than the whole bound is let in.
            assert (await batcher.submit([ids(*range(10, 40))], DENSE)).embeddings()

    asyncio.run(run())


def test_closing_finishes_what_waits_and_refuses_what_comes() -> None:
    async def run() -> None:
        model = FakeModel()
        batcher = Batcher(model, max_batch_tokens=3, max_queue_tokens=100)
        batcher.start()
        async with held(model, batcher):
            waiting = asyncio.create_task(batcher.submit([ids(5), ids(6)], DENSE))
            await queued(batcher, 6)
            closing = asyncio.create_task(batcher.close(10))
            await asyncio.sleep(0)
            with pytest.raises(Draining):
                await batcher.submit([ids(9)], DENSE)
        await closing
        assert len((await waiting).embeddings()) == 2

    asyncio.run(run())


def test_closing_fails_the_callers_of_a_pass_that_hangs() -> None:
    async def run() -> None:
        model = FakeModel()
        batcher = Batcher(model, max_batch_tokens=3, max_queue_tokens=100)
        batcher.start()
        model.gate.clear()
        running = asyncio.create_task(batcher.submit([ids(5)], DENSE))
        await asyncio.to_thread(model.entered.acquire, timeout=10)
        assert batcher.busy_s > 0
        waiting = asyncio.create_task(batcher.submit([ids(6)], DENSE))
        await queued(batcher, 3)
        await batcher.close(0.01)
        for task in (running, waiting):
            with pytest.raises(Draining):
                await task
        model.gate.set()

    asyncio.run(run())


def test_no_texts_need_no_model() -> None:
    async def run() -> None:
        model = FakeModel(broken=True)
        async with batching(model) as batcher:
            assert (await batcher.submit([], DENSE)).embeddings() == []

    asyncio.run(run())


def test_a_text_that_several_wait_for_is_computed_once() -> None:
    async def run() -> None:
        model = FakeModel()
        async with batching(model) as batcher:
            async with held(model, batcher) as first:
                # One joins the text that is being computed; one needs more of it.
                joins = asyncio.create_task(batcher.submit([ids(900)], DENSE))
                more = asyncio.create_task(batcher.submit([ids(900)], {"dense", "sparse"}))
                twice = asyncio.create_task(batcher.submit([ids(5), ids(6), ids(5)], DENSE))
                other = asyncio.create_task(batcher.submit([ids(5)], {"colbert"}))
                raw = asyncio.create_task(batcher.submit([ids(5)], DENSE, normalize=False))
                await queued(batcher, 12)
            same((await joins).embeddings(), (await first).embeddings())  # type: ignore[attr-defined]
            assert (await more).embeddings()[0].outputs == {"dense", "sparse"}
            found = (await twice).embeddings()
            same(found, FakeModel().forward([ids(5), ids(6), ids(5)], DENSE))
            assert (await other).embeddings()[0].outputs == {"colbert"}
            length = (await raw).embeddings()[0].dense
            assert length is not None and np.linalg.norm(length) == pytest.approx(3, abs=1e-5)
            assert batcher.queued_tokens == 0
            # What was computed before is not kept.
            await batcher.submit([ids(5)], DENSE)
        assert model.batches == [[3], [3, 3, 3], [3], [3]]

    asyncio.run(run())


def test_a_text_outlives_the_request_that_brought_it() -> None:
    async def run() -> None:
        model = FakeModel()
        async with batching(model) as batcher:
            async with held(model, batcher):
                brings = asyncio.create_task(batcher.submit([ids(5), ids(6)], DENSE))
                await queued(batcher, 6)
                joins = asyncio.create_task(batcher.submit([ids(5)], DENSE))
                leaves = asyncio.create_task(batcher.submit([ids(6)], DENSE))
                late = asyncio.create_task(batcher.submit([ids(900)], DENSE))
                await asyncio.sleep(0.01)
                brings.cancel()
                leaves.cancel()
                await asyncio.gather(brings, leaves, return_exceptions=True)
                assert batcher.queued_tokens == 3
            same((await joins).embeddings(), FakeModel().forward([ids(5)], DENSE))
            same((await late).embeddings(), FakeModel().forward([ids(900)], DENSE))
        assert model.batches == [[3], [3]]

    asyncio.run(run())


@pytest.mark.parametrize("lane", ["interactive", "bulk"])
def test_requests_of_a_lane_take_turns(lane: Lane) -> None:
    async def run() -> list[str]:
        model = FakeModel()
        order: list[str] = []
        async with batching(model, batch=6) as batcher:

            async def one(name: str, texts: list[IntArray]) -> None:
                await batcher.submit(texts, DENSE, lane=lane)
                order.append(name)

            async with held(model, batcher):
                long = asyncio.create_task(one("long", [ids(10 + place) for place in range(8)]))
                await queued(batcher, 24)
                short = asyncio.create_task(one("short", [ids(50)]))
                await queued(batcher, 27)
            await asyncio.gather(long, short)
        assert model.batches[1:] == [[3, 3]] * 4 + [[3]]
        return order

    assert asyncio.run(run()) == ["short", "long"]


@asynccontextmanager
async def standing(
    model: FakeModel, batcher: Batcher, texts: list[IntArray]
) -> AsyncIterator[asyncio.Task[Batched]]:
    """The model thread stands at the beginning of a bulk pass over these texts."""
    model.gate.clear()
    bulk = asyncio.create_task(batcher.submit(texts, DENSE, lane="bulk"))
    await asyncio.to_thread(model.entered.acquire, timeout=10)
    yield bulk
    model.gate.set()
    same((await bulk).embeddings(), FakeModel().forward(texts, DENSE))


def test_a_query_is_served_between_the_parts_of_a_bulk_batch() -> None:
    async def run() -> None:
        model, order = FakeModel(parts=True), list[str]()
        async with batching(model) as batcher:
            texts = [ids(10 + place) for place in range(3)]
            async with standing(model, batcher, texts):
                query = asyncio.create_task(batcher.submit([ids(5)], DENSE))
                bad = asyncio.create_task(batcher.submit([ids(66)], DENSE))
                query.add_done_callback(lambda _: order.append("query"))
                await queued(batcher, 6)
                model.poison = {66}
            order.append("bulk")
            assert (await query).embeddings()
            with pytest.raises(InferenceFailed):
                (await bad).embeddings()
        assert order == ["query", "bulk"]
        assert model.batches == [[3, 3, 3], [3, 3], [3], [3]]

    asyncio.run(run())


def test_queries_that_never_end_do_not_stop_a_bulk_batch() -> None:
    async def run() -> None:
        model, order = FakeModel(parts=True), list[str]()
        async with batching(model, batch=9) as batcher:
            async with standing(model, batcher, [ids(10 + place) for place in range(3)]) as bulk:
                bulk.add_done_callback(lambda _: order.append("bulk"))
                queries = [
                    asyncio.create_task(batcher.submit([ids(100 + place, *range(300, 306))], DENSE))
                    for place in range(4 * INTERACTIVE_TURNS)
                ]
                for query in queries:
                    query.add_done_callback(lambda _: order.append("query"))
                await queued(batcher, 9 * len(queries))
            await asyncio.gather(*queries)
        # Two pauses, so many turns in each; and then the queries that were left.
        assert order.index("bulk") == 2 * INTERACTIVE_TURNS
        assert order.count("query") == len(queries)

    asyncio.run(run())


def test_what_does_not_fit_into_memory_is_done_in_halves() -> None:
    async def run() -> None:
        model = FakeModel(memory=7)
        async with batching(model, batch=40) as batcher:
            texts = [ids(10 + place) for place in range(10)]
            answer = await batcher.submit([*texts, ids(*range(50, 56))], DENSE)
            assert [isinstance(one, Embedding) for one in answer.results] == [True] * 10 + [False]
            assert "memory" in str(answer.results[-1])
            assert 2 <= batcher.batch_tokens <= 7
            assert all(sum(batch) <= 40 for batch in model.batches)
            # Later batches are small from the start, and grow again once memory suffices.
            model.batches.clear()
            small = batcher.batch_tokens
            await batcher.submit([ids(10 + place) for place in range(6)], DENSE)
            assert all(sum(batch) <= max(small, 3) for batch in model.batches)
            model.memory = 1000
            for place in range(6 * RECOVERY_BATCHES):
                await batcher.submit([ids(100 + place)], DENSE)
            assert batcher.batch_tokens == 40

    asyncio.run(run())


def test_only_want_of_memory_makes_batches_smaller() -> None:
    async def run() -> None:
        model = FakeModel(poison={66})
        async with batching(model, batch=40) as batcher:
            await batcher.submit([ids(5), ids(66), ids(7)], DENSE)
            assert batcher.batch_tokens == 40

    asyncio.run(run())


@dataclass
class Notes:
    """An observer that writes down what it is told."""

    waits: list[tuple[Lane, float]] = field(default_factory=list)
    batches: list[tuple[Lane, int, int]] = field(default_factory=list)
    failed: int = 0
    held_s: float = 0.0

    def waited(self, lane: Lane, seconds: float) -> None:
        self.waits.append((lane, seconds))

    def batch(self, lane: Lane, texts: int, tokens: int, seconds: float) -> None:
        assert seconds >= 0
        self.batches.append((lane, texts, tokens))

    def forward_failed(self) -> None:
        self.failed += 1

    def held(self, seconds: float) -> None:
        self.held_s += seconds


def test_batches_are_told_also_those_between_the_parts_of_another() -> None:
    async def run() -> None:
        model, notes = FakeModel(parts=True), Notes()
        async with batching(model, observer=notes) as batcher:
            async with standing(model, batcher, [ids(10 + place) for place in range(3)]):
                query = asyncio.create_task(batcher.submit([ids(5)], DENSE))
                await queued(batcher, 3)
            assert (await query).embeddings()
        assert notes.batches == [("interactive", 1, 3), ("bulk", 3, 9)]
        assert sorted(lane for lane, _ in notes.waits) == ["bulk", "interactive"]

    asyncio.run(run())


def test_failed_passes_are_told() -> None:
    async def run() -> None:
        model, notes = FakeModel(poison={66}, memory=9), Notes()
        async with batching(model, observer=notes) as batcher:
            await batcher.submit([ids(5), ids(66)], DENSE)
            assert notes.failed == 2  # together, then the one alone
            await batcher.submit([ids(1), ids(2), ids(3), ids(4)], DENSE)
            assert notes.failed == 3
            await batcher.submit([ids(*range(10, 20))], DENSE)
            assert notes.failed == 4
        assert notes.batches == [("interactive", 2, 6), ("interactive", 4, 12), ("interactive", 1, 12)]

    asyncio.run(run())


def test_waits_are_told_of_those_who_leave_and_of_those_who_need_not_wait() -> None:
    async def run() -> None:
        model, notes = FakeModel(), Notes()
        async with batching(model, observer=notes) as batcher:
            async with held(model, batcher):
                gone = asyncio.create_task(batcher.submit([ids(5)], DENSE, lane="bulk"))
                await queued(batcher, 3)
                gone.cancel()
                await asyncio.gather(gone, return_exceptions=True)
                assert [lane for lane, seconds in notes.waits if seconds > 0] == ["bulk"]
                # The text that is being computed right now.
                known = asyncio.create_task(batcher.submit([ids(900)], DENSE))
                await asyncio.sleep(0.01)
            await known
        assert ("interactive", 0.0) in notes.waits

    asyncio.run(run())


def test_answers_are_not_kept_until_the_collector_runs() -> None:
    async def run() -> None:
        async with batching(FakeModel()) as batcher:
            whole = await batcher.submit([ids(5), ids(6)], DENSE)
            vectors = [weakref.ref(one.dense) for one in whole.embeddings() if one.dense is not None]
            del whole
            # The model thread may still be on its way out of the pass.
            for _ in range(500):
                if all(vector() is None for vector in vectors):
                    break
                await asyncio.sleep(0.01)
            assert all(vector() is None for vector in vectors)

    gc.collect()
    gc.disable()
    try:
        asyncio.run(run())
    finally:
        gc.enable()
