"""The library alone, as a side of `benchmarks.serve`: what the service's own engine does without a service.

{"load": FOLDER, "options": {"engine"}} -> as in `encode_sides.protocol`
{"encode": [texts], "outputs": [...], "save": FILE or absent} -> the same, and "tokens"
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.encode_sides.protocol import busy_s, serve
from benchmarks.encode_sides.trivec_side import TrivecSide


def run(side: TrivecSide, request: Mapping[str, Any]) -> dict[str, object]:
    """The reply to `encode`."""
    busy, own = busy_s(), time.process_time()
    began = time.perf_counter()
    found = side.embedder.encode(request["encode"], outputs=request["outputs"], progress=False)
    seconds = time.perf_counter() - began
    own = time.process_time() - own
    others = max(0.0, busy_s() - busy - own)
    if file := request.get("save"):
        np.save(Path(file), np.stack([one.dense for one in found]))
    tokens = sum(one.tokens for one in found)
    return {"seconds": seconds, "tokens": tokens, "own_s": own, "others_s": others}


if __name__ == "__main__":
    serve(TrivecSide, run)
