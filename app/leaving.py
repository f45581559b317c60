"""How a process ends for certain: by itself in good time, and by force where something hangs."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from typing import NoReturn

_SO_ATTACH_FILTER = 26  # Linux's number; Python has no name for it
# A BPF program over a TCP segment: load byte 13, the flags; with SYN among them return 0 bytes, else all.
_NO_SYN = (0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF)


class Watchdog:
    """Ends the process when so many seconds have passed since `wake`, which a signal's handler may call."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._others = set(threading.enumerate())
        # A pipe, for a handler must take no lock: what it has interrupted may hold it.
        self._waits, self._wakes = os.pipe()
        self._thread = threading.Thread(target=self._watch, name="trivec-watchdog", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """The process is to end."""
        os.write(self._wakes, b".")

    def _watch(self) -> None:
        os.read(self._waits, 1)
        time.sleep(self._limit_s)
        os.write(2, b"trivec: something hangs; the process ends without waiting for it\n")
        end(1)

    def end_if_threads_hang(self, status: int) -> None:
        """End the process here where threads are left: Python would wait for them, or fall over them."""
        if set(threading.enumerate()) - self._others - {self._thread}:
            end(status)


def end_with_input() -> None:
    """End the process when its standard input does: a pipe that the parent holds while it lives."""

    def watch() -> None:
        # Not through sys.stdin, whose lock this thread would hold when the process ends.
        while os.read(0, 1):
            pass
        end(1)

    threading.Thread(target=watch, name="trivec-parent", daemon=True).start()


def end(status: int) -> NoReturn:
    """End the process now. What is acknowledged is on the disk already."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, RuntimeError):  # the last: a signal has come while one was written
            stream.flush()
    os._exit(status)


def let_nobody_in(listening: int) -> None:
    """Have the system drop attempts to connect, so that nobody comes between the last accept and the close.

    Who has begun to connect gets through. A client's system tries again after a second, and is refused then.
    Does nothing where it cannot be done: the gap is some microseconds then, in which a client is taken in by
    the system and by nobody else.
    """
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in _NO_SYN))
    with suppress(OSError), socket.socket(fileno=os.dup(listening)) as door:
        length = struct.pack("HP", len(_NO_SYN), ctypes.addressof(program))
        door.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, length)
