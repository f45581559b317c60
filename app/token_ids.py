"""Texts that clients give as token ids, and token ids as text; the tokenizer itself is the model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.errors import TokensInvalid
from app.ports import ModelCard, Tokenized
from model.embedding import IntArray, LexicalWeights

SPACE = "▁"
SPECIAL = frozenset({"<s>", "<pad>", "</s>", "<unk>", "<mask>"})
"""XLM-R's own tokens, which are no part of a text."""


@dataclass(frozen=True, slots=True)
class GivenTokens:
    """Token ids that came without a text; fits `app.ports.Tokenized`."""

    ids: IntArray
    total: int

    @property
    def offsets(self) -> Sequence[tuple[int, int]]:
        """(0, 0) for every token: there is no text that it could lie in."""
        return [(0, 0)] * len(self.ids)

    @property
    def terms(self) -> LexicalWeights | None:
        """None: nothing searches or stores them."""
        return None


def check_ids(ids: Sequence[int], card: ModelCard, param: str) -> None:
    """Raise TokensInvalid unless every id is one of the vocabulary's."""
    if ids and not 0 <= min(ids) <= max(ids) < card.vocab_size:
        raise TokensInvalid(f"token ids lie between 0 and {card.vocab_size - 1}", param=param)


def framed(ids: Sequence[int], frame: Tokenized, card: ModelCard, param: str) -> GivenTokens:
    """Token ids with `<s>` before and `</s>` after them where they lack those; `frame` is the empty text.

    Raises TokensInvalid for an id that is not in the vocabulary.
    """
    check_ids(ids, card, param)
    first, last = (int(one) for one in frame.ids)
    whole = [*([] if ids[:1] == [first] else [first]), *ids]
    if len(whole) < 2 or whole[-1] != last:
        whole.append(last)
    return GivenTokens(np.array(whole, np.int32), len(whole))


def cut(tokens: Tokenized, max_length: int, *, keep_end: bool = False) -> Tokenized:
    """At most `max_length` tokens, `<s>` and `</s>` among them; `keep_end` drops the first ones."""
    ids = tokens.ids
    if len(ids) <= max_length:
        return tokens
    kept = [ids[:1], ids[1 - max_length :]] if keep_end else [ids[: max_length - 1], ids[-1:]]
    return GivenTokens(np.concatenate(kept), tokens.total)


def text_of(entries: Sequence[str], *, skip_special: bool) -> str:
    """The text that entries of the vocabulary stand for, as the tokenizer's own decoder joins them."""
    kept = [one for one in entries if not (skip_special and one in SPECIAL)]
    if not kept:
        return ""
    return kept[0].replace(SPACE, "") + "".join(kept[1:]).replace(SPACE, " ")
