"""A text model without TensorFlow: deterministic, and its scores mean something.

Words are tokens, a token's vector is drawn from a generator seeded with its id. So texts that share
words are near to each other in all three outputs, and a text is nearest to itself. Nothing else of a
language model is here: no order, no context.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from app.ports import ModelCard
from model.embedding import OUTPUTS, Counting, Embedding, IntArray, LexicalWeights, Output

BOS, PAD, EOS, UNK = 0, 1, 2, 3
VOCAB, HIDDEN, COLBERT = 50_000, 24, 16

CARD = ModelCard(
    name="fake",
    revision=None,
    fingerprint="fa" * 32,
    engine="numpy",
    precision="float32",
    outputs=OUTPUTS,
    hidden_size=HIDDEN,
    colbert_dim=COLBERT,
    vocab_size=VOCAB,
    max_length=512,
)


@dataclass(frozen=True)
class FakeTokens:
    """A text as ids; fits `app.ports.Tokenized`."""

    ids: IntArray
    offsets: Sequence[tuple[int, int]]
    total: int
    terms: LexicalWeights | None = None


def split(text: str) -> list[tuple[str, tuple[int, int]]]:
    """A text's words and where they stand."""
    return [(match.group(), match.span()) for match in re.finditer(r"\w+|[^\w\s]", text)]


def counted(text: str, most: int | None = None) -> LexicalWeights:
    """How often each of a text's tokens, or of its first `most`, stands in it."""
    counts = Counter(token_id(word.lower()) for word, _ in split(text)[:most])
    ids = sorted(counts)
    return LexicalWeights(np.array(ids, np.int32), np.array([counts[one] for one in ids], np.float32))


@lru_cache(maxsize=10_000)
def token_id(word: str) -> int:
    """A word's id, the same in every process."""
    digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
    return 5 + int.from_bytes(digest, "little") % (VOCAB - 5)


@lru_cache(maxsize=10_000)
def vector(token: int, width: int) -> np.ndarray:
    """A unit vector for a token id. Shape: [width] float32."""
    drawn = np.random.default_rng(token).normal(size=width)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


@dataclass
class FakeModel:
    """Fits `app.ports.TextModel`. The fields let a test watch it, hold it and break it."""

    card: ModelCard = CARD
    poison: set[int] = field(default_factory=set)
    """Token ids on which a forward pass raises."""
    memory: int = 1 << 40
    """Tokens of a batch for which there is memory."""
    parts: bool = False
    """Whether it can be left between texts."""
    broken: bool = False
    """Whether every forward pass raises."""
    batches: list[list[int]] = field(default_factory=list)
    """The sizes in tokens of the texts of each forward pass."""
    asked: list[frozenset[Output]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    """A forward pass waits until it is set."""
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released once for each forward pass that has begun."""

    def __post_init__(self) -> None:
        self.gate.set()
        self._words: dict[int, str] = {BOS: "<s>", PAD: "<pad>", EOS: "</s>", UNK: "<unk>"}

    def tokenize(
        self, texts: Sequence[str], max_length: int | None, *, count_terms: Counting | None = None
    ) -> list[FakeTokens]:
        found = [self._tokenize(text, max_length) for text in texts]
        if count_terms is None:
            return found
        most = None if count_terms == "whole" or max_length is None else max_length - 2
        return [replace(one, terms=counted(text, most)) for one, text in zip(found, texts, strict=True)]

    def _tokenize(self, text: str, max_length: int | None) -> FakeTokens:
        words = [(word.lower(), span) for word, span in split(text)]
        for word, _ in words:
            self._words[token_id(word)] = word
        kept = words if max_length is None else words[: max_length - 2]
        ids = np.array([BOS, *(token_id(word) for word, _ in kept), EOS], np.int32)
        return FakeTokens(ids, [(0, 0), *(span for _, span in kept), (0, 0)], len(words) + 2)

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        return [self._words.get(int(one), "<unk>") for one in ids]

    def forward(
        self,
        batch: Sequence[IntArray],
        outputs: Collection[Output],
        *,
        normalize: bool = True,
        between: Callable[[], None] | None = None,
    ) -> list[Embedding]:
        self.batches.append([one.size for one in batch])
        self.asked.append(frozenset(outputs))
        self.entered.release()
        assert self.gate.wait(20), "a test forgot to open the gate"
        if self.broken or any(int(token) in self.poison for ids in batch for token in ids):
            # The words of an engine's error may quote anything: none of them may reach a client.
            raise RuntimeError("SECRET engine detail at /some/path")
        if sum(ids.size for ids in batch) > self.memory:
            raise MemoryError
        found = []
        for place, ids in enumerate(batch):
            if place and between is not None and self.parts:
                between()
            found.append(self._embed(ids, frozenset(outputs), 1.0 if normalize else 3.0))
        return found

    def _embed(self, ids: IntArray, outputs: frozenset[Output], length: float) -> Embedding:
        words = sorted({int(one) for one in ids} - {BOS, PAD, EOS, UNK})
        dense = np.sum([vector(token, HIDDEN) for token in words] or [vector(BOS, HIDDEN)], axis=0)
        dense = dense / np.linalg.norm(dense) * length
        sparse = LexicalWeights(
            np.array(words, np.int32), np.array([0.1 + token % 90 / 100 for token in words], np.float32)
        )
        colbert = np.stack([vector(int(token), COLBERT) for token in ids[1:]]) * np.float32(length)
        return Embedding(
            tokens=int(ids.size),
            dense=dense.astype(np.float32) if "dense" in outputs else None,
            sparse=sparse if "sparse" in outputs else None,
            colbert=colbert if "colbert" in outputs else None,
        )
