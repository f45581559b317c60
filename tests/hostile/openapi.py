"""schemathesis over the whole OpenAPI document: how it is set up, and what it may meet without being right.

It reads the document, sends what fits it and what does not, and compares each answer with what the
document promises. What a schema cannot say is listed in `UNSAID`, each with the reason.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

from tests.hostile.server import Running

LEAKS = re.compile(
    r"Traceback|File \\?\"|line \d+, in |site-packages|\.py\b|(?<![\w/])/(?:usr|root|home|tmp|var|proc|opt)/"
    r"| object at |\b0x[0-9a-f]{6,}|\b[A-Z][a-z]+[A-Za-z]*(?:Error|Exception|Warning)\b|SECRET"
)
"""What no refusal may tell: stacks, files, addresses, names of exceptions."""

UNSAID: Mapping[str, tuple[str, ...]] = {
    "limits of the model and of the operator; /info tells them": (
        r"takes at most \d+ tokens",
        r"the limit is \d+$",
        "token ids lie between",
        "token ids must be this model's own",
        r"this model gives \d+ dimensions",
        r"this model's vectors have \d+ numbers",
        r"\d+ numbers, where this model has \d+",
    ),
    "the tokens of a text are not its characters": (
        r"the text has \d+ tokens, the limit is",
        r"must have less than \d+ tokens",
    ),
    "what one field means for another": (
        "at least one weight must be greater than 0",
        "bm25 can have a weight where it is true only",
        "there must be at least top_k candidates",
        "either ids or filter is expected",
        "not both$",
        "texts are missing",
        "one format at a time",
        "a text, or else a title,",
        r"\d+ indices but \d+ values",
        "has no such vectors",
        "the query has none",
        "made without bm25",
    ),
    "what base64 holds": (
        "base64 of little-endian",
        "bytes, where a vector of this model has",
        "vectors, where one is expected",
        "the bytes are those of",
        "a number is NaN or infinite",
    ),
    "JSON does not say how large a number may be": (
        "a number is too large",
        "a double cannot hold",
        "must fit in 64 bits",
    ),
    "weights are of distinct tokens, and positive": ("lexical (indices|values) must be",),
    "the grammar of filters": ("^invalid_filter: ",),
    "a limit in bytes, or of depth": ("^invalid_document: .*(bytes of UTF-8|deep|characters|values)",),
}
"""Why the document cannot say what a refusal says -> the refusal's words (`code: message`)."""

IDS = ("0", "1", "2", "a/b", "naïve id")
"""Of the documents that each collection begins with."""
COLLECTIONS = ("default", "words")
DOOMED = "doomed"


@dataclass
class Findings:
    """What a run has found; `served` counts the answers of each operation that were a success."""

    failures: dict[str, str] = field(default_factory=dict)
    """One of each kind."""
    excused: Counter[str] = field(default_factory=Counter)
    served: Counter[str] = field(default_factory=Counter)
    operations: set[str] = field(default_factory=set)
    requests: int = 0

    def report(self) -> str:
        """The failures, for a person."""
        return "\n\n".join(f"{kind}\n{example}" for kind, example in list(self.failures.items())[:20])


def refusal(body: bytes) -> str:
    """`code: message` of an error in any of the forms; the code is missing where the form has none."""
    try:
        given = json.loads(body)
    except ValueError:
        return ""
    if not isinstance(given, dict):
        return ""
    error = given.get("error")
    inner = error if isinstance(error, dict) else {}
    said = inner.get("message") or given.get("message") or (error if isinstance(error, str) else "")
    return f"{inner.get('code') or given.get('code') or ''}: {said}"


def excuse(name: str, label: str, body: bytes) -> str | None:
    """Why a failed check does not count; None where it does."""
    if name == "positive_data_acceptance":
        said = refusal(body)
        return next(
            (why for why, words in UNSAID.items() if any(re.search(one, said) for one in words)), None
        )
    if name == "negative_data_rejection" and label.endswith("/documents") and b'"error":{"code":' in body:
        return "a document that does not fit is refused by itself, the others are stored"
    if name == "allow_header_conformance" and label == "POST /collections/{name}/documents/delete":
        return "`delete` is also the id of a document, which GET reads"
    return None


def says_nothing_of_its_inside(ctx: Any, response: Any, case: Any) -> None:
    """A check: an error has the id of its request and no trace of the code."""
    del ctx, case
    assert response.headers.get("x-request-id"), "an answer without X-Request-ID"
    if response.status_code < 400:
        return
    text = response.content.decode("utf-8")
    assert not (found := LEAKS.search(text)), f"the refusal tells {found}"


@contextmanager
def _checking() -> Iterator[None]:
    """Schemathesis knows checks for the whole process: ours is there while a run needs it."""
    schemathesis.check(says_nothing_of_its_inside)
    try:
        yield
    finally:
        schemathesis.checks.CHECKS.unregister(says_nothing_of_its_inside.__name__)


def _config(seed: int, examples: int, key: str | None, stateful: bool) -> SchemathesisConfig:
    return SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "continue-on-failure": True,
            # A server that hangs shows as an error of the network.
            "request-timeout": 60,
            "generation": {"max-examples": examples, "database": "none"},
            "phases": {"stateful": {"enabled": stateful}},
            # These follow one document through its life, while `fill` puts back what is deleted and `_known`
            # asks for another one; test_texts.py asks for what was deleted.
            "checks": {
                name: {"enabled": False} for name in ("use_after_free", "ensure_resource_availability")
            },
            **({"headers": {"Authorization": f"Bearer {key}"}} if key is not None else {}),
        }
    )


def _known(context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Most requests ask for what is there: of names that are made up, none ever is."""
    if path_parameters is None:
        return None
    number = sum(ord(letter) for value in path_parameters.values() for letter in str(value))
    if number % 4 == 0:
        return path_parameters
    chosen = {"name": COLLECTIONS[number % len(COLLECTIONS)], "id": IDS[number % len(IDS)], "model": "fake"}
    if context.operation.label == "DELETE /collections/{name}":
        chosen["name"] = DOOMED
    return {name: chosen.get(name, value) for name, value in path_parameters.items()}


def fill(server: Running, key: str | None) -> None:
    """Put (back) collections with documents, so that there is something to find."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    documents = [{"id": one, "text": f"the cat {one}", "metadata": {"n": one}} for one in IDS]
    with server.client() as client:
        client.put(f"/collections/{DOOMED}", headers=headers)
        for name in COLLECTIONS:
            client.put(f"/collections/{name}", json={"bm25": name == "words"}, headers=headers)
            # 404: schemathesis, which goes on meanwhile, has just deleted it again.
            stored = client.post(f"/collections/{name}/documents", json=documents, headers=headers)
            assert stored.status_code in (200, 404), stored.text


def explore(
    server: Running, *, seed: int, examples: int, key: str | None = None, stateful: bool = False
) -> Findings:
    """Every operation of a running server's document, with data that fits and data that does not."""
    fill(server, key)
    config = _config(seed, examples, key, stateful)
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=config)
    schema.hook("map_path_parameters")(_known)
    found = Findings()
    with _checking():
        for event in from_schema(schema).execute():
            if isinstance(event, events.ScenarioFinished):
                _read(event, found)
                fill(server, key)
            elif isinstance(event, events.NonFatalError):
                found.failures[event.label] = str(event.value)
            elif isinstance(event, events.FatalError):
                raise event.exception
    found.operations = {
        f"{method.upper()} {path}"
        for path, methods in schema.raw_schema["paths"].items()
        for method in methods
    }
    return found


def _read(event: events.ScenarioFinished, found: Findings) -> None:
    recorder = event.recorder
    for case_id, interaction in recorder.interactions.items():
        found.requests += 1
        answer = interaction.response
        if answer is not None and answer.status_code < 300:
            found.served[recorder.cases[case_id].value.operation.label] += 1
    for case_id, checks in recorder.checks.items():
        answer = recorder.interactions[case_id].response
        body = b"" if answer is None else answer.content
        label = recorder.cases[case_id].value.operation.label
        for check in checks:
            if check.failure_info is None:
                continue
            if (why := excuse(check.name, label, body)) is not None:
                found.excused[why] += 1
            else:
                kind = f"{check.name} {label} {refusal(body)}"
                message, sample = check.failure_info.failure.message, check.failure_info.code_sample
                found.failures.setdefault(kind, f"{message[:1000]}\n{body[:500]!r}\n{sample[:2000]}")
