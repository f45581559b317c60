"""Embeddings of the queries that were asked last, so that a query asked again needs no forward pass.

Bounded by bytes; the one that was not asked for the longest time goes first. For one event loop: no lock.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from app.ports import Tokenized
from model.embedding import Counting, Embedding, Output

OVERHEAD_BYTES = 1024
"""Of an entry, about: Python's objects around the arrays."""
SPAN_BYTES = 8
"""Of a token's id and its place in the text, beside its vectors."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What an embedding depends on, for one model."""

    text: str
    max_length: int
    outputs: frozenset[Output]
    count_terms: Counting | None = None


Answer = tuple[Embedding, Tokenized]


class QueryCache:
    """The least recently used go when there is no room; 0 bytes keep nothing."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Asked, tuple[Answer, int]] = OrderedDict()
        self.bytes = 0
        """Held now, about."""
        self.hits = self.misses = 0

    def get(self, asked: Asked) -> Answer | None:
        """The answer that was put, if it is still there."""
        entry = self._entries.get(asked)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(asked)
        return entry[0]

    def put(self, asked: Asked, answer: Answer) -> None:
        """Keep an answer; one that is larger than the whole cache is not kept."""
        size = _size(asked, answer)
        if size > self._max_bytes:
            return
        if (old := self._entries.pop(asked, None)) is not None:
            self.bytes -= old[1]
        self._entries[asked] = answer, size
        self.bytes += size
        while self.bytes > self._max_bytes:
            _, (_, freed) = self._entries.popitem(last=False)
            self.bytes -= freed


def _size(asked: Asked, answer: Answer) -> int:
    embedding, tokenized = answer
    size = sum(one.nbytes for one in (embedding.dense, embedding.colbert) if one is not None)
    if embedding.sparse is not None:
        size += embedding.sparse.indices.nbytes + embedding.sparse.values.nbytes
    return OVERHEAD_BYTES + 4 * len(asked.text) + size + (4 + SPAN_BYTES) * len(tokenized.ids)
