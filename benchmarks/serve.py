"""The server under load over HTTP: a load generator in one process, servers in others, on this machine.

    python -m benchmarks.serve [--parts throughput,peers,lanes,overload,soak] [--engines int8,float32]
        [--folder mini|CHECKPOINT] [--out NAME]

throughput  64 clients post /embed in a closed loop; what is left of the library's speed on the same texts,
            in a process of its own that takes turns with the server
peers       the same load for dense vectors on FlagEmbedding behind FastAPI and on Infinity, in turns
lanes       latency of single searches at a fixed rate, alone and while two clients ingest all they can
overload    5,000 requests at ten times the measured capacity: the answers, memory, how soon it is over
soak        minutes of everything at once, with clients that leave: memory at rest, fitted, and errors

Only ratios of neighbouring runs count, and of those the median: a shared machine gives the same program
half of its speed an hour later. While one side runs the others are stopped (SIGSTOP). Every text is new to
the server. The generator is part of the load of the machine: what it took is in each result.

Where `--folder` (/var/tmp/trivec/full) has no checkpoint, a random one of BGE-M3's sizes is made (2.3 GB);
`mini` is the bundled one. Texts: TRIVEC_TEST_DATA (../shared), made up where they are not there. Peers:
TRIVEC_PEERS_PYTHON, TRIVEC_INFINITY_PYTHON name the interpreters (.venv-peers, .venv-infinity). Each part
starts fresh servers on fresh data folders.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.encode_sides.registry import ROOT
from benchmarks.full import FULL, make_checkpoint, token_counter
from benchmarks.machine import write_result
from benchmarks.serve_sides import lanes, overload, peers, soak, throughput
from benchmarks.serve_sides.embedding import FORMATS
from benchmarks.serve_sides.generator import Generator
from benchmarks.serve_sides.texts import Texts, read_texts

ENGINES = ("int8", "float32")
PARTS = ("throughput", "peers", "lanes", "overload", "soak")
Measure = Callable[[Path, str, Texts, Generator, argparse.Namespace], dict[str, Any]]
OF_AN_ENGINE: dict[str, Measure] = {
    "throughput": throughput.measure,
    "lanes": lanes.measure,
    "overload": overload.measure,
    "soak": soak.measure,
}


def measure(options: argparse.Namespace, texts: Texts) -> dict[str, Any]:
    """All parts that were asked for."""
    config = json.loads((options.folder / "config.json").read_text(encoding="utf-8"))
    result: dict[str, Any] = {
        "benchmark": "the server under load over HTTP, ratios of neighbouring runs",
        "seed": options.seed,
        "checkpoint": {key: config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")},
        "texts": "passages of 20 to 504 tokens, log-uniform" + ("" if texts.real else ", made up"),
        "servers": {name: version(name) for name in ("fastapi", "uvicorn", "pydantic")},
        "load_average_before": round(os.getloadavg()[0], 2),
    }
    began = time.monotonic()
    with Generator() as generator:
        for part in options.parts:
            started = time.monotonic()
            print(f"\n{part}", flush=True)
            if part == "peers":
                result[part] = peers.measure(options.folder, texts, generator, options)
            else:
                result[part] = {
                    engine: OF_AN_ENGINE[part](options.folder, engine, texts, generator, options)
                    for engine in options.engines
                }
            result.setdefault("minutes", {})[part] = round((time.monotonic() - started) / 60, 1)
    print(f"\n{(time.monotonic() - began) / 60:.1f} minutes")
    return result


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""

    def listed(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(one) for one in text.split(",")]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", type=listed, default=list(PARTS))
    parser.add_argument("--engines", type=listed, default=list(ENGINES))
    parser.add_argument("--folder", type=Path, default=FULL)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--out", default=None, help="write benchmarks/results/NAME.json")
    group = parser.add_argument_group("throughput and peers")
    group.add_argument("--clients", type=int, default=64)
    group.add_argument("--pairs", type=int, default=5)
    group.add_argument("--texts-a-request", type=numbers, default=[1, 8])
    group.add_argument("--formats", type=listed, default=list(FORMATS), help="of the answers (throughput)")
    group.add_argument("--seconds", type=float, default=15.0, help="of a run, at the least (throughput)")
    group.add_argument("--peers", type=listed, default=["flagembedding", "infinity"])
    group.add_argument("--peer-texts", type=int, default=128, help="texts of a run, at the least (peers)")
    group = parser.add_argument_group("lanes")
    group.add_argument("--rate", type=float, default=5.0, help="searches a second")
    group.add_argument("--rounds", type=int, default=5)
    group.add_argument("--phase", type=float, default=60.0, help="seconds of each phase of a round")
    group.add_argument("--documents", type=int, default=512, help="documents of the collection (lanes, soak)")
    group = parser.add_argument_group("overload and soak")
    group.add_argument("--requests", type=int, default=5000)
    group.add_argument("--times", type=float, default=10.0, help="of the capacity")
    group.add_argument("--minutes", type=float, default=5.0, help="of the soak")
    options = parser.parse_args(arguments)
    for names, known in (
        (options.parts, PARTS),
        (options.engines, ENGINES),
        (options.formats, FORMATS),
        (options.peers, peers.PEERS),
    ):
        if unknown := set(names) - set(known):
            parser.error(f"no {', '.join(sorted(unknown))}: choose from {', '.join(known)}")
    if str(options.folder) == "mini":
        options.folder = ROOT / "weights" / "mini"
    if options.pairs < 1 or options.rounds < 1:
        parser.error("at least one pair and one round")
    options.seed = secrets.randbits(32) if options.seed is None else options.seed
    return options


def main() -> None:
    """Run it; with `--out` write the result."""
    options = read_options()
    data = Path(os.environ.get("TRIVEC_TEST_DATA", "../shared"))
    if not (options.folder / "config.json").exists():
        if not (data / "tokenizer").is_dir():
            sys.exit(f"no checkpoint in {options.folder}, and no tokenizer in {data} to make one with")
        make_checkpoint(options.folder, data, options.seed)
    texts = read_texts(data, token_counter(options.folder), options.seed)
    result = measure(options, texts)
    if options.out is not None:
        print(write_result(options.out, result))


if __name__ == "__main__":
    main()
