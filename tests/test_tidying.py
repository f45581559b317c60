"""Memory that goes back to the system while the service runs. The C library's part needs glibc."""

from __future__ import annotations

import asyncio
import platform
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from app import tidying
from tests.server import ROOT

GLIBC = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="needs glibc: other C libraries' malloc is left as it is"
)

LARGE_HEAP = """
import re
from pathlib import Path
from model.heap import release_heap

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10

blocks = [bytearray(b"x" * 60_000) for _ in range(4_000)]
held = blocks[::100]  # keeps malloc from giving all back by itself
full = resident()
del blocks
kept = resident()
release_heap()
print(full, kept, resident())
"""

MANY_THREADS = """
import ctypes, re, sys, threading
from model.heap import limit_arenas

if int(sys.argv[1]):
    limit_arenas(int(sys.argv[1]))
together = threading.Barrier(20)

def work():
    together.wait()
    blocks = [bytearray(5_000) for _ in range(50)]
    together.wait()

threads = [threading.Thread(target=work) for _ in range(20)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
libc = ctypes.CDLL(None)
libc.open_memstream.restype = ctypes.c_void_p
text, size = ctypes.c_char_p(), ctypes.c_size_t()
stream = ctypes.c_void_p(libc.open_memstream(ctypes.byref(text), ctypes.byref(size)))
libc.malloc_info(0, stream)
libc.fclose(stream)
print(len(re.findall(b"<heap nr", text.value)))
"""


def numbers(code: str, *arguments: str) -> list[int]:
    command = [sys.executable, "-c", code, *arguments]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [int(one) for one in output.split()]


@GLIBC
def test_free_memory_between_what_is_held_goes_back() -> None:
    full, kept, left = numbers(LARGE_HEAP)
    assert full > 200
    assert kept > full / 2, "malloc gave it back by itself: this shows nothing"
    assert left < full / 4


@GLIBC
@pytest.mark.parametrize(("cores", "arenas"), [(1, 2), (3, 3)])
def test_threads_share_arenas(cores: int, arenas: int) -> None:
    assert numbers(MANY_THREADS, str(cores)) == [arenas]
    (unlimited,) = numbers(MANY_THREADS, "0")
    assert unlimited > 3


def counted(monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> int:
    """How often memory is given back while `work` is done twenty times."""
    calls: list[None] = []
    monkeypatch.setattr(tidying, "release_heap", lambda: calls.append(None))

    async def run() -> None:
        task = asyncio.create_task(tidying.give_memory_back(every_s=0.02))
        for _ in range(20):
            work()
            await asyncio.sleep(0.03)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    return len(calls)


def test_a_service_that_rests_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert counted(monkeypatch, lambda: None) == 0


def test_a_service_that_works_gives_back_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        until = time.process_time() + tidying.WORKED_S
        while time.process_time() < until:
            pass

    assert counted(monkeypatch, work) >= 5
