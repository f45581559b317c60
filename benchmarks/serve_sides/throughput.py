"""Part `throughput`: what is left of the library's speed when 64 clients ask for it over HTTP."""

from __future__ import annotations

import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.encode_sides.pairing import spread
from benchmarks.encode_sides.process import SideProcess
from benchmarks.search_sides.measuring import digits
from benchmarks.serve_sides.embedding import (
    FORMATS,
    Run,
    check_same,
    closed_run,
    dense_vectors,
    in_requests,
    trivec_dense,
    trivec_request,
)
from benchmarks.serve_sides.generator import Generator, LoadError, latencies
from benchmarks.serve_sides.servers import Served, trivec
from benchmarks.serve_sides.texts import Texts

WARM_TEXTS, MOST_TEXTS = 64, 16384
SAME = 0.999
"""Least cosine of a text's vector over HTTP to the library's; int8 may round otherwise in another batch."""


class Library:
    """The library in a process of its own."""

    def __init__(self, folder: Path, engine: str) -> None:
        self.side = SideProcess(Path(sys.executable), "library_side", package="serve_sides")
        self.loaded = self.side.load(folder, {"engine": engine})

    def encode(self, texts: list[str], outputs: tuple[str, ...], save: Path | None = None) -> dict[str, Any]:
        """Seconds, tokens and core time of one call."""
        request = {"encode": texts, "outputs": list(outputs)}
        return self.side.ask(request | ({"save": str(save)} if save else {}))


def measure(
    folder: Path, engine: str, texts: Texts, generator: Generator, options: Namespace
) -> dict[str, Any]:
    """All cells of one engine."""
    library = Library(folder, engine)
    with library.side, trivec(folder, engine, max_queue_tokens=2**22) as server:
        server.stop()
        found: dict[str, Any] = {
            "clients": options.clients,
            "threads": library.loaded["threads"],
            "cosine_to_library": checked(library, server, texts),
            "cells": [],
        }
        for name in options.formats:
            for each in options.texts_a_request:
                row = cell(library, server, generator, texts, name, each, options)
                found["cells"].append(row)
                print(told(engine, row), flush=True)
    return found


def checked(library: Library, server: Served, texts: Texts) -> dict[str, float]:
    """Whether the server gives the library's vectors."""
    some = texts.fresh_passages(6)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "dense.npy"
        library.encode(some, ("dense",), file)
        theirs = dense_vectors(server, trivec_request(FORMATS["dense"])(some), trivec_dense)
        return check_same(np.load(file), theirs, SAME, server.name)


def cell(
    library: Library,
    server: Served,
    generator: Generator,
    texts: Texts,
    name: str,
    each: int,
    options: Namespace,
) -> dict[str, Any]:
    """Pairs of runs over the same texts, the library and the server in turns, each first every other time."""
    form, clients = FORMATS[name], options.clients
    make = trivec_request(form)
    warm = texts.fresh_passages(WARM_TEXTS)
    library.encode(warm, form.outputs)
    rate = WARM_TEXTS / library.encode(warm, form.outputs)["seconds"]
    least = 2 * clients if each == 1 else clients * each
    size = int(min(MOST_TEXTS, max(least, rate * options.seconds)) // each * each)
    closed_run(server, generator, in_requests(warm, each, make), clients, len(warm))
    pairs: list[tuple[dict[str, Any], Run]] = []
    for number in range(options.pairs):
        fresh = texts.fresh_passages(size)
        requests = in_requests(fresh, each, make)
        if number % 2:
            run = closed_run(server, generator, requests, clients, size)
            alone = library.encode(fresh, form.outputs)
        else:
            alone = library.encode(fresh, form.outputs)
            run = closed_run(server, generator, requests, clients, size)
        if run.tokens not in (None, alone["tokens"]):
            raise LoadError(f"the server saw {run.tokens} tokens and the library {alone['tokens']}")
        pairs.append((alone, run))
    return {
        "format": name,
        "texts_a_request": each,
        "texts_a_run": size,
        "tokens_a_run": pairs[-1][0]["tokens"],
        "pairs": len(pairs),
        "share_of_library": spread([alone["seconds"] / run.seconds for alone, run in pairs]),
        "library_texts_per_s": spread([size / alone["seconds"] for alone, _ in pairs])["median"],
        "library_cores_used": spread([alone["own_s"] / alone["seconds"] for alone, _ in pairs])["median"],
        "library_core_ms_a_text": spread([1e3 * alone["own_s"] / size for alone, _ in pairs])["median"],
        **summary([run for _, run in pairs]),
        "seconds_of_pairs": [[round(alone["seconds"], 2), round(run.seconds, 2)] for alone, run in pairs],
    }


def summary(runs: list[Run]) -> dict[str, Any]:
    """Medians over a server's runs; latencies over all of its requests."""
    return {
        "texts_per_s": spread([run.texts / run.seconds for run in runs])["median"],
        "latency": latencies(one for run in runs for one in run.outcome.answers),
        "answer_kb": digits(np.mean([one.size for run in runs for one in run.outcome.answers]) / 1000),
        "cores_used": spread([run.server_cores for run in runs])["median"],
        "core_ms_a_text": spread([1e3 * run.server_cores * run.seconds / run.texts for run in runs])[
            "median"
        ],
        "cores_of_load_generator": spread([run.generator_cores for run in runs])["median"],
        "cores_taken_by_others": spread([run.others_cores for run in runs])["median"],
    }


def told(engine: str, row: dict[str, Any]) -> str:
    """A cell as a line."""
    share = row["share_of_library"]
    return (
        f"  {engine} {row['format']}, {row['texts_a_request']} a request: {share['median']:.3f} of the "
        f"library "
        f"({share['q1']:.3f} to {share['q3']:.3f}, {row['pairs']} pairs of {row['texts_a_run']} texts); "
        f"texts/s "
        f"{row['texts_per_s']} of {row['library_texts_per_s']}; p50 {row['latency']['p50_ms']} ms; core "
        f"ms a text {row['core_ms_a_text']} and {row['library_core_ms_a_text']}; cores: server "
        f"{row['cores_used']}, library {row['library_cores_used']}, generator "
        f"{row['cores_of_load_generator']}, others {row['cores_taken_by_others']}"
    )
