"""What is encoded: real texts of three kinds, drawn with a seed, and what they cost in arithmetic.

Legend: T tokens of a text with `<s>` and `</s>`, D hidden size, I inner size, L layers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LANGUAGES = ("en", "zh", "ar", "es", "ru", "th", "tr")
Lengths = Callable[[Sequence[str]], list[int]]
"""Tokens of each text, nothing cut."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Lengths in tokens; `run_texts`: a run repeats the call until it has encoded so many texts."""

    shortest: int
    longest: int
    counts: tuple[int, ...]
    run_texts: int
    max_length: int
    batch_size: int | None = None  # None: each side's own; 1 where padding could only waste


KINDS: Mapping[str, Kind] = {
    "queries": Kind(3, 64, (1, 8, 64), 16, 512),
    "passages": Kind(20, 512, (1, 8, 64), 8, 512),
    "long": Kind(2000, 8192, (1, 4), 1, 8192, batch_size=1),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the table: a run makes `calls` one after another, each of `count` texts."""

    workload: str
    count: int
    calls: tuple[tuple[str, ...], ...]
    lengths: tuple[int, ...]

    @property
    def kind(self) -> Kind:
        return KINDS[self.workload]

    @property
    def tokens(self) -> int:
        """True tokens of one run."""
        return sum(self.lengths)


def read_pool(data: Path, workload: str) -> list[str]:
    """All texts that a workload is drawn from."""
    dev = data / "data" / "dev"
    abstracts = _read(dev / "scifact" / "corpus.jsonl", "text")
    if workload == "long":
        return abstracts
    file = "queries.jsonl" if workload == "queries" else "corpus.jsonl"
    found = [text for language in LANGUAGES for text in _read(dev / f"xquad-{language}" / file, "text")]
    if workload == "passages":
        found += abstracts + _read(dev / "scifact" / "corpus.jsonl", "title")
    return found


def _read(file: Path, field: str) -> list[str]:
    return [json.loads(line)[field] for line in file.read_text(encoding="utf-8").splitlines()]


def make_cell(workload: str, count: int, pool: Sequence[str], lengths: Lengths, seed: int) -> Cell:
    """Draw the texts of one cell; the same seed draws the same texts.

    Raises ValueError where the pool has too few texts that fit.
    """
    kind = KINDS[workload]
    generator = np.random.default_rng([seed, list(KINDS).index(workload), count])
    calls = max(1, kind.run_texts // count)
    texts = DRAW[workload](generator, pool, lengths(pool), calls * count, kind)
    if len(texts) < calls * count:
        raise ValueError(f"{workload}: {calls * count} texts are needed and {len(texts)} of the pool fit")
    found = tuple(min(length, kind.max_length) for length in lengths(texts))
    split = tuple(tuple(texts[begin : begin + count]) for begin in range(0, len(texts), count))
    return Cell(workload, count, split, found)


def draw_any(
    generator: np.random.Generator, pool: Sequence[str], lengths: Sequence[int], count: int, kind: Kind
) -> list[str]:
    """Texts within the kind's lengths, without repetition."""
    fit = [
        text for text, length in zip(pool, lengths, strict=True) if kind.shortest <= length <= kind.longest
    ]
    return [fit[place] for place in generator.permutation(len(fit))[:count]]


def draw_spread(
    generator: np.random.Generator, pool: Sequence[str], lengths: Sequence[int], count: int, kind: Kind
) -> list[str]:
    """Texts whose lengths spread log-uniformly from shortest to longest, without repetition."""
    targets = np.exp(generator.uniform(np.log(kind.shortest), np.log(kind.longest), count))
    size = np.array(lengths, float)
    size[(size < kind.shortest) | (size > kind.longest)] = np.inf
    found = []
    for target in targets:
        distance = np.abs(size - target)
        if not np.isfinite(distance.min()):
            break
        nearest = np.flatnonzero(distance == distance.min())
        place = int(generator.choice(nearest))
        found.append(pool[place])
        size[place] = np.inf
    return found


def draw_long(
    generator: np.random.Generator, pool: Sequence[str], lengths: Sequence[int], count: int, kind: Kind
) -> list[str]:
    """Texts made of whole ones, as many as stay below a length that is drawn as in `draw_spread`."""
    frame = 2  # <s> and </s>
    found = []
    for target in np.exp(generator.uniform(np.log(1.5 * kind.shortest), np.log(kind.longest), count)):
        parts, tokens = [], frame
        for place in generator.permutation(len(pool)):
            if tokens + lengths[place] > target:
                break
            parts.append(pool[place])
            tokens += lengths[place] - frame
        found.append(" ".join(parts))
    return found


# Queries are as long as queries are; passages are spread, so that short and long meet in one call.
DRAW = {"queries": draw_any, "passages": draw_spread, "long": draw_long}


def encoder_operations(config: Mapping[str, int], lengths: Sequence[int]) -> int:
    """Floating-point operations of the encoder's matmuls on true tokens; no pads, no heads.

    Each layer: four D x D and two D x I linear layers, and the scores and the weighted sum of attention.
    """
    width, inner = config["hidden_size"], config["intermediate_size"]
    linear = 2 * (4 * width * width + 2 * width * inner)
    return config["num_hidden_layers"] * sum(
        length * linear + 4 * length * length * width for length in lengths
    )
