"""Give memory back to the system that libraries hold on to: pages of a mapped file.

LiteRT packs the weights of a file into memory of its own and then hardly looks at the file again, but
its pages would go on counting as this process's memory: 0.3 GB for BGE-M3. Linux only; elsewhere
nothing happens.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path


def release_pages(path: Path) -> None:
    """Drop this process's resident pages of a file mapped read-only; they are read again if needed."""
    advice = getattr(mmap, "MADV_DONTNEED", None)
    try:
        regions = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    if advice is None:
        return
    madvise = ctypes.CDLL(None).madvise
    for region in regions:
        span, access, _, _, _, *name = region.split(maxsplit=5)
        # Written pages of a private mapping would be lost: only what cannot be written is dropped.
        if name == [str(path.resolve())] and "w" not in access:
            start, end = (int(part, 16) for part in span.split("-"))
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)
