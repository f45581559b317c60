"""Parity, memory and the longest text at BGE-M3's own size: minutes, 8 GB of memory, 5 GB of disk."""

from __future__ import annotations

import pytest

from benchmarks.full_size import measure


@pytest.mark.slow
def test_full_size_checkpoint_matches_torch(seed: int) -> None:
    found = measure(None, seed, texts=72)
    print(found)
    assert found["texts"] >= 65 and found["longest_text"] == 8192
    cosines, differences = found["smallest_cosine"], found["largest_absolute_difference"]
    assert isinstance(cosines, dict) and isinstance(differences, dict)
    assert min(cosines.values()) > 0.9999
    assert max(differences.values()) < 1e-4
    assert float(str(found["peak_growth_over_weights"])) < 1.3
