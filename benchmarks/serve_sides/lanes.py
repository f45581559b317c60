"""Part `lanes`: does a search stay fast while documents come in as fast as the machine takes them?

Each round: searches alone, ingestion alone, both. Both write to and search the same collection, whose size
stays as it is, for a document that comes in replaces one.
"""

from __future__ import annotations

import itertools
import random
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.encode_sides.pairing import spread
from benchmarks.encode_sides.protocol import busy_s
from benchmarks.search_sides.measuring import digits
from benchmarks.serve_sides.embedding import LONG
from benchmarks.serve_sides.generator import Answer, Generator, LoadError, Outcome, Request, Stream, latencies
from benchmarks.serve_sides.servers import Served, trivec
from benchmarks.serve_sides.texts import Texts

BULK_CLIENTS, BULK_DOCUMENTS = 2, 32
PATH = "/collections/default/documents"
WARM_S = 5.0


def measure(
    folder: Path, engine: str, texts: Texts, generator: Generator, options: Namespace
) -> dict[str, Any]:
    """All rounds of one engine."""
    with trivec(folder, engine) as server:
        documents = Documents(texts, options.documents)
        fill(server, generator, documents, options.documents)
        # Compiles what both need, and lets the index settle.
        load(server, generator, searches(texts, options, 3), 3)
        load(server, generator, [*searches(texts, options, WARM_S), bulk(documents, 16)], WARM_S)
        rows = [one_round(server, generator, texts, documents, options) for _ in range(options.rounds)]
    result = {
        "searches_per_s": options.rate,
        "bulk_clients": BULK_CLIENTS,
        "documents_a_bulk_request": BULK_DOCUMENTS,
        "documents": options.documents,
        "seconds_of_a_phase": options.phase,
        "rounds": options.rounds,
        **{name: spread([row[name] for row in rows]) for name in ("p99_ratio", "p50_ratio", "bulk_share")},
        "of_rounds": rows,
    }
    print(told(engine, result), flush=True)
    return result


class Documents:
    """Documents with ids in a ring: new ones until it is full, then each replaces the one that came first."""

    def __init__(self, texts: Texts, size: int, first: int = 0) -> None:
        self.texts = texts
        self.ids = itertools.cycle(range(first, first + size))

    def request(self, number: int) -> Request:
        """An upsert of so many fresh documents."""
        return Request(PATH, {"documents": self.bodies(number)}, headers=LONG)

    def bodies(self, number: int) -> list[dict[str, Any]]:
        """The same as JSON objects, with metadata to filter by."""
        return [
            {"id": f"d{place}", "text": text, "metadata": {"group": place % 8}}
            # The endless side comes second: it would lose an id each time the other is used up.
            for text, place in zip(self.texts.fresh_passages(number), self.ids, strict=False)
        ]


def fill(server: Served, generator: Generator, documents: Documents, count: int) -> None:
    """Put the first documents in."""
    sizes = [BULK_DOCUMENTS] * (count // BULK_DOCUMENTS) + [count % BULK_DOCUMENTS]
    requests = [documents.request(size) for size in sizes if size]
    outcome = generator.run(server.address, [Stream("fill", requests, clients=1)])
    outcome.refuse_unexpected()
    if (stored := sum(one.upserted or 0 for one in outcome.answers)) != count:
        raise LoadError(f"{stored} of {count} documents were stored")


def searches(texts: Texts, options: Namespace, seconds: float) -> list[Stream]:
    """Single hybrid searches, each a query that was never asked before, for longer than a phase may last."""
    queries = texts.fresh_queries(int(options.rate * seconds * 3) + 50)
    requests = [Request("/search", {"query": query, "top_k": 10}) for query in queries]
    return [Stream("search", requests, rate=options.rate, seed=random.getrandbits(32), repeat=True)]


def bulk(documents: Documents, requests: int) -> Stream:
    """Clients that post one batch after another."""
    made = [documents.request(BULK_DOCUMENTS) for _ in range(requests)]
    return Stream("bulk", made, clients=BULK_CLIENTS, repeat=True)


def load(server: Served, generator: Generator, streams: Sequence[Stream], seconds: float) -> Outcome:
    """A phase; every answer in it is as expected."""
    outcome = generator.run(server.address, streams, window_s=seconds)
    outcome.refuse_unexpected()
    return outcome


def one_round(
    server: Served, generator: Generator, texts: Texts, documents: Documents, options: Namespace
) -> dict[str, Any]:
    """Idle, bulk alone, both; the ratios of this round."""
    seconds = options.phase
    # Texts must not repeat within a phase: so many that a fast model does not come to their end.
    batches = BULK_CLIENTS * 16 + int(seconds * 20)
    before = busy_s()
    idle = load(server, generator, searches(texts, options, seconds), seconds)
    alone = load(server, generator, [bulk(documents, batches)], seconds)
    both = load(server, generator, [*searches(texts, options, seconds), bulk(documents, batches)], seconds)
    took = idle.seconds + alone.seconds + both.seconds
    quiet, busy = latencies(idle.of("search")), latencies(in_window(both.of("search"), seconds))
    rates = [rate(outcome.of("bulk"), 0.1 * seconds, seconds) for outcome in (alone, both)]
    row = {
        "p50_ratio": digits(busy["p50_ms"] / quiet["p50_ms"]),
        "p99_ratio": digits(busy["p99_ms"] / quiet["p99_ms"]),
        "bulk_share": digits(rates[1] / rates[0]),
        "idle": {**quiet, **timings(idle.of("search"))},
        "busy": {**busy, **timings(in_window(both.of("search"), seconds))},
        "bulk_tokens_per_s": {"alone": digits(rates[0]), "with_searches": digits(rates[1])},
        "cores_of_load_generator": digits((idle.cpu_s + alone.cpu_s + both.cpu_s) / took),
        "cores_busy": digits((busy_s() - before) / took),
        "generator_late_ms": digits(1e3 * max(idle.lag_s, both.lag_s)),
    }
    print(
        f"    idle p50 {quiet['p50_ms']} p99 {quiet['p99_ms']} ms, busy p50 {busy['p50_ms']} p99 "
        f"{busy['p99_ms']} ms "
        f"({quiet['requests']} and {busy['requests']} searches); bulk {rates[0]:.0f} and {rates[1]:.0f} "
        f"tokens/s",
        flush=True,
    )
    return row


def in_window(answers: Sequence[Answer], seconds: float) -> list[Answer]:
    """Those that were due in the phase itself, and not while its last batches were waited for."""
    return [one for one in answers if one.due < seconds]


def rate(answers: Sequence[Answer], start: float, end: float) -> float:
    """Tokens of stored documents a second between two times, for documents differ in length by 25 times.

    A batch counts with the part of its time that lies there.
    """
    done = 0.0
    for one in answers:
        inside = min(one.done, end) - max(one.sent, start)
        if inside > 0 and one.upserted and one.tokens:
            done += one.tokens * inside / (one.done - one.sent)
    return done / (end - start)


def timings(answers: Sequence[Answer]) -> dict[str, float]:
    """Medians of what the server says of a search: waiting for the model, and in it."""

    def known() -> Iterator[tuple[float, float]]:
        return (
            (one.queue_ms, one.inference_ms)
            for one in answers
            if one.queue_ms is not None and one.inference_ms is not None
        )

    pairs = list(known())
    if not pairs:
        return {}
    return {
        "queue_p50_ms": spread([queue for queue, _ in pairs])["median"],
        "inference_p50_ms": spread([inference for _, inference in pairs])["median"],
    }


def told(engine: str, result: dict[str, Any]) -> str:
    """All rounds as a line."""
    p99, share = result["p99_ratio"], result["bulk_share"]
    return (
        f"  {engine}: p99 of searches {p99['median']:.2f} times idle ({p99['q1']:.2f} to "
        f"{p99['q3']:.2f}), p50 "
        f"{result['p50_ratio']['median']:.2f} times; bulk keeps {share['median']:.2f} ({share['q1']:.2f} to "
        f"{share['q3']:.2f}), {result['rounds']} rounds"
    )
