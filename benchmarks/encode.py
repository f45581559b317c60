"""The encoder against other ways to run BGE-M3 on this machine: paired runs, texts in, three outputs out.

    python -m benchmarks.encode [--sides trivec-float32,flagembedding] [--workloads queries,passages,long]
        [--counts 1,8,64] [--pairs 5] [--folder CHECKPOINT] [--seed N] [--out NAME]

The first side is the base and every other is paired with it: base, peer, base, peer ..., each in a process
of its own that is loaded once and stopped while the other runs. The result is the median of the ratios of
neighbours; lone times on a shared machine mean nothing. Before it is timed a side must give the base's
embeddings. `--out` writes benchmarks/results/NAME.json and NAME.svg.

Where `--folder` (/var/tmp/trivec/full) has no checkpoint, a random one of BGE-M3's sizes is made (2.3 GB).
Texts: TRIVEC_TEST_DATA (../shared). Other libraries: TRIVEC_PEERS_PYTHON, TRIVEC_ONNX_PYTHON name the
interpreters (.venv-peers, .venv-onnx, from constraints-peers.txt and constraints-onnx.txt). Two full-size
sides at a time need 8 GB of memory; the ONNX export, once, 8 GB. It does not measure the HTTP service.

torch and onnxruntime let idle threads spin by default, which costs them severalfold wherever another
program takes a core; they are told not to, for a fair comparison on a shared machine, unless `--spin`.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.encode_sides.checking import check, encode
from benchmarks.encode_sides.pairing import Pair, run_pairs, spread
from benchmarks.encode_sides.process import SideError, SideProcess
from benchmarks.encode_sides.registry import SIDES, exported
from benchmarks.encode_sides.tuning import tune
from benchmarks.encode_sides.workloads import (
    KINDS,
    Cell,
    draw_spread,
    encoder_operations,
    make_cell,
    read_pool,
)
from benchmarks.full import FULL, make_checkpoint, token_counter
from benchmarks.machine import RESULTS, write_result
from benchmarks.plot import draw

MATMUL_ROWS = 1024
GIB = 2**30


def start(name: str, folder: Path, onnx: Path, *, spin: bool) -> tuple[SideProcess, dict[str, Any]]:
    """A loaded side and what loading took. The checkpoint's files are in the page cache before."""
    spec = SIDES[name]
    options = {**spec.options, "spin": str(int(spin))}
    files = [*folder.glob("*.bin"), *folder.glob("*.safetensors")]
    if spec.interpreter == "onnx":
        out = exported(folder, onnx, spec.python)
        options["onnx"] = str(out)
        files = [
            file for file in out.iterdir() if file.name.startswith(options["model"].removesuffix(".onnx"))
        ]
    for file in files:
        _read_through(file)
    side = SideProcess(spec.python, spec.module, spin=spin)
    try:
        loaded = side.load(folder, options)
    except BaseException:
        side.__exit__(None, None, None)
        raise
    return side, {
        "what": spec.what,
        "start_s": round(loaded["start_s"], 1),
        "resident_gib": round(loaded["rss"] / GIB, 2),
        "peak_while_loading_gib": round(loaded["peak_rss"] / GIB, 2),
        "threads": loaded["threads"],
        "versions": loaded["versions"],
    }


def _read_through(file: Path) -> None:
    with file.open("rb") as stream:
        while stream.read(1 << 24):
            pass


class Runs:
    """All runs of one side in one cell, with the peak of memory."""

    def __init__(self, side: SideProcess, cell: Cell, batch_size: int | None) -> None:
        self.side, self.cell, self.batch_size = side, cell, batch_size
        self.peak_rss = 0
        # Cores that it used itself and that other programs took, for each run.
        self.own: list[float] = []
        self.others: list[float] = []

    def __call__(self) -> float:
        """Seconds of one run. Raises SideError where the side saw other tokens than there are."""
        replies = [
            encode(self.side, call, self.cell.kind.max_length, self.batch_size) for call in self.cell.calls
        ]
        if (seen := sum(reply["tokens"] for reply in replies)) != self.cell.tokens:
            raise SideError(f"{self.side.name} saw {seen} tokens of {self.cell.tokens}")
        self.peak_rss = max(self.peak_rss, *(reply["peak_rss"] for reply in replies))
        seconds = float(sum(reply["seconds"] for reply in replies))
        self.own.append(sum(reply["own_s"] for reply in replies) / seconds)
        self.others.append(sum(reply["others_s"] for reply in replies) / seconds)
        return seconds

    def summary(self, seconds: Sequence[float], peaks: Sequence[float], operations: int) -> dict[str, Any]:
        """Medians over the runs; the share is of the float32 matmul peak measured around each run."""
        texts = len(self.cell.calls) * self.cell.count
        shares = [operations / took / 1e9 / peak for took, peak in zip(seconds, peaks, strict=True)]
        return {
            "tokens_per_s": spread([self.cell.tokens / took for took in seconds])["median"],
            "texts_per_s": spread([texts / took for took in seconds])["median"],
            "seconds_per_call": spread([took / len(self.cell.calls) for took in seconds])["median"],
            "peak_rss_gib": round(self.peak_rss / GIB, 2),
            "share_of_matmul_peak": spread(shares)["median"],
            "cores_used": spread(self.own)["median"],
            "cores_taken_by_others": spread(self.others)["median"],
            "batch_size": self.batch_size,
        }


def run_cell(
    base: Runs, peer: Runs, peak: Callable[[], float], pairs: int, operations: int
) -> dict[str, Any]:
    """All pairs of one cell, summed up."""
    cell = base.cell
    found: list[Pair] = run_pairs(base, peer, peak, pairs)
    peaks = [pair.peak_gflops for pair in found]
    return {
        "workload": cell.workload,
        "texts": cell.count,
        "calls_per_run": len(cell.calls),
        "tokens_per_run": cell.tokens,
        "shortest_text": min(cell.lengths),
        "longest_text": max(cell.lengths),
        "pairs": pairs,
        "times_as_fast": spread([pair.ratio for pair in found]),
        "base": base.summary([pair.base_s for pair in found], peaks, operations),
        "peer": peer.summary([pair.peer_s for pair in found], peaks, operations),
        "matmul_peak_gflops": spread(peaks),
        "seconds_of_pairs": [[round(pair.base_s, 3), round(pair.peer_s, 3)] for pair in found],
    }


def compare_sides(
    names: tuple[str, str],
    cells: Sequence[Cell],
    checked: Sequence[str],
    peak: Callable[[], float],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Start base and peer one after the other, check, tune, and run all cells."""
    specs = [SIDES[name] for name in names]
    base, base_loaded = start(names[0], options.folder, options.onnx_folder, spin=options.spin)
    with base:
        peer, peer_loaded = start(names[1], options.folder, options.onnx_folder, spin=options.spin)
        with peer:
            found: dict[str, Any] = {"peer": names[1], "loading": {"base": base_loaded, "peer": peer_loaded}}
            print(
                f"\n{names[1]}: ready in {peer_loaded['start_s']} s, the base in {base_loaded['start_s']} s"
            )
            found["cosine_to_base"] = check(
                base,
                peer,
                checked,
                least=min(spec.least_cosine for spec in specs),
                batch_sizes=(bool(specs[0].batch_sizes), bool(specs[1].batch_sizes)),
            )
            print(f"  cosine to the base: {json.dumps(found['cosine_to_base'])}")
            found["cells"] = []
            config = json.loads((options.folder / "config.json").read_text(encoding="utf-8"))
            for cell in cells:
                runs = []
                for side, spec in ((base, specs[0]), (peer, specs[1])):
                    encode(side, cell.calls[0][:1], cell.kind.max_length, 1 if spec.batch_sizes else None)
                    best, tried = tune(side, spec, cell, options.tune_texts)
                    runs.append((Runs(side, cell, best), tried))
                operations = encoder_operations(config, cell.lengths)
                row = run_cell(runs[0][0], runs[1][0], peak, options.pairs, operations)
                row["peer"]["batch_sizes_tried_s"] = runs[1][1]
                found["cells"].append(row)
                print(describe(row), flush=True)
    return found


def describe(row: Mapping[str, Any]) -> str:
    """A cell as a line."""
    ratio, base, peer = row["times_as_fast"], row["base"], row["peer"]
    return (
        f"  {row['workload']} x {row['texts']}: {ratio['median']:.2f} times as fast "
        f"({ratio['q1']:.2f} to {ratio['q3']:.2f}, {row['pairs']} pairs); "
        f"tokens/s {base['tokens_per_s']:.0f} and {peer['tokens_per_s']:.0f}; "
        f"share of matmul peak {base['share_of_matmul_peak']:.2f} and {peer['share_of_matmul_peak']:.2f}; "
        f"peak GiB {base['peak_rss_gib']} and {peer['peak_rss_gib']}; batch size {peer['batch_size']}; "
        f"cores used {base['cores_used']:.2f} and {peer['cores_used']:.2f}, "
        f"taken by others {base['cores_taken_by_others']:.2f} and {peer['cores_taken_by_others']:.2f}"
    )


def make_cells(options: argparse.Namespace, data: Path) -> tuple[list[Cell], list[str]]:
    """The cells that were asked for, and some texts of many lengths for the check."""
    lengths = token_counter(options.folder)
    pools = {workload: read_pool(data, workload) for workload in options.workloads}
    cells = [
        make_cell(workload, count, pools[workload], lengths, options.seed)
        for workload in options.workloads
        for count in (options.counts or KINDS[workload].counts)
        if workload != "long" or count <= max(KINDS["long"].counts)
    ]
    pool = read_pool(data, "passages")
    generator = np.random.default_rng(options.seed)
    checked = draw_spread(generator, pool, lengths(pool), options.check_texts, KINDS["passages"])
    return cells, checked


def measure(options: argparse.Namespace, data: Path) -> dict[str, Any]:
    """Everything; a peer that fails leaves its error in the result and the others go on."""
    cells, checked = make_cells(options, data)
    config = json.loads((options.folder / "config.json").read_text(encoding="utf-8"))
    shape = {"rows": MATMUL_ROWS, "width": config["hidden_size"], "inner": config["intermediate_size"]}
    result: dict[str, Any] = {
        "benchmark": "encoder, paired runs: texts in, dense, lexical and ColBERT vectors out",
        "base": options.sides[0],
        "seed": options.seed,
        "checkpoint": {key: config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")},
        "idle_threads_spin": options.spin,
        "load_average_before": round(os.getloadavg()[0], 2),
        "peers": [],
    }
    began = time.monotonic()
    with SideProcess(Path(sys.executable), "matmul_side") as matmul:
        measured: list[dict[str, float]] = []

        def peak() -> float:
            measured.append(matmul.ask(shape))
            return max(measured[-1].values())

        matmul.ask(shape)  # the first is slow
        for name in options.sides[1:]:
            try:
                found = compare_sides((options.sides[0], name), cells, checked, peak, options)
            except SideError as error:
                print(f"\n{name}: failed: {error}", file=sys.stderr)
                found = {"peer": name, "error": str(error).splitlines()[0]}
            result["peers"].append(found)
    # A library that is slow here alone (by the kernels it picks for this CPU) makes its sides slow: say so.
    result["matmul_gflops"] = {
        library: spread([one[library] for one in measured]) for library in ("torch", "tensorflow") if measured
    }
    result["minutes"] = round((time.monotonic() - began) / 60, 1)
    return result


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; sides that cannot run here are left out with a word."""

    def listed(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", type=listed, default=list(SIDES), help="the first is the base")
    parser.add_argument("--workloads", type=listed, default=list(KINDS))
    parser.add_argument("--counts", type=lambda text: [int(one) for one in text.split(",")], default=None)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=FULL)
    parser.add_argument(
        "--onnx-folder", type=Path, default=None, help="cache of exports; default: beside --folder"
    )
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--tune-texts", type=int, default=32, help="texts that batch sizes are tried on")
    parser.add_argument("--check-texts", type=int, default=6, help="texts that both sides must agree on")
    parser.add_argument("--spin", action="store_true", help="idle threads of torch and onnxruntime may spin")
    parser.add_argument("--out", default=None, help="write benchmarks/results/NAME.json and NAME.svg")
    options = parser.parse_args(arguments)
    for name in options.sides:
        if name not in SIDES:
            parser.error(f"no side {name!r}: choose from {', '.join(SIDES)}")
    for workload in options.workloads:
        if workload not in KINDS:
            parser.error(f"no workload {workload!r}: choose from {', '.join(KINDS)}")
    if options.pairs < 1:
        parser.error("at least one pair")
    options.seed = secrets.randbits(32) if options.seed is None else options.seed
    options.onnx_folder = options.onnx_folder or options.folder.resolve().parent / "onnx"
    for name in options.sides:
        if why := SIDES[name].missing:
            print(f"{name} is left out: {why}", file=sys.stderr)
    options.sides = [name for name in options.sides if not SIDES[name].missing]
    if len(options.sides) < 2:
        parser.error("two sides are needed, the base and a peer")
    return options


def main() -> None:
    """Run it; with `--out` write the result and the plot."""
    options = read_options()
    data = Path(os.environ.get("TRIVEC_TEST_DATA", "../shared"))
    if not (data / "data" / "dev").is_dir():
        print(f"skipped: no texts in {data}/data/dev (set TRIVEC_TEST_DATA)")
        return
    if not (options.folder / "config.json").exists():
        make_checkpoint(options.folder, data, options.seed)
    result = measure(options, data)
    if options.out is None:
        return
    failed = [found["peer"] for found in result["peers"] if "error" in found]
    if failed:
        sys.exit(f"no result written: {', '.join(failed)} failed")
    print(write_result(options.out, result))
    (RESULTS / f"{options.out}.svg").write_text(draw([result]), encoding="utf-8")


if __name__ == "__main__":
    main()
