"""Memory that answers needed for a while goes back to the system while the service runs."""

from __future__ import annotations

import asyncio
import time

import anyio.to_thread

from model.heap import release_heap

EVERY_S = 10.0
WORKED_S = 0.1
"""Seconds of processor time since the last time, below which there is nothing to give back."""


async def give_memory_back(every_s: float = EVERY_S) -> None:
    """Until cancelled, see to it now and then; a service that rests is left alone."""
    worked_s = time.process_time()
    while True:
        await asyncio.sleep(every_s)
        if time.process_time() - worked_s >= WORKED_S:
            await anyio.to_thread.run_sync(release_heap)
            worked_s = time.process_time()
