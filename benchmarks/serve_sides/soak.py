"""Part `soak`: everything at once for minutes, with clients that leave, and the memory that is left at rest.

The collection keeps its size: documents that come in replace others, deleted ones are put back. So what grows
is a leak. Traffic comes in episodes of some seconds; after each the server works off what it has taken, has
time to give memory back, and its memory is read.
"""

from __future__ import annotations

import json
import random
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from app.tidying import EVERY_S
from benchmarks.search_sides.measuring import digits
from benchmarks.serve_sides.embedding import FORMATS, LONG, trivec_request
from benchmarks.serve_sides.generator import Generator, LoadError, Outcome, Request, Stream, latencies
from benchmarks.serve_sides.lanes import PATH, Documents, fill
from benchmarks.serve_sides.servers import Memory, Served, trivec
from benchmarks.serve_sides.texts import Texts

EPISODE_S = 15.0
IDLE_SHARE, IDLE_S, LEAST_REST_S, MOST_REST_S = 0.1, 0.5, EVERY_S + 1, 90.0
"""At rest: it has taken less than this share of a core for so long, and what it gives back now and then is
given back. Clients have left, but what they had sent is still worked off."""
WARM_SHARE, LEAST_WARM_S = 0.2, 60.0
CACHED, WARM_CLIENTS = 800, 12
"""Queries before the soak: at BGE-M3's size some 600 fill the cache that a server has by default."""
DELETED = 8
"""Documents that are deleted and put back in turns, beside those that are replaced."""


def measure(
    folder: Path, engine: str, texts: Texts, generator: Generator, options: Namespace
) -> dict[str, Any]:
    """Minutes of episodes; memory at rest after each."""
    seconds, chance = options.minutes * 60, random.Random(options.seed)
    statuses: Counter[str] = Counter()
    problems: list[str] = []
    unexpected = requests = 0
    rested = 0.0
    rest: list[tuple[float, float, float]] = []
    with trivec(folder, engine) as server:
        documents = Documents(texts, options.documents)
        fill(server, generator, documents, options.documents)
        fill(server, generator, Documents(texts, DELETED, first=options.documents), DELETED)
        size = options.documents + DELETED
        fill_caches(server, generator, texts)
        began = time.monotonic()
        with Memory(server) as memory:
            while (passed := time.monotonic() - began) < seconds or len(rest) < 3:
                outcome = episode(server, generator, texts, documents, options, chance)
                statuses.update(outcome.statuses())
                unexpected += len(outcome.unexpected())
                requests += len(outcome.answers)
                problems += [one for one in outcome.problems if one not in problems][:5]
                rested += rest_of(server)
                passed = time.monotonic() - began
                now = server.memory_mib()
                rest.append((passed, now["resident"], now["anonymous"]))
        # The last episode may have ended between a deletion and its return.
        fill(server, generator, Documents(texts, DELETED, first=options.documents), DELETED)
        if (count := documents_of(server)) != size:
            raise LoadError(f"{count} documents are left of {size}: the collection did not keep its size")
        last = latencies(outcome.of("search"))
    warm = min(max(WARM_SHARE * seconds, LEAST_WARM_S), seconds / 2)
    settled = [one for one in rest if one[0] >= warm]
    result = {
        "minutes": options.minutes,
        "minutes_at_rest": digits(rested / 60),
        "requests": requests,
        "statuses": dict(sorted(statuses.items())),
        "unexpected": unexpected,
        "problems": problems[:5],
        "documents": size,
        "mib_at_start": digits(memory.samples[0][1]),
        "mib_peak": digits(max(resident for _, resident, _ in memory.samples)),
        "warm_up_s": digits(warm),
        "resident": drift([(at, resident) for at, resident, _ in settled]),
        "anonymous": drift([(at, anonymous) for at, _, anonymous in settled]),
        "last_searches": last,
        "at_rest_mib": [
            [round(at), round(resident, 1), round(anon, 1)] for at, resident, anon in thinned(rest)
        ],
    }
    print(told(engine, result), flush=True)
    return result


def fill_caches(server: Served, generator: Generator, texts: Texts) -> None:
    """Search until what the server keeps within bounds has its size: the query cache, the readers' pages."""
    requests = [Request("/search", {"query": one, "top_k": 10}) for one in texts.fresh_queries(CACHED)]
    generator.run(server.address, [Stream("warm", requests, clients=WARM_CLIENTS)]).refuse_unexpected()


def rest_of(server: Served) -> float:
    """Wait until the server rests; the seconds that it took."""
    began = time.monotonic()
    while (passed := time.monotonic() - began) < MOST_REST_S:
        before = server.cpu_s()
        time.sleep(IDLE_S)
        if server.cpu_s() - before < IDLE_SHARE * IDLE_S:
            time.sleep(LEAST_REST_S)
            return time.monotonic() - began
    return passed


def episode(
    server: Served,
    generator: Generator,
    texts: Texts,
    documents: Documents,
    options: Namespace,
    chance: random.Random,
) -> Outcome:
    """Some seconds of all kinds of requests; at its end all documents are there."""
    streams = [
        Stream("embed", embeds(texts, chance), clients=2, repeat=True),
        Stream(
            "search", searches(texts, chance), rate=options.rate, seed=chance.getrandbits(32), repeat=True
        ),
        Stream("ingest", ingests(documents, chance), clients=1, repeat=True),
        Stream("rerank", reranks(texts), clients=1, repeat=True),
        Stream("delete", deletes(texts, options.documents), clients=1),
        Stream("leave", leaves(texts, documents, chance), clients=2, repeat=True),
        Stream("look", looks(texts), rate=2.0, seed=chance.getrandbits(32), repeat=True),
    ]
    return generator.run(server.address, streams, window_s=EPISODE_S)


def embeds(texts: Texts, chance: random.Random) -> list[Request]:
    """Small and large, in all formats."""
    made = []
    for number in range(200):
        size = 64 if number % 20 == 19 else chance.choice((1, 1, 1, 4, 8))
        form = FORMATS[chance.choice(tuple(FORMATS))] if size < 64 else FORMATS["all-safetensors"]
        made.append(trivec_request(form)(texts.fresh_passages(size)))
    return made


def searches(texts: Texts, chance: random.Random) -> list[Request]:
    """In all modes, some explained, some filtered, some of several queries."""
    made = []
    for query in texts.fresh_queries(200):
        body: dict[str, Any] = {"query": query, "top_k": chance.choice((1, 10, 50))}
        body["mode"] = chance.choice(("hybrid", "hybrid", "dense", "sparse", "colbert"))
        if chance.random() < 0.2:
            body["explain"] = True
        if chance.random() < 0.3:
            body["filter"] = {"group": chance.randrange(8)}
        if chance.random() < 0.1:
            body["query"] = texts.fresh_queries(3)
        made.append(Request("/search", body, headers=LONG))
    return made


def ingests(documents: Documents, chance: random.Random) -> list[Request]:
    """Replacements, as JSON and as NDJSON."""
    made = []
    for _ in range(100):
        bodies = documents.bodies(chance.choice((1, 4, 16)))
        if chance.random() < 0.3:
            lines = "".join(json.dumps(one) + "\n" for one in bodies)
            made.append(Request(PATH, lines, headers={**LONG, "Content-Type": "application/x-ndjson"}))
        else:
            made.append(Request(PATH, {"documents": bodies}, headers=LONG))
    return made


def reranks(texts: Texts) -> list[Request]:
    """Ten texts against a query."""
    return [
        Request("/rerank", {"query": query, "documents": texts.fresh_passages(10)}, headers=LONG)
        for query in texts.fresh_queries(50)
    ]


def deletes(texts: Texts, first: int) -> list[Request]:
    """Documents deleted in three ways, and put back; one client sends them in this order, once.

    Where an episode ended before the order did, the first is not there: 404.
    """
    ids = [f"d{first + place}" for place in range(DELETED)]
    back = Documents(texts, DELETED, first)
    by_filter = {"filter": {"$and": [{"again": True}, {"group": {"$gte": 0}}]}}
    marked = [{**one, "metadata": {"again": True, "group": 0}} for one in back.bodies(DELETED)]
    return [
        Request(f"{PATH}/{ids[0]}", method="DELETE", expects=(200, 404)),
        Request(f"{PATH}/delete", {"ids": ids[1:]}),
        Request(PATH, {"documents": marked}, headers=LONG),
        Request(f"{PATH}/delete", by_filter),
        back.request(DELETED),
    ]


def leaves(texts: Texts, documents: Documents, chance: random.Random) -> list[Request]:
    """Requests whose clients do not wait for the answer."""
    made = []
    for number in range(100):
        if number % 3:
            request = trivec_request(FORMATS["all"])(texts.fresh_passages(32))
        else:
            request = documents.request(16)
        patience = chance.uniform(0.05, 0.8)
        made.append(Request(request.path, request.body, headers=LONG, leave_after_s=patience))
    return made


def looks(texts: Texts) -> list[Request]:
    """What costs no inference, mistakes among it."""
    return [
        Request("/collections/default", method="GET"),
        Request("/tokenize", {"texts": texts.fresh_passages(4)}),
        Request("/health/ready", method="GET"),
        Request("/info", method="GET"),
        Request("/search", {"query": "tower", "topk": 3}, expects=(422,)),
        Request("/collections/nowhere/search", {"query": "tower"}, expects=(404,)),
        Request(f"{PATH}/d0", method="GET"),
        Request("/embed", '{"texts": ["half', expects=(422,)),
    ]


def documents_of(server: Served) -> int:
    """How many documents the collection has."""
    answer = httpx.get(f"{server.url}/collections/default", timeout=60)
    return int(answer.json()["count"])


def drift(samples: Sequence[tuple[float, float]]) -> dict[str, float]:
    """A line through memory over time: what it rises from its beginning to its end, in per cent of the mean.

    `last_to_first_percent` compares the means of the last and the first fifth instead.
    """
    at, mib = (np.array(column) for column in zip(*samples, strict=True))
    slope, _ = np.polyfit(at, mib, 1) if len(at) > 1 else (0.0, 0.0)
    fifth = max(1, len(mib) // 5)
    first, last = mib[:fifth].mean(), mib[-fifth:].mean()
    return {
        "mean_mib": digits(mib.mean()),
        "drift_percent": digits(100 * slope * (at[-1] - at[0]) / mib.mean()),
        "last_to_first_percent": digits(100 * (last - first) / first),
        "mib_per_hour": digits(3600 * slope),
        "samples": len(mib),
    }


def thinned(samples: list[tuple[float, float, float]], most: int = 60) -> list[tuple[float, float, float]]:
    """At most so many samples, evenly."""
    return samples[:: max(1, -(-len(samples) // most))]


def told(engine: str, result: dict[str, Any]) -> str:
    """The soak as a line."""
    resident, anonymous = result["resident"], result["anonymous"]
    return (
        f"  {engine}: {result['requests']} requests in {result['minutes']} minutes, "
        f"{result['unexpected']} unexpected "
        f"({result['statuses']}); at rest {resident['mean_mib']} MiB, drift "
        f"{resident['drift_percent']:.2f} % "
        f"(anonymous {anonymous['drift_percent']:.2f} %), peak {result['mib_peak']} MiB; problems "
        f"{result['problems']}"
    )
