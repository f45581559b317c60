"""Documents and queries as BGE-M3 would give them, made from a seed: for benchmarks of the index.

They have the shape and the statistics that decide how fast and how well an index works; they mean nothing,
so they say nothing about the quality of a model. Every block of `BLOCK` documents has generators of its
own, seeded with (seed, kind, block): a corpus is never in memory as a whole, and a document is the same
whatever the batch size. Seed AND number of documents make a corpus: with more of them there are more topics.
NumPy only, so that it runs in the interpreters of other libraries too.

- Dense [D], unit: normalise(0.61 mean + 0.36 topic + 0.45 subtopic + 0.55 s noise), s lognormal for each
  document. Topic, subtopic and noise are Gaussian with variances falling as 1 / (i + 10) along axes that a
  random rotation hides. N / 200 subtopics (at least 100) lie in N / 5000 topics (20), Zipfian in size. Nine
  in ten random pairs have cosines of 0.27 to 0.48, nine in ten nearest neighbours 0.65 to 0.85.
- Lexical: 60 to 150 distinct terms, but at most 0.9 of the token rows; half of the draws from the whole
  vocabulary by Zipf-Mandelbrot (exponent 1.15), the others from the 400 terms of the subtopic. Weights are
  lognormal, and their median rises with the term's rank from 0.03 (function words, in half of the
  documents and more) to 0.35 (the rarest).
- ColBERT [rows, D], unit: lognormal counts, 20 to 512, mean 150. A row is normalise(0.39 mean + 0.67
  prototype of its term + 0.45 the document's dense vector + 0.45 noise); every term of the document comes
  once before any is repeated. `codes` instead gives random bytes of a quantised row's size, where floats
  would not fit the disk: good for time and memory, useless for recall.
- Metadata: `lang` (seven, 40 % to 4 %), `tenant` (one of 1000), `year` (1990 to 2025, later ones more often),
  `half` (bool).
- Text: a made-up word of two or three syllables for each term, mostly 500 to 600 characters.
- A query is made from a document: its dense vector with noise (cosine about 0.75), 12 of its terms, the 3
  most frequent in the corpus among them, with weights drawn anew, and 32 rows of those terms in its context.

Legend: B documents of a batch, D width, R token rows of a document, V vocabulary, n all terms of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

BLOCK = 500
QUERY_BLOCKS = 24
"""Queries come from so many blocks at most: making one costs as much as its 500 documents."""
SPECIAL = 4
"""Token ids below are not used: <s>, <pad>, </s> and <unk> are no words."""
FEWEST_TERMS, MOST_TERMS, DRAWS = 60, 150, 400
FEWEST_ROWS, MOST_ROWS = 20, 512
TOPIC_TERMS, SUBTOPIC_TERMS = 1000, 400
PROTOTYPES, NOISE_ROWS = 4096, 8192
WORDS = 86
QUERY_TERMS, QUERY_ROWS = 12, 32
LANGUAGES = (("en", 0.40), ("zh", 0.20), ("es", 0.12), ("ar", 0.10), ("ru", 0.08), ("th", 0.06), ("tr", 0.04))
TENANTS = 1000

# The generators' kinds.
_WORLD, _DENSE, _LEXICAL, _FACTS, _ROWS, _CODES, _QUERY, _TABLES = range(8)
_SYLLABLES = [first + vowel for first in "bdfgklmnprstvz" for vowel in "aeiou"]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Consecutive documents. The terms of document i are those from `starts[i]` to `starts[i + 1]`.

    Shapes: `dense` [B, D]; `starts` [B + 1]; `terms` int32, `weights` float32 [n]; `rows` [B], the token
    rows that each has.
    """

    first: int
    dense: Floats
    starts: NDArray[np.int64]
    terms: NDArray[np.int32]
    weights: Floats
    rows: NDArray[np.int64]
    metadata: tuple[dict[str, str | int | bool], ...]
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.dense)

    @property
    def ids(self) -> list[str]:
        """Ids of all documents, equally long."""
        return [document_id(number) for number in range(self.first, self.first + len(self))]

    def lexical(self, place: int) -> tuple[NDArray[np.int32], Floats]:
        """Ascending terms and weights of one document."""
        part = slice(int(self.starts[place]), int(self.starts[place + 1]))
        return self.terms[part], self.weights[part]

    def cut(self, begin: int, end: int) -> Batch:
        """Documents from `begin` to before `end`, counted within this batch."""
        low, high = int(self.starts[begin]), int(self.starts[end])
        return Batch(
            self.first + begin,
            self.dense[begin:end],
            self.starts[begin : end + 1] - low,
            self.terms[low:high],
            self.weights[low:high],
            self.rows[begin:end],
            self.metadata[begin:end],
            self.texts[begin:end],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """Shapes: `dense` [D], `terms` and `weights` [12], `rows` [32, D]. `source` is the document's number."""

    source: int
    dense: Floats
    terms: NDArray[np.int32]
    weights: Floats
    rows: Floats
    text: str


def document_id(number: int) -> str:
    """The id of the document of that number."""
    return f"d{number:07d}"


class Corpus:
    """`documents` documents of a seed. Not thread-safe: it keeps the last block."""

    def __init__(self, seed: int, documents: int, *, width: int = 1024, vocabulary: int = 250_002) -> None:
        if documents < 1 or width < 2 or vocabulary < 4 * MOST_TERMS:
            raise ValueError("at least one document, a width of 2 and a vocabulary of 600 are needed")
        self.seed, self.documents, self.width, self.vocabulary = seed, documents, width, vocabulary
        generator = self._generator(_WORLD)
        self._scales = np.sqrt(1 / (np.arange(width) + 10.0))
        self._scales = (self._scales / np.linalg.norm(self._scales)).astype(np.float32)
        drawn = generator.standard_normal((width, width), np.float32)
        self._rotation: Floats = np.linalg.qr(drawn)[0].astype(np.float32)
        self._mean = normalised(generator.standard_normal(width, np.float32))
        topics, subtopics = max(20, documents // 5000), max(100, documents // 200)
        self._topic_of = generator.integers(0, topics, subtopics)
        topic_directions = self._directions(generator, topics)
        self._centres = 0.61 * self._mean + 0.36 * topic_directions[self._topic_of]
        self._centres += 0.45 * self._directions(generator, subtopics)  # [subtopics, D]
        self._subtopic_shares = zipf(subtopics, 1.0, 10.0)
        # Ranks by frequency, and which token has which.
        usable = vocabulary - SPECIAL
        self._token_of_rank = (SPECIAL + generator.permutation(usable)).astype(np.int32)
        self._term_shares = zipf(usable, 1.15, 4.0)
        rarer = min(300, usable // 4)
        pools = self._rare_ranks(generator, (topics, TOPIC_TERMS), rarer)
        own = self._rare_ranks(generator, (subtopics, SUBTOPIC_TERMS), rarer)
        shared = generator.integers(0, TOPIC_TERMS, (subtopics, SUBTOPIC_TERMS // 2))
        own[:, ::2] = np.take_along_axis(pools[self._topic_of], shared, axis=1)
        self._subtopic_ranks = own
        self._subtopic_term_shares = zipf(SUBTOPIC_TERMS, 0.8, 2.0)
        self._last: tuple[int, Batch] | None = None

    def batches(self, size: int) -> Iterator[Batch]:
        """All documents, `size` at a time; the last batch may be smaller."""
        for first in range(0, self.documents, size):
            yield self.batch(first, min(first + size, self.documents))

    def batch(self, first: int, stop: int) -> Batch:
        """The documents from number `first` to before `stop`."""
        if not 0 <= first < stop <= self.documents:
            raise ValueError(f"documents {first} to {stop} of {self.documents}")
        parts = []
        for number in range(first // BLOCK, (stop - 1) // BLOCK + 1):
            begin = number * BLOCK
            block = self._block(number)
            parts.append(block.cut(max(first - begin, 0), min(stop - begin, len(block))))
        return parts[0] if len(parts) == 1 else joined(parts)

    def token_rows(self, batch: Batch, place: int) -> Floats:
        """The ColBERT rows of one document. Shape: [R, D]."""
        generator = self._generator(_ROWS, batch.first + place)
        terms, _ = batch.lexical(place)
        wanted = int(batch.rows[place])
        # All in some order, then repetitions.
        of_row = generator.permutation(len(terms))[:wanted]
        of_row = np.concatenate([of_row, generator.integers(0, len(terms), wanted - len(of_row))])
        return self._rows(generator, terms[of_row], batch.dense[place])

    def codes(self, batch: Batch, row_bytes: int) -> tuple[NDArray[np.uint8], Floats]:
        """Random codes and scales in place of a batch's n token rows. Shapes: [n, row_bytes], [n]."""
        codes, scales = [], []
        for place, rows in enumerate(batch.rows.tolist()):
            generator = self._generator(_CODES, batch.first + place)
            codes.append(np.frombuffer(generator.bytes(rows * row_bytes), np.uint8).reshape(rows, row_bytes))
            scales.append(np.exp(0.05 * generator.standard_normal(rows, np.float32)))
        return np.concatenate(codes), np.concatenate(scales)

    def queries(self, count: int) -> list[Query]:
        """`count` queries; of some seed and count always the same."""
        generator = self._generator(_QUERY, count)
        blocks = -(-self.documents // BLOCK)
        chosen = np.sort(generator.permutation(blocks)[:QUERY_BLOCKS])
        numbers = chosen[generator.integers(0, len(chosen), count)] * BLOCK
        sizes = np.minimum(BLOCK, self.documents - numbers)
        sources = np.sort(numbers + (generator.random(count) * sizes).astype(np.int64)).tolist()
        made = [self._query(generator, source) for source in sources]
        return [made[place] for place in generator.permutation(count)]

    def _generator(self, kind: int, number: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, kind, number])

    def _directions(self, generator: np.random.Generator, count: int) -> Floats:
        drawn = generator.standard_normal((count, self.width), np.float32)
        directions: Floats = (drawn * self._scales) @ self._rotation
        return directions  # [count, D], of length about 1

    def _rare_ranks(
        self, generator: np.random.Generator, shape: tuple[int, int], rarest_common: int
    ) -> NDArray[np.int64]:
        usable = self.vocabulary - SPECIAL
        drawn = generator.uniform(np.log(rarest_common + 1), np.log(usable), shape)
        return np.exp(drawn).astype(np.int64)

    def _block(self, number: int) -> Batch:
        if self._last is None or self._last[0] != number:
            self._last = (number, self._make_block(number))
        return self._last[1]

    def _make_block(self, number: int) -> Batch:
        # Whole even where it is the last: a document does not depend on how many follow it in the block.
        generator = self._generator(_DENSE, number)
        subtopic = np.searchsorted(self._subtopic_shares, generator.random(BLOCK))
        strength = np.exp(0.2 * generator.standard_normal(BLOCK, np.float32))
        noise = self._directions(generator, BLOCK)
        dense = normalised(self._centres[subtopic] + 0.55 * strength[:, None] * noise)
        generator = self._generator(_FACTS, number)
        drawn = np.exp(np.log(130) + 0.5 * generator.standard_normal(BLOCK))
        rows = np.clip(drawn, FEWEST_ROWS, MOST_ROWS).astype(np.int64)
        starts, terms, weights = self._lexical(self._generator(_LEXICAL, number), subtopic, rows)
        whole = Batch(
            number * BLOCK,
            dense,
            starts,
            terms,
            weights,
            rows,
            _metadata(generator),
            tuple(self._text(generator, terms[a:b]) for a, b in pairwise(starts)),
        )
        return whole.cut(0, min(BLOCK, self.documents - number * BLOCK))

    def _lexical(
        self, generator: np.random.Generator, subtopic: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int32], Floats]:
        """Starts, terms and weights of documents of those subtopics and token rows."""
        shape = (len(subtopic), DRAWS)
        ranks = np.searchsorted(self._term_shares, generator.random(shape))
        slots = np.searchsorted(self._subtopic_term_shares, generator.random(shape))
        topical = generator.random(shape) < 0.5
        ranks = np.where(topical, np.take_along_axis(self._subtopic_ranks[subtopic], slots, 1), ranks)
        # The first so many distinct ones of each document, in the order of their draws.
        keys = (np.arange(len(subtopic))[:, None] * self.vocabulary + ranks).ravel()
        drawn = np.sort(np.unique(keys, return_index=True)[1])
        of = drawn // DRAWS
        place = np.arange(len(drawn)) - np.searchsorted(of, of)
        wanted = generator.integers(FEWEST_TERMS, MOST_TERMS + 1, len(subtopic))
        kept = drawn[place < np.minimum(wanted, rows * 9 // 10)[of]]
        of, rank = kept // DRAWS, ranks.ravel()[kept]
        terms = self._token_of_rank[rank]
        weights = self._weights(generator, rank)
        order = np.lexsort((terms, of))
        starts = np.searchsorted(of, np.arange(len(subtopic) + 1)).astype(np.int64)
        return starts, terms[order], weights[order]

    def _weights(self, generator: np.random.Generator, rank: NDArray[np.int64]) -> Floats:
        median = np.clip(0.025 * (rank + 1.0) ** 0.23, 0.03, 0.35)
        drawn = median * np.exp(0.45 * generator.standard_normal(len(rank)))
        weights: Floats = np.clip(drawn, 1e-3, 0.8).astype(np.float32)
        return weights

    def _text(self, generator: np.random.Generator, terms: NDArray[np.int32]) -> str:
        return " ".join(map(word, generator.permutation(terms)[:WORDS].tolist()))

    @cached_property
    def _tables(self) -> tuple[Floats, Floats, Floats]:
        generator = self._generator(_TABLES)
        first, second = (self._directions(generator, PROTOTYPES) for _ in range(2))
        return first, second, self._directions(generator, NOISE_ROWS)

    @cached_property
    def _rank_of_token(self) -> NDArray[np.int64]:
        ranks = np.full(self.vocabulary, self.vocabulary, np.int64)
        ranks[self._token_of_rank] = np.arange(len(self._token_of_rank))
        return ranks

    def _rows(self, generator: np.random.Generator, terms: NDArray[np.int32], context: Floats) -> Floats:
        # A prototype is a sum of two table rows: a table for every term would be 1 GB. Noise likewise.
        one, other, noise = self._tables
        mixed = terms.astype(np.int64) * 2_654_435_761 % 2**32
        prototype = one[mixed % PROTOTYPES] + other[mixed // PROTOTYPES % PROTOTYPES]  # of length 1.4
        picked = generator.integers(0, NOISE_ROWS, (2, len(terms)))
        blur = noise[picked[0]] - noise[picked[1]]
        return normalised(0.39 * self._mean + 0.47 * prototype + 0.45 * context + 0.32 * blur)

    def _query(self, generator: np.random.Generator, source: int) -> Query:
        block = self._block(source // BLOCK)
        place = source - block.first
        terms, _ = block.lexical(place)
        ranks = self._rank_of_token[terms]
        by_frequency = np.argsort(ranks)
        frequent = min(3, len(terms))
        others = generator.permutation(by_frequency[frequent:])[: QUERY_TERMS - frequent]
        chosen = np.sort(np.concatenate([by_frequency[:frequent], others]))
        dense = normalised(block.dense[place] + 0.88 * self._directions(generator, 1)[0])
        weights = np.minimum(1.3 * self._weights(generator, ranks[chosen]), 0.8).astype(np.float32)
        of_rows = np.resize(generator.permutation(chosen), QUERY_ROWS)
        rows = self._rows(generator, terms[of_rows], dense)
        return Query(source, dense, terms[chosen], weights, rows, " ".join(map(word, terms[chosen].tolist())))


def zipf(count: int, exponent: float, offset: float) -> NDArray[np.float64]:
    """Cumulative shares of ranks 0 to count - 1 by Zipf-Mandelbrot, 1 / (rank + offset) ** exponent."""
    shares = (np.arange(count) + offset) ** -exponent
    cumulative: NDArray[np.float64] = np.cumsum(shares) / shares.sum()
    cumulative[-1] = 1.0
    return cumulative


def normalised(rows: NDArray[np.floating]) -> Floats:
    """Rows of length 1."""
    found: Floats = (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)
    return found


def word(term: int) -> str:
    """A word for a term: distinct for distinct ones below 343,000."""
    found = ""
    while term or len(found) < 4:
        term, digit = divmod(term, len(_SYLLABLES))
        found += _SYLLABLES[digit]
    return found


def joined(parts: list[Batch]) -> Batch:
    """Consecutive batches as one."""
    lengths = np.concatenate([np.diff(part.starts) for part in parts])
    return Batch(
        parts[0].first,
        np.concatenate([part.dense for part in parts]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([part.terms for part in parts]),
        np.concatenate([part.weights for part in parts]),
        np.concatenate([part.rows for part in parts]),
        tuple(one for part in parts for one in part.metadata),
        tuple(one for part in parts for one in part.texts),
    )


def _metadata(generator: np.random.Generator) -> tuple[dict[str, str | int | bool], ...]:
    names, shares = zip(*LANGUAGES, strict=True)
    languages = generator.choice(len(names), BLOCK, p=shares).tolist()
    tenants = generator.integers(0, TENANTS, BLOCK).tolist()
    years = (2026 - np.minimum(36, 1 + generator.exponential(9.0, BLOCK)).astype(np.int64)).tolist()
    halves = (generator.random(BLOCK) < 0.5).tolist()
    return tuple(
        {"lang": names[one], "tenant": f"t{tenant:03d}", "year": year, "half": half}
        for one, tenant, year, half in zip(languages, tenants, years, halves, strict=True)
    )
