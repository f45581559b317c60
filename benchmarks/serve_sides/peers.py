"""Part `peers`: the same closed-loop load for dense vectors on Trivec and on other servers of the same
model.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.encode_sides.pairing import spread
from benchmarks.encode_sides.registry import FLOAT32, INT8, Interpreter, missing
from benchmarks.serve_sides import servers
from benchmarks.serve_sides.embedding import (
    FORMATS,
    Maker,
    Run,
    check_same,
    closed_run,
    dense_vectors,
    in_requests,
    trivec_dense,
    trivec_request,
)
from benchmarks.serve_sides.generator import Generator, LoadError, Request
from benchmarks.serve_sides.servers import Served, ServerError
from benchmarks.serve_sides.texts import Texts
from benchmarks.serve_sides.throughput import summary

WARM_TEXTS = 8


@dataclass(frozen=True, slots=True)
class Peer:
    """Another server: how it is started, asked and read."""

    what: str
    interpreter: Interpreter
    start: Callable[[Path], AbstractContextManager[Served]]
    make: Maker
    read: Callable[[Any], list[list[float]]]


def _flagembedding_dense(answer: Any) -> list[list[float]]:
    return answer["dense"]  # type: ignore[no-any-return]


def _openai_dense(answer: Any) -> list[list[float]]:
    return [one["embedding"] for one in sorted(answer["data"], key=lambda one: one["index"])]


PEERS: Mapping[str, Peer] = {
    "flagembedding": Peer(
        "FlagEmbedding BGEM3FlagModel float32 behind FastAPI, one synchronous endpoint, as users write it",
        "peers",
        servers.flagembedding,
        lambda texts: Request("/embed", {"texts": list(texts)}),
        _flagembedding_dense,
    ),
    "flagembedding-locked": Peer(
        "the same, but that one request encodes at a time",
        "peers",
        partial(servers.flagembedding, lock=True),
        lambda texts: Request("/embed", {"texts": list(texts)}),
        _flagembedding_dense,
    ),
    "infinity": Peer(
        "Infinity on torch, float32, its defaults (batches of up to 32 texts across requests)",
        "infinity",
        servers.infinity,
        lambda texts: Request("/embeddings", {"model": "m3", "input": list(texts)}),
        _openai_dense,
    ),
}


def measure(folder: Path, texts: Texts, generator: Generator, options: Namespace) -> list[dict[str, Any]]:
    """Every peer against every engine of Trivec; one that fails leaves its error and the others go on."""
    found = []
    for name in options.peers:
        if why := missing(PEERS[name].interpreter):
            print(f"  {name} is left out: {why}", flush=True)
            continue
        try:
            found.append(against(name, folder, texts, generator, options))
        except (LoadError, ServerError) as error:
            print(f"  {name} failed: {error}", flush=True)
            found.append({"peer": name, "what": PEERS[name].what, "error": str(error).splitlines()[0]})
    return found


def against(
    name: str, folder: Path, texts: Texts, generator: Generator, options: Namespace
) -> dict[str, Any]:
    """Rounds in which each engine and the peer take turns with the same texts."""
    peer, ours = PEERS[name], trivec_request(FORMATS["dense"])
    with ExitStack() as stack:
        sides: dict[str, tuple[Served, Maker]] = {}
        for engine in options.engines:
            server = stack.enter_context(servers.trivec(folder, engine, max_queue_tokens=2**22))
            server.stop()
            sides[f"trivec-{engine}"] = server, ours
        theirs = stack.enter_context(peer.start(folder))
        theirs.stop()
        sides[name] = theirs, peer.make
        some = texts.fresh_passages(6)
        reference = dense_vectors(theirs, peer.make(some), peer.read)
        found: dict[str, Any] = {"peer": name, "what": peer.what, "clients": options.clients}
        found["cosine_to_peer"] = {
            side: check_same(
                reference,
                dense_vectors(server, make(some), trivec_dense),
                INT8 if side == "trivec-int8" else FLOAT32,
                side,
            )
            for side, (server, make) in sides.items()
            if side != name
        }
        found["cells"] = [
            rounds(sides, name, each, texts, generator, options) for each in options.texts_a_request
        ]
    return found


def rounds(
    sides: Mapping[str, tuple[Served, Maker]],
    name: str,
    each: int,
    texts: Texts,
    generator: Generator,
    options: Namespace,
) -> dict[str, Any]:
    """One cell: all sides once a round."""
    size = max(options.peer_texts, options.clients * each)
    runs: dict[str, list[Run]] = {side: [] for side in sides}
    warm = texts.fresh_passages(WARM_TEXTS)
    for server, make in sides.values():
        closed_run(server, generator, in_requests(warm, 1, make), WARM_TEXTS, WARM_TEXTS)
    for _ in range(options.pairs):
        fresh = texts.fresh_passages(size)
        for side, (server, make) in sides.items():
            runs[side].append(
                closed_run(server, generator, in_requests(fresh, each, make), options.clients, size)
            )
    row: dict[str, Any] = {
        "texts_a_request": each,
        "texts_a_run": size,
        "tokens_a_run": next(iter(runs.values()))[-1].tokens,
        "pairs": options.pairs,
        "times_as_fast": {
            side: spread([b.seconds / a.seconds for a, b in zip(runs[side], runs[name], strict=True)])
            for side in sides
            if side != name
        },
        "sides": {side: summary(one) for side, one in runs.items()},
        "seconds_of_rounds": {side: [round(run.seconds, 1) for run in one] for side, one in runs.items()},
    }
    for side, ratio in row["times_as_fast"].items():
        print(
            f"  {side} against {name}, {each} a request: {ratio['median']:.2f} times as fast "
            f"({ratio['q1']:.2f} to {ratio['q3']:.2f}); texts/s {row['sides'][side]['texts_per_s']} and "
            f"{row['sides'][name]['texts_per_s']}; others' cores "
            f"{row['sides'][name]['cores_taken_by_others']}",
            flush=True,
        )
    return row
