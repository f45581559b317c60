"""Texts that no server has seen before: real passages, or made-up ones of the same lengths, each with a
number.

The number makes a text new, so that neither a cache nor a queue that computes equal texts once has part
in what is measured. It costs two or three tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np

from benchmarks.encode_sides.workloads import KINDS, Kind, Lengths, draw_any, draw_spread, read_pool

PASSAGES, QUERIES = 1024, 512
"""How many different ones there are, but for their numbers."""
ROOM = 8
"""Tokens left below the model's cut for the number."""
SYLLABLES = (
    "ba",
    "con",
    "der",
    "e",
    "fi",
    "gra",
    "hor",
    "in",
    "lo",
    "mo",
    "nu",
    "per",
    "qua",
    "ri",
    "sta",
    "ven",
)


@dataclass(slots=True)
class Texts:
    """Passages whose lengths spread log-uniformly from 20 to 504 tokens, and queries of 3 to 64."""

    passages: Sequence[str]
    queries: Sequence[str]
    generator: np.random.Generator
    real: bool
    _number: count[int]

    def fresh_passages(self, number: int) -> list[str]:
        """Passages that were never given before; of any 1,024 in a row none is another's but for its
        number.
        """
        return self._fresh(self.passages, number)

    def fresh_queries(self, number: int) -> list[str]:
        """Queries that were never given before."""
        return self._fresh(self.queries, number)

    def _fresh(self, pool: Sequence[str], number: int) -> list[str]:
        rounds = math.ceil(number / len(pool))
        places = np.concatenate([self.generator.permutation(len(pool)) for _ in range(max(1, rounds))])
        return [f"{next(self._number)} {pool[place]}" for place in places[:number]]


def read_texts(data: Path, lengths: Lengths, seed: int) -> Texts:
    """Texts of `data` where they are there, made up otherwise. `lengths` counts tokens."""
    generator = np.random.default_rng(seed)
    real = (data / "data" / "dev").is_dir()
    pools = [
        read_pool(data, "passages") if real else made_up(generator, lengths, KINDS["passages"]),
        read_pool(data, "queries") if real else made_up(generator, lengths, KINDS["queries"]),
    ]
    passages = replace(KINDS["passages"], longest=KINDS["passages"].max_length - ROOM)
    return Texts(
        draw_spread(generator, pools[0], lengths(pools[0]), PASSAGES, passages),
        draw_any(generator, pools[1], lengths(pools[1]), QUERIES, KINDS["queries"]),
        generator,
        real,
        count(1000),
    )


def made_up(generator: np.random.Generator, lengths: Lengths, kind: Kind) -> list[str]:
    """Texts of invented words, of all lengths of the kind."""
    words = ["".join(generator.choice(SYLLABLES, size)) for size in generator.integers(1, 4, 4000)]
    sample = " ".join(words[:1000])
    tokens_a_word = (lengths([sample])[0] - 2) / 1000
    low, high = (max(1.0, (tokens - 2) / tokens_a_word) for tokens in (kind.shortest, kind.longest))
    sizes = np.exp(generator.uniform(np.log(low), np.log(high), 3 * PASSAGES)).astype(int)
    return [" ".join(generator.choice(words, size)) for size in np.maximum(1, sizes)]
