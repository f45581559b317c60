"""Texts to embeddings: tokenise, fill token-budget batches, one forward pass each, input order.

It does not know HTTP, queues or indexes; `app/batcher.py` shares the engine between callers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tqdm import tqdm

from model.embedding import OUTPUTS, Counting, Embedding, IntArray, Output
from model.engine import Engine
from model.tokenizer import TokenizedText, Tokenizer

Kind = Literal["query", "passage"]


class TextTooLongError(ValueError):
    """A text has more tokens than fit, and truncation was turned off."""

    def __init__(self, number: int, tokens: int, limit: int) -> None:
        super().__init__(f"text {number} has {tokens} tokens, the limit is {limit}")
        self.number, self.tokens, self.limit = number, tokens, limit


@dataclass(frozen=True, slots=True)
class EncodingOptions:
    """Defaults of an embedder; lengths and instruction as the reference has them.

    `query_max_length`, `passage_max_length` in tokens, capped by what the encoder can take.
    `query_instruction` goes before each query as it stands (M3 was trained without one).
    `blank_as_empty` reads a text of white space alone as `<s></s>`, as the HTTP contract has it; the
    reference makes a lone `▁` of it, and from that an arbitrary vector.
    `max_batch_tokens` bounds a forward pass; padding-free, it changes memory and not speed.
    """

    query_max_length: int = 512
    passage_max_length: int = 512
    query_instruction: str = ""
    normalize: bool = True
    blank_as_empty: bool = False
    max_batch_tokens: int = 2048


class Embedder:
    """Tokenizer and engine together: the library's front door."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        engine: Engine,
        *,
        max_length: int,
        options: EncodingOptions | None = None,
    ) -> None:
        """`max_length` is the encoder's own limit in tokens (`EncoderConfig.max_length`)."""
        self.tokenizer = tokenizer
        self.engine = engine
        self.max_length = max_length
        self.options = options or EncodingOptions()

    def encode(
        self,
        texts: Sequence[str],
        *,
        kind: Kind = "passage",
        outputs: Collection[Output] | None = None,
        max_length: int | None = None,
        truncate: bool = True,
        normalize: bool | None = None,
        progress: bool | None = None,
    ) -> list[Embedding]:
        """Embed texts; the results are in input order, whatever the batches were.

        `outputs` defaults to all that the checkpoint has heads for; `max_length` (tokens, 2 to the
        encoder's limit) and `normalize` to the options; `progress` shows a bar on standard error:
        None shows it for work of more than one batch on a terminal.
        Raises TextError for invalid Unicode; TextTooLongError where `truncate` is off; ValueError
        for an empty text, an unknown output or a length out of range.
        """
        wanted = self.engine.outputs if outputs is None else tuple(outputs)
        if unknown := set(wanted) - set(OUTPUTS):
            raise ValueError(f"unknown outputs {sorted(unknown)}: choose from {', '.join(OUTPUTS)}")
        for number, text in enumerate(texts):
            if not text:
                raise ValueError(f"text {number} is empty")
        tokenized = self._tokenize_as(kind, texts, max_length)
        if not truncate:
            for number, one in enumerate(tokenized):
                if one.truncated:
                    raise TextTooLongError(number, one.total, len(one.ids))
        unit = self.options.normalize if normalize is None else normalize
        results: list[Embedding | None] = [None] * len(texts)
        batches = list(token_batches([len(one.ids) for one in tokenized], self.options.max_batch_tokens))
        hidden = len(batches) < 2 or None if progress is None else not progress
        with tqdm(total=len(texts), unit="text", desc="embedding", disable=hidden) as bar:
            for batch in batches:
                ids: list[IntArray] = [tokenized[number].ids for number in batch]
                found = self.engine.forward(ids, wanted, normalize=unit)
                for number, embedding in zip(batch, found, strict=True):
                    results[number] = replace(embedding, truncated=tokenized[number].truncated)
                bar.update(len(batch))
        return [embedding for embedding in results if embedding is not None]

    def tokenize(
        self, texts: Sequence[str], max_length: int | None, *, count_terms: Counting | None = None
    ) -> list[TokenizedText]:
        """Texts to ids of at most `max_length` tokens (2 to the encoder's limit; None is uncut). Thread-safe.

        `count_terms` also counts the ids, of the whole texts or of what is kept.
        Raises TextError for invalid Unicode, ValueError for a length out of range.
        """
        if max_length is not None and not 2 <= max_length <= self.max_length:
            raise ValueError(f"max_length {max_length} is not within 2 and the model's {self.max_length}")
        if self.options.blank_as_empty:
            texts = ["" if text.isspace() else text for text in texts]
        return self.tokenizer.tokenize(texts, max_length, count_terms=count_terms)

    def _tokenize_as(self, kind: Kind, texts: Sequence[str], max_length: int | None) -> list[TokenizedText]:
        options = self.options
        if max_length is None:
            preset = options.query_max_length if kind == "query" else options.passage_max_length
            max_length = min(preset, self.max_length)
        if kind == "query" and options.query_instruction:
            texts = [options.query_instruction + text for text in texts]
        return self.tokenize(texts, max_length)


def token_batches(lengths: Sequence[int], max_batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of the texts of each batch: longest first, at most `max_batch_tokens` together.

    A text that is longer than the budget makes a batch of its own. Longest first, so that running
    out of memory shows at once and a progress bar only gets faster.
    """
    batch: list[int] = []
    tokens = 0
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if batch and tokens + lengths[number] > max_batch_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(number)
        tokens += lengths[number]
    if batch:
        yield batch
