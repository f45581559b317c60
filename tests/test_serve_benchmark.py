"""The load on the server: its options, and a tiny run of it against the bundled checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks import serve
from benchmarks.encode_sides.registry import ROOT
from benchmarks.serve_sides.texts import read_texts


def _words(texts: Sequence[str]) -> list[int]:
    return [len(one.split()) for one in texts]


@pytest.mark.parametrize("wrong", ["--parts all", "--engines fast", "--pairs 0", "--formats xml"])
def test_a_slip_in_the_options_is_told(wrong: str) -> None:
    with pytest.raises(SystemExit):
        serve.read_options(wrong.split())


def test_texts_are_new_each_time() -> None:
    texts = read_texts(ROOT / "nowhere", _words, 1)
    drawn = [one for _ in range(3) for one in texts.fresh_passages(50)]
    assert len(set(drawn)) == 150


def test_a_tiny_run() -> None:
    line = "--folder mini --parts lanes --engines int8 --rounds 1 --phase 3 --documents 40 --rate 4"
    options = serve.read_options(line.split())
    texts = read_texts(ROOT / "nowhere", _words, 1)
    found = serve.measure(options, texts)["lanes"]["int8"]
    assert found["rounds"] == 1 and found["p99_ratio"]["median"] > 0 and found["bulk_share"]["median"] > 0
