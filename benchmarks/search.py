"""Trivec's index against other ways to search the same vectors on this machine, side by side in one run.

    python -m benchmarks.search [--documents 10000]
        [--parts lexical,dense,hybrid,maxsim,filters,ingest,memory,recall]
        [--peers scipy,bm25s,seismic,faiss-flat,faiss-hnsw,numpy,qdrant,lancedb,milvus-lite | none]
        [--set colbert=float16 ...] [--queries 100] [--rounds 5] [--truth 32] [--seed N] [--keep] [--out NAME]

The documents are synthetic, with the statistics of BGE-M3's output (`benchmarks.synthetic`): the result
speaks of speed, memory and of recall against brute force over the same vectors, not of a model's quality.

Every side runs in a process of its own, which is stopped while another runs. Queries are timed one at a
time, warm, in rounds: Trivec, peer, Trivec, peer ..., the same queries for both; a result is the median of
the ratios of neighbouring rounds (median query of each). Times are of the search call alone: requests are in
each library's own form before. All sides have as many threads as there are cores, where they use them, and
idle threads of theirs do not spin. What a side cannot do (complete scores of all three legs, filters,
durability) is told with it. Trivec's search returns texts, metadata and all scores of its hits.

Parts share collections: `lexical` and `dense` (top 10, and top 100 for recall) store one output each;
`hybrid` (candidates of both legs, all three scores; and as many candidates as a search takes by itself),
`maxsim` (candidates ordered by ColBERT), `filters`, `ingest` (documents in batches of 100; written again 1
and 64 at a time), `memory` and `recall` (more and fewer candidates) store all. A large corpus without
float rows: `--set rows=codes`.

Peers: TRIVEC_SEARCH_PYTHON names their interpreter (.venv-search, from constraints-search.txt). Files go to
`--folder` (/var/tmp/trivec/search) and are deleted, unless `--keep`: then they serve the next time too.
ColBERT rows take 0.3 MB for a document in float16; peers that hold them in memory have limits (`registry`).
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.encode_sides.process import SideError
from benchmarks.encode_sides.protocol import cores
from benchmarks.machine import write_result
from benchmarks.search_sides.measuring import digits, in_turns
from benchmarks.search_sides.process import SearchProcess
from benchmarks.search_sides.protocol import FILTERS, USUAL, Ask, Group
from benchmarks.search_sides.registry import BASE, SIDES
from benchmarks.search_sides.reporting import filling, in_mib, row_of, told
from benchmarks.search_sides.truth import Truth, find
from benchmarks.synthetic import Corpus

GROUPS: Mapping[str, Group] = {"lexical": "lexical", "dense": "dense"}
PARTS = ("lexical", "dense", "hybrid", "maxsim", "filters", "ingest", "memory", "recall")
CANDIDATES = (25, 50, 200, 400)
REWRITES = ((32, 1), (512, 64))
"""Documents written again, and how many at a time."""
MOST_ROWS_TRUTH = 20_000
"""Documents whose token rows brute force looks at: 3 ms for each."""


def asks(part: str) -> list[Ask]:
    """The searches that a part times."""
    if part in ("lexical", "dense"):
        return [Ask("lexical")] if part == "lexical" else [Ask("dense"), Ask("dense", k=100)]
    if part == "maxsim":
        return [Ask("colbert")]
    if part == "filters":
        return [Ask("hybrid", filter=name) for name in FILTERS]
    if part == "recall":
        return [Ask("hybrid", candidates=count) for count in CANDIDATES]
    return [Ask("hybrid"), Ask("hybrid", candidates=0)] if part == "hybrid" else []


def serves(peer: str, part: str) -> bool:
    """Whether a peer takes part: one that only orders given candidates has no other part than that."""
    if part == "recall":  # how Trivec's own answers depend on its candidates
        return False
    return (part == "maxsim") if peer == "numpy" else (part != "maxsim")


def common(ask: Ask) -> bool:
    """Whether peers are asked the same: not for a hundred hits, nor for as many candidates as are needed."""
    return ask.k == USUAL.k and ask.candidates > 0


class Sides:
    """Starts and fills sides for one group of one corpus."""

    def __init__(self, options: argparse.Namespace, group: Group) -> None:
        self._options = options
        self._group = group

    def start(self, name: str) -> tuple[SearchProcess, dict[str, Any]]:
        """A filled side and what filling took."""
        spec, options = SIDES[name], self._options
        folder = options.folder / f"{options.seed}-{options.documents}-{self._group}-{name}"
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
        side = SearchProcess(spec.python, spec.module)
        request = {
            "seed": options.seed,
            "documents": options.documents,
            "group": self._group,
            "folder": str(folder),
            "queries": options.queries,
            "options": {**spec.options, **(options.set if name == BASE else {})},
        }
        try:
            loaded = side.build(request)
        except BaseException:
            side.__exit__(None, None, None)
            raise
        seconds = loaded["add_s"] + loaded["finish_s"]
        return side, {
            "what": spec.what,
            "remarks": loaded["remarks"],
            "threads": loaded["threads"],
            "versions": loaded["versions"],
            "open_s": digits(loaded["open_s"]),
            "store_s": digits(loaded["add_s"]) if loaded["built"] else None,
            "finish_s": digits(loaded["finish_s"]) if loaded["built"] else None,
            "documents_per_s": digits(options.documents / seconds) if loaded["built"] else None,
            "memory_after_filling": in_mib(loaded),
        }

    def clean(self, name: str) -> None:
        """Delete a side's files, unless they are kept."""
        if not self._options.keep:
            options = self._options
            shutil.rmtree(
                options.folder / f"{options.seed}-{options.documents}-{self._group}-{name}",
                ignore_errors=True,
            )


def measure_group(options: argparse.Namespace, group: Group, truth: Truth | None) -> dict[str, Any]:
    """All parts of a group: Trivec alone where there is no peer, else with each peer in turn."""
    sides = Sides(options, group)
    parts = [part for part in options.parts if GROUPS.get(part, "all") == group]
    base, loaded = sides.start(BASE)
    found: dict[str, Any] = {"documents": options.documents, "base": loaded, "alone": [], "peers": []}
    print(f"\n{group}: {BASE} {filling(loaded)}", flush=True)
    with base:
        for ask in [one for part in parts for one in asks(part)]:
            found["alone"].append(row_of(ask, in_turns(_run(base, ask), None, *_turns(options)), truth))
            print(told(found["alone"][-1]), flush=True)
        if "ingest" in parts:
            found["ingest"] = rewrites(base)
            print(f"  written again: {found['ingest']}")
        if "memory" in parts:
            found["memory"] = in_mib(base.ask({"memory": True}))
            print(f"  memory: {found['memory']}")
        for name in options.peers:
            spec = SIDES[name]
            chosen = [ask for part in parts if serves(name, part) for ask in asks(part) if common(ask)]
            wanted = chosen or (name != "numpy" and {"ingest", "memory"} & {*parts})
            if group not in spec.groups or not wanted:
                continue
            found["peers"].append({"peer": name, "what": spec.what})
            if spec.most_documents is not None and options.documents > spec.most_documents:
                found["peers"][-1]["left_out"] = f"more than {spec.most_documents} documents"
                print(f"{name}: left out, {found['peers'][-1]['left_out']}", flush=True)
                continue
            try:
                found["peers"][-1] |= _pair(options, sides, base, name, chosen, truth, parts)
            except SideError as error:
                print(f"\n{name}: failed: {error}", file=sys.stderr)
                found["peers"][-1]["error"] = str(error).splitlines()[0]
            sides.clean(name)
    if "memory" in parts:
        found["opened_again"] = reopened(options, sides)
        print(f"  opened again: {found['opened_again']}")
    sides.clean(BASE)
    return found


def _pair(
    options: argparse.Namespace,
    sides: Sides,
    base: SearchProcess,
    name: str,
    chosen: Sequence[Ask],
    truth: Truth | None,
    parts: Sequence[str],
) -> dict[str, Any]:
    """One peer with Trivec: loading, then every search in turns."""
    side, loaded = sides.start(name)
    found: dict[str, Any] = {"loading": loaded, "rows": []}
    print(f"{name}: {filling(loaded)}", flush=True)
    with side:
        for ask in chosen:
            rounds = in_turns(_run(base, ask), _run(side, ask), *_turns(options))
            found["rows"].append(row_of(ask, rounds, truth, SIDES[name].order))
            print(told(found["rows"][-1]), flush=True)
        if "memory" in parts:
            found["memory"] = in_mib(side.ask({"memory": True}))
            print(f"  memory: {found['memory']}")
    return found


def _turns(options: argparse.Namespace) -> tuple[int, int, float]:
    return options.queries, options.rounds, options.round_s


def _run(side: SearchProcess, ask: Ask) -> Any:
    return lambda queries: side.search(ask, queries)


def rewrites(side: SearchProcess) -> list[dict[str, float]]:
    """Documents that are there already, written again."""
    return [
        {
            "batch": batch,
            "documents_per_s": digits(
                documents / side.ask({"upsert": {"documents": documents, "batch": batch}})["seconds"]
            ),
        }
        for documents, batch in REWRITES
    ]


def reopened(options: argparse.Namespace, sides: Sides) -> dict[str, Any]:
    """Trivec's folder opened by a new process: time to the first answer, and memory then."""
    kept = argparse.Namespace(**{**vars(options), "keep": True})
    side, loaded = Sides(kept, sides._group).start(BASE)
    with side:
        first = side.search(Ask("hybrid"), [0])
        return {
            "open_s": loaded["open_s"],
            "first_search_s": digits(first["seconds"][0]),
            **in_mib(side.ask({"memory": True})),
        }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything; a peer that fails leaves its error in the result and the others go on."""
    began = time.monotonic()
    result: dict[str, Any] = {
        "benchmark": "search over synthetic M3 vectors, sides in turns, one query at a time, warm, top 10",
        "documents": options.documents,
        "seed": options.seed,
        "settings": options.set,
        "threads": cores(),
        "idle_threads_spin": False,
        "load_average_before": round(os.getloadavg()[0], 2),
        "absent": options.absent,
        "groups": {},
    }
    truth = None
    if options.truth:
        corpus = Corpus(options.seed, options.documents)
        known = corpus.queries(options.queries)[: options.truth]
        rows = any(GROUPS.get(part, "all") == "all" for part in options.parts)
        rows = rows and options.documents <= MOST_ROWS_TRUTH and options.set.get("rows") != "codes"
        truth = find(corpus, known, colbert=rows)
        # Only the scores are kept while the sides run.
        del corpus
    for group in ("lexical", "dense", "all"):
        if any(GROUPS.get(part, "all") == group for part in options.parts):
            result["groups"][group] = measure_group(options, group, truth)
    result["minutes"] = round((time.monotonic() - began) / 60, 1)
    return result


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; peers that cannot run here are left out with a word."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    others = [name for name in SIDES if name != BASE]
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--parts", default="lexical,dense,hybrid")
    parser.add_argument("--peers", default=",".join(others), help="or none")
    parser.add_argument(
        "--set", action="append", default=[], help="a setting of Trivec's collection, name=value"
    )
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--round-s", type=float, default=20.0, help="slow sides get fewer queries to keep it")
    parser.add_argument(
        "--truth", type=int, default=32, help="queries that recall is measured on; 0 for none"
    )
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp/trivec/search"))
    parser.add_argument(
        "--keep", action="store_true", help="keep the sides' files, and use those kept before"
    )
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--out", default=None, help="write benchmarks/results/NAME.json")
    options = parser.parse_args(arguments)
    options.parts = options.parts.split(",")
    options.peers = [] if options.peers == "none" else options.peers.split(",")
    for name in options.parts:
        if name not in PARTS:
            parser.error(f"no part {name!r}: choose from {', '.join(PARTS)}")
    for name in options.peers:
        if name not in others:
            parser.error(f"no peer {name!r}: choose from {', '.join(others)}")
    if any("=" not in one for one in options.set):
        parser.error("--set takes name=value")
    if min(options.documents, options.queries, options.rounds) < 1 or options.truth < 0:
        parser.error("documents, queries and rounds are at least 1, truth at least 0")
    options.set = dict(one.split("=", 1) for one in options.set)
    options.seed = secrets.randbits(32) if options.seed is None else options.seed
    groups = {GROUPS.get(part, "all") for part in options.parts}
    asked = [name for name in options.peers if groups & {*SIDES[name].groups}]
    options.absent = {name: why for name in asked if (why := SIDES[name].missing)}
    for name, why in options.absent.items():
        print(f"{name} is left out: {why}", file=sys.stderr)
    options.peers = [name for name in asked if name not in options.absent]
    return options


def main() -> None:
    """Run it; with `--out` write the result."""
    options = read_options()
    result = measure(options)
    if options.out is None:
        return
    failed = [one["peer"] for group in result["groups"].values() for one in group["peers"] if "error" in one]
    if failed:
        sys.exit(f"no result written: {', '.join(failed)} failed")
    print(write_result(options.out, result))


if __name__ == "__main__":
    main()
