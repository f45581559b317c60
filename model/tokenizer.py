"""Text to token ids: the checkpoint's own `tokenizer.json`, read as it is.

transformers' AutoTokenizer rebuilds the pipeline of an XLM-R file and disagrees with it on some
texts (a trailing space, a space before a literal `</s>`): the `tokenizers` library runs the file
itself. Nothing here is ever changed after construction, so threads may share one tokenizer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tokenizers

from model.config import EncoderConfig
from model.embedding import Counting, IntArray, LexicalWeights
from model.long_texts import PIECE, LongEncoding, encode_long, weight


class TokenizerError(ValueError):
    """The tokenizer file cannot be read, or does not belong to the encoder."""


class TextError(ValueError):
    """A text is not valid Unicode: it holds half of a surrogate pair."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedText:
    """One text as token ids, cut to the length that was asked for.

    Shapes: `ids` [T] int32 with `<s>` first and `</s>` last; `spans` [T, 2] int32, each token's place
    in the text; `total` tokens before the cut, of which at most about a million are counted; `terms`, where
    they were asked for, how often each token id stands there, without the ids that carry no lexical weight.
    """

    ids: IntArray
    spans: IntArray
    total: int
    terms: LexicalWeights | None = None

    @property
    def truncated(self) -> bool:
        """True where the text had more tokens than fit."""
        return self.total > len(self.ids)

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """T pairs [start, end) of character positions in the text; (0, 0) for `<s>` and `</s>`."""
        return [(int(start), int(end)) for start, end in self.spans]


class Tokenizer:
    """XLM-R's Unigram tokenizer, from a `tokenizer.json`."""

    def __init__(self, path: Path, config: EncoderConfig) -> None:
        """Raises TokenizerError naming the file where it cannot serve this encoder."""
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise TokenizerError(f"{path}: cannot read the tokenizer: {error}") from error
        # The file may carry its own truncation and padding; the caller decides about both.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if (size := self._tokenizer.get_vocab_size()) > config.vocab_size:
            raise TokenizerError(
                f"{path}: {size} tokens, but the encoder's vocabulary has {config.vocab_size} rows: "
                "the file belongs to another checkpoint"
            )
        if (frame := self._tokenizer.encode("").ids) != [config.bos_token_id, config.eos_token_id]:
            raise TokenizerError(
                f"{path}: the empty text becomes {frame}, not <s></s> "
                f"({config.bos_token_id}, {config.eos_token_id}): not an XLM-R tokenizer"
            )
        unknown = self._tokenizer.token_to_id("<unk>")
        special = (config.bos_token_id, config.eos_token_id, config.pad_token_id, unknown)
        self.unused_ids = frozenset(token for token in special if token is not None)
        """Ids that carry no lexical weight: `<s>`, `</s>`, `<pad>`, `<unk>`."""

    def tokenize(
        self, texts: Sequence[str], max_length: int | None, *, count_terms: Counting | None = None
    ) -> list[TokenizedText]:
        """Texts to ids of at most `max_length` tokens (None: all), in order; a cut keeps `</s>` at the end.

        `count_terms` also counts ids, as BM25 needs them: of the whole texts or of what is kept.
        Raises TextError for a text with a lone surrogate.
        """
        if max_length is not None and max_length < 2:
            raise ValueError(f"max_length {max_length} leaves no room for <s> and </s>")
        for number, text in enumerate(texts):
            _check(number, text)
        found: list[TokenizedText] = []
        for part in _slices(texts):
            for encoding in self._encoded(part):
                one = _cut(encoding, max_length)
                if count_terms is not None:
                    ids = one.ids if count_terms == "kept" else np.array(encoding.ids, np.int32)
                    one = replace(one, terms=_counted(ids, self.unused_ids))
                found.append(one)
        return found

    def _encoded(self, part: list[str]) -> Sequence[tokenizers.Encoding | LongEncoding]:
        if len(part) == 1 and weight(part[0]) > PIECE:
            return [encode_long(self._tokenizer, part[0])]
        return self._tokenizer.encode_batch(part)

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary's entries of token ids, e.g. `▁Hello`; an id without one gives `<unk>`."""
        return [self._tokenizer.id_to_token(int(token)) or "<unk>" for token in ids]


def _check(number: int, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TextError(
            f"text {number} holds a lone surrogate at character {error.start}: not valid Unicode"
        ) from error


def _slices(texts: Sequence[str]) -> Iterator[list[str]]:
    """Consecutive texts of together at most PIECE; a longer text is a slice of its own."""
    part: list[str] = []
    size = 0
    for text in texts:
        own = weight(text)
        if part and size + own > PIECE:
            yield part
            part, size = [], 0
        part.append(text)
        size += own
    if part:
        yield part


def _counted(ids: IntArray, unused: Collection[int]) -> LexicalWeights:
    """How often each id stands there; counts beyond 2^24 are rounded."""
    found, counts = np.unique(ids, return_counts=True)
    kept = ~np.isin(found, list(unused))
    return LexicalWeights(found[kept], counts[kept].astype(np.float32))


def _cut(encoding: tokenizers.Encoding | LongEncoding, max_length: int | None) -> TokenizedText:
    """Keep what fits and let go of the encoding, which holds a hundred bytes for each token of the text."""
    ids, offsets = encoding.ids, encoding.offsets
    total = len(ids)
    if max_length is not None and total > max_length:
        ids, offsets = [*ids[: max_length - 1], ids[-1]], [*offsets[: max_length - 1], offsets[-1]]
    return TokenizedText(np.array(ids, np.int32), np.array(offsets, np.int32), total)
