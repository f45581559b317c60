"""Loops over codes and posting lists as machine code: Numba compiles them on their first call.

A kernel is a plain function over NumPy arrays and numbers. It runs without the interpreter's lock, so
threads of ours may run several at once; none uses Numba's own threads. What was compiled is kept beside
the source, or in the user's cache, where either can be written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def kernel(function: Kernel) -> Kernel:
    """Compile a function on its first call for a set of types. Integers wrap, no bounds are checked."""
    return cast(Kernel, _decorated(function, fastmath=False))


def loose_kernel(function: Kernel) -> Kernel:
    """`kernel`, with sums of floats in whichever order is fastest: for scores that need no last digit."""
    return cast(Kernel, _decorated(function, fastmath=True))


def inlined(function: Kernel) -> Kernel:
    """A function that kernels call; it is made part of each."""
    return cast(Kernel, numba.njit(nogil=True, inline="always")(function))


def _decorated(function: Kernel, *, fastmath: bool) -> Any:
    # Without NaN and infinity left out of the bargain: they may come from a damaged file.
    flags = {"reassoc", "contract", "arcp", "nsz"} if fastmath else False
    try:
        return numba.njit(nogil=True, cache=True, fastmath=flags, error_model="numpy")(function)
    except RuntimeError:
        # Neither folder can be written (a read-only container without a home): compiled at each start.
        return numba.njit(nogil=True, fastmath=flags, error_model="numpy")(function)
