"""How a refusal looks on the wire: every API that Trivec imitates has errors of a form of its own.

The form is chosen by the first part of the path, so that what middleware refuses (a body over its limit, a
deadline, an unknown route) has it too. What goes wrong and what is said of it stays in `app.errors`; here
it is only written. One more API: a function of the type `ErrorFormat` and a line in `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """What a client is told."""

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: int | None = None

    def body(self) -> dict[str, str | None]:
        """Code, message and param, as they also stand beside a single document of a bulk request."""
        return {"code": self.code, "message": self.message, "param": self.param}

    def sentence(self) -> str:
        """The message with its field in front, for forms that have no place for a field."""
        return f"{self.param}: {self.message}" if self.param else self.message


@dataclass(frozen=True, slots=True)
class WireError:
    """Status and JSON body of an answer that is no success."""

    status: int
    body: Mapping[str, Any]


ErrorFormat = Callable[[Problem, str], WireError]
"""(problem, request id) -> what is sent."""

OPENAI_CODES: Mapping[str, str] = {
    "unauthorized": "invalid_api_key",
    "queue_full": "rate_limit_exceeded",
    "text_too_long": "context_length_exceeded",
}
"""Codes that programs look for; all others keep Trivec's name."""

TEI_ERRORS: Mapping[str, tuple[int, str]] = {
    "empty_input": (400, "Empty"),
    "limit_exceeded": (413, "Validation"),
    "invalid_tokens": (422, "Tokenizer"),
    "output_unavailable": (424, "Backend"),
    "inference_failed": (424, "Backend"),
    "load_failed": (500, "Unhealthy"),
}
"""Status and type of text-embeddings-inference where they do not follow from Trivec's status."""


def native(problem: Problem, request_id: str) -> WireError:
    """Trivec's own: `{"error": {"code", "message", "param", "request_id"}}`."""
    return WireError(problem.status, {"error": {**problem.body(), "request_id": request_id}})


def openai(problem: Problem, request_id: str) -> WireError:
    """OpenAI's `error` object, and beside it the one field that the others who live under /v1 look for.

    Jina's clients read `detail` (without it they raise a KeyError instead), Cohere's read `message`.
    """
    status = _bad_request(problem)
    error = {
        "message": problem.message,
        "type": _openai_type(status),
        "param": problem.param,
        "code": OPENAI_CODES.get(problem.code, problem.code),
        "request_id": request_id,
    }
    return WireError(status, {"error": error, "detail": problem.sentence(), "message": problem.sentence()})


def cohere(problem: Problem, request_id: str) -> WireError:
    """Cohere's `message`; code, field and request id stand beside it."""
    own = {"code": problem.code, "param": problem.param, "request_id": request_id}
    return WireError(_bad_request(problem), {"message": problem.sentence(), **own})


def tei(problem: Problem, request_id: str) -> WireError:
    """text-embeddings-inference's `error` and `error_type`; the request id stands in the header only."""
    status, kind = TEI_ERRORS.get(problem.code) or (problem.status, _tei_type(problem.status))
    return WireError(status, {"error": problem.sentence(), "error_type": kind})


def _bad_request(problem: Problem) -> int:
    """OpenAI and Cohere answer 400 to whatever is wrong with the content of a body."""
    return 400 if problem.status == 422 or problem.code == "text_too_long" else problem.status


def _openai_type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def _tei_type(status: int) -> str:
    kinds = {429: "Overloaded", 503: "Unhealthy", 504: "Overloaded"}
    return kinds.get(status, "Backend" if status >= 500 else "Validation")


FORMATS: Mapping[str, ErrorFormat] = {"tei": tei, "v1": openai, "v2": cohere}
"""First part of the path -> the form of its errors; all other paths are Trivec's own."""


def error_format(path: str) -> ErrorFormat:
    """The form that clients of a path expect."""
    return FORMATS.get(path.lstrip("/").split("/", 1)[0], native)
