"""Loops over codes and posting lists as machine code: Numba compiles them on their first call.

A kernel is a plain function over NumPy arrays and numbers. It runs without the interpreter's lock, so
threads of ours may run several at once; none uses Numba's own threads. What was compiled is kept beside
the source, or in the user's cache, where either can be written. Kernels are reached through `deferred.py`,
so that a process which runs none does without Numba.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core import event

PARTS = ("code_vectors", "compiled", "muvera", "posting_build", "posting_types")
"""Modules beside `*kernels.py` that kernels take functions or numbers from."""

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


class NotCompiledError(Exception):
    """A kernel would have been compiled where that is not wanted."""


def kernel(function: Kernel) -> Kernel:
    """Compile a function on its first call for a set of types. Integers wrap, no bounds are checked."""
    return cast(Kernel, _decorated(function, fastmath=False))


def loose_kernel(function: Kernel) -> Kernel:
    """`kernel`, with sums of floats in whichever order is fastest: for scores that need no last digit."""
    return cast(Kernel, _decorated(function, fastmath=True))


def inlined(function: Kernel) -> Kernel:
    """A function that kernels call; it is made part of each."""
    return cast(Kernel, numba.njit(nogil=True, inline="always")(function))


def is_kept(function: Callable[..., Any]) -> bool:
    """Whether what a kernel is compiled to is kept on disk."""
    return function.stats.cache_path is not None  # type: ignore[attr-defined]


@contextmanager
def refused(when: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """This thread takes kernels from disk; to compile one raises NotCompiledError while `when` is true."""
    with event.install_listener("numba:compile", _Refusal(threading.get_ident(), when)):
        yield


class _Refusal(event.Listener):  # type: ignore[misc]
    """Numba tells of each compilation before it begins, in the thread that asks for it."""

    def __init__(self, thread: int, when: Callable[[], bool]) -> None:
        self._thread, self._when = thread, when

    def on_start(self, event: Any) -> None:
        if threading.get_ident() == self._thread and self._when():
            raise NotCompiledError

    def on_end(self, event: Any) -> None:
        """Nothing is to be done."""


def _decorated(function: Kernel, *, fastmath: bool) -> Any:
    # Without NaN and infinity left out of the bargain: they may come from a damaged file.
    flags = {"reassoc", "contract", "arcp", "nsz"} if fastmath else False
    # Numba names the files on disk by this, and looks only at the kernel's own source for changes.
    name, function.__qualname__ = function.__qualname__, f"{function.__qualname__}-{digest()}"
    try:
        return numba.njit(nogil=True, cache=True, fastmath=flags, error_model="numpy")(function)
    except RuntimeError:
        # Neither folder can be written (a read-only container without a home): compiled at each start.
        return numba.njit(nogil=True, fastmath=flags, error_model="numpy")(function)
    finally:
        function.__qualname__ = name


@lru_cache(maxsize=1)
def digest() -> str:
    """What all kernels are made of, in 12 letters: where any of it changes they are compiled anew."""
    folder = Path(__file__).parent
    made_of = hashlib.sha256()
    for path in sorted({*folder.glob("*kernels.py"), *(folder / f"{name}.py" for name in PARTS)}):
        made_of.update(path.read_bytes())
    return made_of.hexdigest()[:12]
