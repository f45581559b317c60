"""Work in a thread that is done to its end or not at all, whoever gives up waiting for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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
        if not task.cancelled():
            task.exception()  # asked for, so that asyncio does not call it forgotten
        raise
