"""Part `overload`: far more requests than the model can serve, at times that do not depend on the answers.

The queue before the model is set small, so that it fills. Every tenth request has a deadline of a second. All
must be answered, with 200, 429 (which says when to come back) or 504; then the server must be as fast as it
was.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.search_sides.measuring import digits
from benchmarks.serve_sides.embedding import FORMATS, LONG, in_requests, trivec_request
from benchmarks.serve_sides.generator import Answer, Generator, Request, Stream, latencies
from benchmarks.serve_sides.servers import Memory, Served, trivec
from benchmarks.serve_sides.texts import Texts

QUEUE_TOKENS = 16384
CLIENTS = 64
PROBE_RATE, PROBES = 5.0, 10
SHORT_S = 1.0
NORMAL = 1.5
"""Latency is back to normal where the median of `PROBES` queries is below so many times what it was
before.
"""
ANSWERS = (200, 429, 504)


def measure(
    folder: Path, engine: str, texts: Texts, generator: Generator, options: Namespace
) -> dict[str, Any]:
    """One flood, and how it ended."""
    with trivec(folder, engine, max_queue_tokens=QUEUE_TOKENS) as server:
        capacity = served_a_second(server, generator, texts, options.seconds)
        calm = probe(server, generator, texts, 30)
        before = settled_mib(server)
        rate = capacity * options.times
        fresh = texts.fresh_passages(options.requests)
        requests = [flood_request(text, number) for number, text in enumerate(fresh)]
        with Memory(server) as memory:
            outcome = generator.run(server.address, [Stream("flood", requests, rate=rate)])
        back_s, afterwards = recovery(server, generator, texts, median(one.latency_s for one in calm))
        after = settled_mib(server)
        server.memory_mib()  # it still runs
    answers = outcome.answers
    last = max(one.done for one in answers)
    result = {
        "capacity_per_s": digits(capacity),
        "offered_per_s": digits(rate),
        "sent_per_s": digits(len(answers) / max(1e-9, max(one.sent for one in answers))),
        "queue_tokens": QUEUE_TOKENS,
        "requests": len(requests),
        "statuses": outcome.statuses(),
        "unexpected": len(outcome.unexpected()),
        "problems": outcome.problems[:5],
        "refusals_without_retry_after": sum(one.status == 429 and not one.retry_after for one in answers),
        "retry_after_s": sorted({one.retry_after for one in answers if one.retry_after}),
        "of_200": latencies(one for one in answers if one.status == 200),
        "of_429": latencies(one for one in answers if one.status == 429),
        "of_504_with_deadline_1_s": latencies(late(answers)),
        "all_answered_after_s": digits(last),
        "mib_before": before,
        "mib_peak": digits(max(resident for _, resident, _ in memory.samples)),
        "mib_after": after,
        "idle_before": latencies(calm),
        "back_to_normal_s": back_s,
        "idle_after": latencies(afterwards),
        "cores_of_load_generator": digits(outcome.cpu_s / outcome.seconds),
        "generator_late_ms": digits(1e3 * outcome.lag_s),
    }
    print(told(engine, result), flush=True)
    return result


def flood_request(text: str, number: int) -> Request:
    """A text to embed; every tenth must be answered within a second."""
    headers = {"X-Request-Timeout": str(SHORT_S)} if number % 10 == 9 else LONG
    return Request("/embed", {"texts": text, "outputs": ["dense"]}, headers=headers, expects=ANSWERS)


def late(answers: tuple[Answer, ...]) -> list[Answer]:
    """The requests whose deadline passed."""
    return [one for one in answers if one.status == 504]


def served_a_second(server: Served, generator: Generator, texts: Texts, seconds: float) -> float:
    """Requests a second in a closed loop of `CLIENTS`; the second half of the time counts."""
    make = trivec_request(FORMATS["dense"])
    requests = in_requests(texts.fresh_passages(4096), 1, make)
    stream = Stream("embed", requests, clients=CLIENTS, repeat=True)
    outcome = generator.run(server.address, [stream], window_s=seconds)
    half = seconds / 2
    return sum(one.status == 200 and half <= one.done < seconds for one in outcome.answers) / half


def probe(server: Served, generator: Generator, texts: Texts, count: int) -> list[Answer]:
    """Single queries at a calm rate."""
    requests = [
        Request("/embed", {"texts": query, "kind": "query", "outputs": ["dense"]}, expects=ANSWERS)
        for query in texts.fresh_queries(count)
    ]
    outcome = generator.run(server.address, [Stream("probe", requests, rate=PROBE_RATE)])
    outcome.refuse_unexpected()
    return list(outcome.answers)


def recovery(
    server: Served, generator: Generator, texts: Texts, normal_s: float
) -> tuple[float | None, list[Answer]]:
    """Seconds after the flood's last answer until queries are as fast as before (None: not within a
    minute).
    """
    for tried in range(int(60 * PROBE_RATE / PROBES)):
        found = probe(server, generator, texts, PROBES)
        if median(one.latency_s for one in found) <= NORMAL * normal_s:
            return round(tried * PROBES / PROBE_RATE, 1), found
    return None, found


def settled_mib(server: Served) -> float:
    """Resident memory now."""
    return digits(server.memory_mib()["resident"])


def told(engine: str, result: dict[str, Any]) -> str:
    """The flood as a line."""
    return (
        f"  {engine}: {result['requests']} requests at {result['offered_per_s']:.0f}/s (capacity "
        f"{result['capacity_per_s']:.1f}/s): {result['statuses']}, all answered after "
        f"{result['all_answered_after_s']:.0f} s; memory {result['mib_before']:.0f}, peak "
        f"{result['mib_peak']:.0f}, "
        f"after {result['mib_after']:.0f} MiB; back to normal after {result['back_to_normal_s']} s; problems "
        f"{result['problems']}"
    )
