"""What glibc's malloc keeps for later, kept small. With another C library nothing happens.

A server's threads take turns, and malloc gives each of them an arena of its own, up to eight for each core:
a large answer leaves free memory behind in every one of them, which the next arena does not use.
"""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8  # of malloc.h; Python has no name for it
LEAST_ARENAS = 2
"""A thread does not wait then while another one frees a lot of memory."""


def release_heap() -> None:
    """Give free memory back to the system, wherever it lies; a few milliseconds for hundreds of megabytes."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def limit_arenas(cores: int) -> None:
    """Have no more arenas than cores from now on; those there are stay."""
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_ARENA_MAX, max(LEAST_ARENAS, cores))
