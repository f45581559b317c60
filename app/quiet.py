"""TensorFlow imported without its chatter: dozens of lines that no user can act on would bury our own.

Some of it is written straight to file descriptor 2 before any log level applies, so the descriptor
itself points elsewhere meanwhile. For start-up only: nothing else may be writing at that moment.
"""

from __future__ import annotations

import os
import sys


def import_engine(engine: str) -> None:
    """Import what the engine of the settings needs: TensorFlow, unless it is int8."""
    if engine != "int8":
        import_tensorflow()


def import_tensorflow() -> None:
    """Import TensorFlow; an ImportError comes through as it is."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what it does wrong, it raises
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        import tensorflow  # noqa: F401
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
