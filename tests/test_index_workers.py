"""Threads of one search: order, errors, and work that nobody else does is done by whoever made it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from app.index.workers import WAITING, Workers


@pytest.fixture(params=[1, 2, 4])
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    made = Workers(request.param)
    yield made
    made.close()


def test_results_come_in_order(workers: Workers) -> None:
    def made() -> Iterator[Callable[[], int]]:
        for number in range(100):
            yield lambda number=number: number * number  # type: ignore[misc]

    assert workers.run_as_made(made()) == [number * number for number in range(100)]
    assert workers.run_as_made(iter(())) == []


def test_tasks_are_made_here_and_run_elsewhere_meanwhile() -> None:
    workers, here, ran = Workers(2), threading.get_ident(), threading.Event()

    def task() -> int:
        ran.set()
        return threading.get_ident()

    def made() -> Iterator[Callable[[], int]]:
        assert threading.get_ident() == here
        yield task
        assert ran.wait(20)  # while the next one is made
        yield threading.get_ident

    first, _ = workers.run_as_made(made())
    assert first != here
    workers.close()


def test_few_wait_where_others_are_busy() -> None:
    """What a search has read lies in memory until it is scored: never all of it."""
    workers, busy, free = Workers(2), threading.Event(), threading.Event()
    # Its caller waits until the other thread has begun: then nobody is left for anything else.
    tasks = [lambda: busy.wait(20), lambda: busy.set() or free.wait(20)]
    other = threading.Thread(target=lambda: workers.run(tasks))
    done = 0

    def task() -> None:
        nonlocal done
        done += 1

    def made() -> Iterator[Callable[[], None]]:
        for number in range(50):
            assert number - done <= WAITING
            yield task

    other.start()
    assert busy.wait(20)
    workers.run_as_made(made())
    assert done == 50
    free.set()
    other.join()
    workers.close()


def test_an_error_ends_it(workers: Workers) -> None:
    left = []

    def made() -> Iterator[Callable[[], None]]:
        yield lambda: None
        yield lambda: (_ for _ in ()).throw(ValueError("this one"))
        for number in range(1000):
            left.append(number)
            yield lambda: None

    with pytest.raises(ValueError, match="this one"):
        workers.run_as_made(made())
    assert len(left) < 100


def test_an_error_while_one_is_made_ends_it_too(workers: Workers) -> None:
    def made() -> Iterator[Callable[[], None]]:
        yield lambda: None
        raise KeyError("not made")

    with pytest.raises(KeyError):
        workers.run_as_made(made())


def test_after_the_end_whoever_is_at_work_does_it_all(workers: Workers) -> None:
    workers.close()
    assert workers.run_as_made(iter([lambda: 1, lambda: 2])) == [1, 2]
