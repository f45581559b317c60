"""Work in threads, which cannot be stopped: what becomes of it when its caller gives up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from threading import Lock
from typing import TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")


async def whole(work: Callable[[], T], limiter: anyio.CapacityLimiter) -> T:
    """Run `work` in a worker thread. A caller who is cancelled waits for work that has begun, else drops it.

    A thread cannot be stopped: without this, a deadline that passes would be told to the client while the
    write goes on behind its back.
    """
    lock = Lock()
    begun = dropped = False

    def run() -> T:
        nonlocal begun
        with lock:
            if dropped:
                raise RuntimeError("dropped before it began")  # to nobody: its future is cancelled
            begun = True
        return work()

    task = asyncio.ensure_future(anyio.to_thread.run_sync(run, limiter=limiter))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with lock:
            dropped = not begun
        if dropped:
            task.cancel()
        await asyncio.wait({task})
        _asked(task)
        raise


async def abandonable(work: Callable[[], T], *limiters: anyio.CapacityLimiter) -> T:
    """Run `work` in a worker thread. A caller who is cancelled leaves it alone, but its places stay taken.

    Were they free at once, requests that give up early would start threads without end.
    """
    with ExitStack() as taken:
        for limiter in limiters:
            await limiter.acquire_on_behalf_of(place := object())
            taken.callback(limiter.release_on_behalf_of, place)
        task = asyncio.ensure_future(anyio.to_thread.run_sync(work, limiter=anyio.CapacityLimiter(1)))
        places = taken.pop_all()
    task.add_done_callback(lambda _: places.close())
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_asked)
        raise


def _asked(task: asyncio.Task[object]) -> None:
    if not task.cancelled():
        task.exception()  # so that asyncio does not call it forgotten
