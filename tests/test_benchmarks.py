"""The encoder benchmark's own logic: which texts, in which order, what is summed up and what is drawn."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import plot
from benchmarks.encode import Runs, read_options, run_cell
from benchmarks.encode_sides.checking import compare
from benchmarks.encode_sides.pairing import Pair, run_pairs, spread
from benchmarks.encode_sides.process import SideError, SideProcess
from benchmarks.encode_sides.protocol import Vectors, load_vectors, save
from benchmarks.encode_sides.registry import ROOT, SIDES
from benchmarks.encode_sides.tuning import batch_sizes_to_try
from benchmarks.encode_sides.workloads import KINDS, Cell, encoder_operations, make_cell

BGE_M3 = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}


def words(texts: Sequence[str]) -> list[int]:
    """A tokenizer of a word a token, in its frame."""
    return [len(text.split()) + 2 for text in texts]


@pytest.fixture
def pool(seed: int) -> list[str]:
    """Distinct texts of 1 to 700 words."""
    generator = np.random.default_rng(seed)
    return [f"t{number} " + "w " * int(generator.integers(0, 700)) for number in range(2000)]


@pytest.mark.parametrize(
    ("workload", "count"), [(workload, count) for workload, kind in KINDS.items() for count in kind.counts]
)
def test_a_cell_holds_what_it_says(workload: str, count: int, pool: list[str], seed: int) -> None:
    cell = make_cell(workload, count, pool, words, seed)
    kind = KINDS[workload]
    texts = [text for call in cell.calls for text in call]
    assert {len(call) for call in cell.calls} == {count}
    assert len(texts) >= kind.run_texts
    assert list(cell.lengths) == words(texts)
    assert cell.tokens == sum(cell.lengths)
    assert all(kind.shortest <= length <= kind.longest for length in cell.lengths)
    assert len(set(texts)) == len(texts)


def test_a_seed_draws_the_same_texts_again_and_another_seed_others(pool: list[str], seed: int) -> None:
    first, again, other = (make_cell("passages", 8, pool, words, one) for one in (seed, seed, seed + 1))
    assert first == again
    assert first != other


def test_passages_spread_over_all_lengths(pool: list[str], seed: int) -> None:
    # So many that chance moves the middle of them by some 7 %: a seed in a thousand had 64 beyond the bounds.
    cells = [make_cell("passages", 64, pool, words, seed + number) for number in range(8)]
    lengths = sorted(length for cell in cells for length in cell.lengths)
    assert lengths[len(lengths) // 10] < 60
    assert 60 < lengths[len(lengths) // 2] < 180
    assert lengths[len(lengths) * 9 // 10] > 250


def test_a_pool_without_fitting_texts_is_an_error(seed: int) -> None:
    with pytest.raises(ValueError, match="passages"):
        make_cell("passages", 8, ["too short"] * 50 + ["w " * 100] * 7, words, seed)
    with pytest.raises(ValueError, match="queries"):
        make_cell("queries", 64, ["what is this"] * 63, words, seed)


def test_operations_of_bge_m3() -> None:
    one_layer_linear = 2 * (4 * 1024**2 + 2 * 1024 * 4096)
    assert encoder_operations(BGE_M3, [100]) == 24 * (100 * one_layer_linear + 4 * 100**2 * 1024)
    assert encoder_operations(BGE_M3, [1]) / 1e9 == pytest.approx(0.604, abs=0.001)
    # Attention is quadratic in each text, not in the batch.
    assert encoder_operations(BGE_M3, [50, 50]) < encoder_operations(BGE_M3, [100])


def test_sides_take_turns_and_each_pair_has_its_own_peak() -> None:
    calls: list[str] = []

    def step(name: str, values: list[float]) -> Callable[[], float]:
        def run() -> float:
            calls.append(name)
            return values.pop(0)

        return run

    found = run_pairs(step("base", [1, 2]), step("peer", [3, 4]), step("peak", [100, 200, 400]), 2)
    assert calls == ["peak", "base", "peer", "peak", "base", "peer", "peak"]
    assert found == [Pair(1, 3, 150), Pair(2, 4, 300)]
    assert [pair.ratio for pair in found] == [3, 2]


def test_spread_is_median_and_quartiles() -> None:
    assert spread([5, 1, 4, 2, 3]) == {"median": 3, "q1": 2, "q3": 4}
    assert spread([1.23456]) == {"median": 1.235, "q1": 1.235, "q3": 1.235}


class FakeSide:
    """Answers with given seconds; sees `tokens` a call."""

    name = "fake"

    def __init__(self, seconds: list[float], tokens: int) -> None:
        self.seconds, self.tokens = seconds, tokens

    def ask(self, request: dict[str, object]) -> dict[str, object]:
        return {
            "seconds": self.seconds.pop(0),
            "tokens": self.tokens,
            "peak_rss": 2**30,
            "own_s": 1.0,
            "others_s": 0.25,
        }


def small_cell() -> Cell:
    return Cell("queries", 1, (("one two",), ("three four",)), (4, 4))


def test_the_ratio_is_the_median_of_pairs_not_of_lone_times() -> None:
    # The machine halves its speed after the first pair: medians of lone times would say 10 / 1.
    base = Runs(FakeSide([0.5, 0.5, 5.0, 5.0, 0.5, 0.5], 4), small_cell(), None)  # type: ignore[arg-type]
    peer = Runs(FakeSide([1.0, 1.0, 10.0, 10.0, 5.0, 5.0], 4), small_cell(), 8)  # type: ignore[arg-type]
    row = run_cell(base, peer, lambda: 100.0, 3, operations=50 * 10**9)
    assert row["times_as_fast"]["median"] == 2
    assert row["pairs"] == 3
    assert row["seconds_of_pairs"] == [[1.0, 2.0], [10.0, 20.0], [1.0, 10.0]]
    assert row["base"]["share_of_matmul_peak"] == 0.5
    assert row["base"]["tokens_per_s"] == 8
    assert row["base"]["seconds_per_call"] == 0.5
    assert row["peer"]["cores_used"] == 0.2
    assert row["base"]["cores_taken_by_others"] == 0.5
    assert (row["peer"]["batch_size"], row["peer"]["peak_rss_gib"]) == (8, 1.0)


def test_a_side_that_sees_other_tokens_is_not_timed() -> None:
    with pytest.raises(SideError, match="saw 6 tokens of 8"):
        Runs(FakeSide([1.0, 1.0], 3), small_cell(), None)()  # type: ignore[arg-type]


def test_batch_sizes_stop_where_one_batch_holds_all() -> None:
    def tried(side: str, workload: str, count: int) -> tuple[int, ...]:
        return batch_sizes_to_try(SIDES[side], Cell(workload, count, (("x",) * count,), (3,) * count))

    assert tried("flagembedding", "passages", 64) == (1, 2, 4, 8, 16)
    assert tried("flagembedding", "passages", 8) == (1, 2, 4, 8)
    assert tried("onnx-int8", "passages", 6) == (1, 4, 8)
    assert tried("flagembedding", "queries", 1) == (1,)
    assert tried("flagembedding", "long", 4) == (1,)
    assert tried("torch", "long", 4) == (1,)
    assert tried("torch", "passages", 64) == (8,)
    assert tried("flagembedding-default", "long", 4) == ()
    assert tried("trivec-float32", "passages", 64) == ()


def vectors(generator: np.random.Generator) -> list[Vectors]:
    return [
        Vectors(
            generator.standard_normal(8).astype(np.float32),
            {5: 0.5, 7: 0.25},
            generator.standard_normal((tokens, 8)).astype(np.float32),
        )
        for tokens in (1, 4)
    ]


def test_the_check_sees_a_wrong_output_in_any_part(tmp_path: Path, seed: int) -> None:
    right = vectors(np.random.default_rng(seed))
    save(tmp_path / "side.npz", right)
    found = compare(right, load_vectors(tmp_path / "side.npz"))
    assert {part: values["smallest"] for part, values in found.items()} == dict.fromkeys(
        ("dense", "sparse", "colbert"), 1.0
    )
    one = right[1]
    assert compare(right, [right[0], Vectors(-one.dense, one.sparse, one.colbert)])["dense"]["smallest"] == -1
    assert compare(right, [right[0], Vectors(one.dense, {6: 1.0}, one.colbert)])["sparse"]["smallest"] == 0
    turned = one.colbert * np.array([[1], [1], [1], [-1]], np.float32)
    assert compare(right, [right[0], Vectors(one.dense, one.sparse, turned)])["colbert"]["smallest"] == -1
    with pytest.raises(SideError, match="4 tokens where the base has 5"):
        compare(right, [right[0], Vectors(one.dense, one.sparse, one.colbert[1:])])


ECHO = """
import numpy as np
from benchmarks.encode_sides.protocol import Vectors, serve

class Echo:
    packages, threads = ("numpy",), 1
    def __init__(self, folder, options):
        print("libraries print here", flush=True)
    def encode(self, texts, max_length, batch_size):
        if "bad" in texts:
            raise ValueError("a bad text")
        return texts
    def unpack(self, found):
        return [Vectors(np.ones(2), {9: 1.0}, np.ones((len(text) - 1, 2))) for text in found]

serve(Echo)
"""


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    """An "interpreter" that runs a side without a model, whatever module it is told to run."""
    script = tmp_path / "echo.py"
    script.write_text(ECHO)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" "{script}"\n')
    python.chmod(0o755)
    return python


def state(process: subprocess.Popen[str]) -> str:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_side_answers_is_stopped_between_requests_and_ends(echo: Path, tmp_path: Path) -> None:
    with SideProcess(echo, "any") as side:
        loaded = side.load(tmp_path, {})
        assert loaded["start_s"] > 0
        assert loaded["versions"] == {"numpy": np.__version__}
        for _ in range(2):
            reply = side.ask({"encode": ["abc", "de"], "max_length": 8, "batch_size": None})
            assert reply["tokens"] == 5
            assert reply["seconds"] >= 0
            assert reply["peak_rss"] > 2**20
            assert reply["others_s"] >= 0
            while state(side._process) == "R":
                pass
            assert state(side._process) == "T"
        with pytest.raises(SideError, match="a bad text"):
            side.ask({"encode": ["bad"], "max_length": 8, "batch_size": None})
    assert side._process.poll() is not None


def test_a_side_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        SideProcess(Path(sys.executable), "no_such_side") as side,
        pytest.raises(SideError, match="No module"),
    ):
        side.load(tmp_path, {})


def test_sides_without_their_interpreter_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIVEC_ONNX_PYTHON", "/nowhere/python")
    options = read_options(["--sides", "trivec-float32,torch,onnx-int8"])
    assert options.sides == ["trivec-float32", "torch"]
    assert "onnx-int8 is left out: no interpreter at /nowhere/python" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        read_options(["--sides", "onnx-int8,torch"])
    with pytest.raises(SystemExit):
        read_options(["--sides", "trivec-float32,nothing"])


def result(base: str = "trivec-float32") -> dict[str, object]:
    cell = {"workload": "queries", "texts": 8, "times_as_fast": {"median": 2.0, "q1": 1.0, "q3": 4.0}}
    return {"base": base, "peers": [{"peer": "a<b", "cells": [cell]}, {"peer": "broken", "error": "x"}]}


def test_the_plot_is_wellformed_and_shows_the_peers_speed() -> None:
    drawn = plot.draw([result()])
    root = ElementTree.fromstring(drawn)
    shown = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "a<b" in shown
    assert "0.50" in shown
    assert "broken" not in shown
    assert plot.relative_speed({"times_as_fast": {"median": 2.0, "q1": 1.0, "q3": 4.0}}) == (0.5, 0.25, 1.0)


def test_results_of_different_bases_do_not_share_a_plot() -> None:
    with pytest.raises(ValueError, match="different bases"):
        plot.draw([result(), result("trivec-int8")])
