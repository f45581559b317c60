"""Requests for embeddings, to Trivec and to its peers, and one closed-loop run of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from benchmarks.encode_sides.protocol import busy_s
from benchmarks.serve_sides.generator import Generator, LoadError, Outcome, Request, Stream
from benchmarks.serve_sides.servers import Served
from model.embedding import OUTPUTS

LONG = {"X-Request-Timeout": "3600"}
"""A closed loop of slow answers must not run into the default deadline."""


@dataclass(frozen=True, slots=True)
class Format:
    """What is asked of /embed and how it comes."""

    outputs: tuple[str, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


FORMATS: Mapping[str, Format] = {
    "dense": Format(("dense",)),
    "all": Format(OUTPUTS),
    "all-base64": Format(OUTPUTS, {"encoding": "base64"}),
    "all-safetensors": Format(OUTPUTS, headers={"Accept": "application/vnd.safetensors"}),
}
"""`dense` and `all` are JSON numbers, what a client gets that asks for nothing else."""

Maker = Callable[[Sequence[str]], Request]


def trivec_request(form: Format) -> Maker:
    """Makes requests to Trivec."""

    def make(texts: Sequence[str]) -> Request:
        body = {"texts": list(texts), "outputs": list(form.outputs), **form.fields}
        return Request("/embed", body, headers={**LONG, **form.headers})

    return make


def in_requests(texts: Sequence[str], each: int, make: Maker) -> list[Request]:
    """Requests of `each` texts."""
    return [make(texts[start : start + each]) for start in range(0, len(texts), each)]


@dataclass(frozen=True, slots=True)
class Run:
    """A closed-loop run, and the cores that were busy meanwhile."""

    outcome: Outcome
    texts: int
    seconds: float
    tokens: int | None
    """As the answers count them; None where one does not."""
    server_cores: float
    others_cores: float

    @property
    def generator_cores(self) -> float:
        return self.outcome.cpu_s / self.outcome.seconds


def closed_run(
    server: Served, generator: Generator, requests: Sequence[Request], clients: int, texts: int
) -> Run:
    """Let a server that is stopped go on, load it, stop it. Raises LoadError where an answer is an error."""
    server.go_on()
    busy, own = busy_s(), server.cpu_s()
    outcome = generator.run(server.address, [Stream("embed", requests, clients=clients)])
    own, busy = server.cpu_s() - own, busy_s() - busy
    server.stop()
    outcome.refuse_unexpected()
    if len(outcome.answers) != len(requests):
        raise LoadError(f"{len(outcome.answers)} answers to {len(requests)} requests")
    counted = [one.tokens for one in outcome.answers]
    seconds = max(one.done for one in outcome.answers) - min(one.sent for one in outcome.answers)
    return Run(
        outcome,
        texts,
        seconds,
        None if None in counted else sum(one or 0 for one in counted),
        own / seconds,
        max(0.0, busy - own - outcome.cpu_s) / seconds,
    )


def dense_vectors(server: Served, request: Request, read: Callable[[Any], Any]) -> NDArray[np.float32]:
    """The dense vectors of one request's texts [N, D], unit length."""
    server.go_on()
    answer = httpx.post(server.url + request.path, json=request.body, headers=request.headers, timeout=600)
    server.stop()
    if answer.status_code != 200:
        raise LoadError(f"{server.name}: status {answer.status_code}: {answer.text[:300]}")
    found = np.array(read(answer.json()), np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def trivec_dense(answer: Any) -> list[list[float]]:
    """The dense vectors of Trivec's answer."""
    return [one["dense"] for one in answer["results"]]


def check_same(
    ours: NDArray[np.float32], theirs: NDArray[np.float32], least: float, name: str
) -> dict[str, float]:
    """Cosines text by text. Raises LoadError where a side computes something else: it is not timed then."""
    cosines = (ours * theirs).sum(axis=1)
    if not cosines.min() >= least:
        raise LoadError(f"{name}: a dense cosine is {cosines.min():.4f}, below {least}: not timed")
    return {"smallest": round(float(cosines.min()), 6), "mean": round(float(cosines.mean()), 6)}
