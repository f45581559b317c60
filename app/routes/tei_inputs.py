"""What the routes under /tei do alike before the model works: inputs checked, tokenised, cut or refused."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastapi import Request

from app.errors import EmptyInput, InvalidRequest, LimitExceeded, TextTooLong
from app.ports import Tokenized
from app.routes.common import truncation
from app.schemas.tei import Prompted, Truncation
from app.service import Service, service_of
from app.telemetry import Record, record_of
from app.token_ids import GivenTokens, cut, framed

Input = str | Sequence[int]
"""A text, or the ids of its tokens."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Texts that are ready for the model, and what it took to get there."""

    service: Service
    record: Record
    tokenized: Sequence[Tokenized]
    characters: int
    began: float
    tokenization_ms: float

    def headers(self) -> dict[str, str]:
        """What text-embeddings-inference tells of a request, in whole milliseconds, and how many were cut.

        `x-compute-type` is not among them: Trivec does not say where TensorFlow computes.
        """
        total = f"{(time.monotonic() - self.began) * 1000:.0f}"
        return {
            **truncation(self.tokenized),
            "x-compute-time": total,
            "x-compute-characters": str(self.characters),
            "x-compute-tokens": str(self.record.tokens),
            "x-total-time": total,
            "x-tokenization-time": f"{self.tokenization_ms:.0f}",
            "x-queue-time": f"{self.record.queue_ms:.0f}",
            "x-inference-time": f"{self.record.inference_ms or 0.0:.0f}",
        }


def inputs_of(inputs: str | Sequence[int | str | list[int]]) -> dict[str, Input]:
    """The field `inputs` as single inputs by the names that errors give them."""
    if isinstance(inputs, str):
        return {"inputs": inputs}
    ids = [one for one in inputs if isinstance(one, int)]
    if ids:
        return {"inputs": ids}
    return {f"inputs.{place}": one for place, one in enumerate(inputs) if not isinstance(one, int)}


def check_batch(service: Service, items: Sequence[object] | Mapping[str, object], param: str) -> None:
    """Raise EmptyInput where there is nothing, LimitExceeded where there are too many for one request."""
    if not items:
        raise EmptyInput("cannot be empty", param=param)
    if len(items) > (limit := service.settings.max_texts):
        # Clients read the limit out of these words.
        raise LimitExceeded(f"batch size {len(items)} > maximum allowed batch size {limit}", param=param)


def check_filled(inputs: Mapping[str, Input]) -> None:
    """Raise EmptyInput naming the first text that is empty; white space is not."""
    for name, one in inputs.items():
        if not one:
            raise EmptyInput("cannot be empty", param=name)


def refuse_prompt(name: str | None) -> None:
    """Raise InvalidRequest where a prompt is named."""
    if name is not None:
        raise InvalidRequest(
            "this model has no prompts; leave the field out, and put a prompt's words into the text",
            param="prompt_name",
        )


async def prepare(request: Request, inputs: Mapping[str, Input], options: Truncation) -> Prepared:
    """Tokenise; raises TextTooLong for an input of more tokens than the model takes that may not be cut."""
    service, record, began = service_of(request), record_of(request), time.monotonic()
    if isinstance(options, Prompted):
        refuse_prompt(options.prompt_name)
    limit = service.model.card.max_length
    truncate = service.settings.tei_auto_truncate if options.truncate is None else options.truncate
    keep_end = truncate and options.truncation_direction == "Left"
    # Whose beginning is cut off must be tokenised to its end.
    tokenized = await _tokenized(service, inputs, None if keep_end else limit)
    if not truncate:
        _refuse_long(inputs, tokenized, limit)
    kept = [cut(one, limit, keep_end=keep_end) for one in tokenized]
    characters = sum(map(len, inputs.values()))
    return Prepared(service, record, kept, characters, began, (time.monotonic() - began) * 1000)


async def _tokenized(service: Service, inputs: Mapping[str, Input], limit: int | None) -> list[Tokenized]:
    texts = [one for one in inputs.values() if isinstance(one, str)]
    of_texts = iter(await service.tokenize(texts, limit))
    given = {name: one for name, one in inputs.items() if not isinstance(one, str)}
    of_ids = await _given(service, given) if given else {}
    return [of_ids[name] if name in of_ids else next(of_texts) for name in inputs]


async def _given(service: Service, inputs: Mapping[str, Sequence[int]]) -> dict[str, GivenTokens]:
    """In a worker thread, for a body may hold millions of ids."""
    card = service.model.card
    (frame,) = await service.tokenize([""], 2)

    def all_framed() -> dict[str, GivenTokens]:
        return {name: framed(ids, frame, card, name) for name, ids in inputs.items()}

    return await service.on_the_wire(all_framed)


def _refuse_long(inputs: Mapping[str, Input], tokenized: Sequence[Tokenized], limit: int) -> None:
    for name, one in zip(inputs, tokenized, strict=True):
        if one.total > limit:
            # Clients look for these words, also where it is `texts` that is too long.
            raise TextTooLong(f"`inputs` must have less than {limit} tokens. Given: {one.total}", param=name)
