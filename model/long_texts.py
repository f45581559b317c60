"""Texts of millions of characters as tokens, a piece at a time.

The library keeps 270 bytes for each token of what it encodes: ten million letters would take 2.7 GB. Pieces
begin at a space between letters or digits, where no token crosses, so that the tokens are those of the whole
text. Where a million characters hold no such place, a piece begins anywhere, and a token or two there differ.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tokenizers

from model.embedding import IntArray

PIECE = 1_000_000
"""Characters, after what NFKC makes of them: one character may become eighteen."""
MAX_COUNTED = 1 << 20
"""Tokens of one text; those beyond are neither made nor counted."""
_LOOK_BACK = 10_000
"""Characters in which a good place to cut is looked for."""
_STEP = 4096
"""Characters normalised at a time: Python holds the interpreter meanwhile."""


@dataclass(frozen=True, slots=True, eq=False)
class LongEncoding:
    """What is used of the library's own encoding. Shapes: `ids` [T] int32, `offsets` [T, 2] int32."""

    ids: IntArray
    offsets: IntArray


def weight(text: str) -> int:
    """Characters that the tokenizer has to deal with; counted no further than just beyond PIECE."""
    if text.isascii():
        return len(text)
    total = 0
    for start in range(0, len(text), _STEP):
        total += len(unicodedata.normalize("NFKC", text[start : start + _STEP]))
        if total > PIECE:
            break
    return total


def encode_long(tokenizer: tokenizers.Tokenizer, text: str) -> LongEncoding:
    """Ids and character positions of a long text, `<s>` first and `</s>` last."""
    frame = tokenizer.encode("").ids
    ids = [np.array(frame[:1], np.int32)]
    offsets = [np.zeros((1, 2), np.int32)]
    count = 2
    for start, end in pieces(text):
        piece = text[start:end]
        if end < len(text):
            piece = piece.rstrip()  # white space is a token at the end of a text only
        if not piece:
            continue
        found = tokenizer.encode(piece, add_special_tokens=False)
        kept = MAX_COUNTED - count
        ids.append(np.array(found.ids[:kept], np.int32))
        offsets.append(np.array(found.offsets[:kept], np.int32).reshape(-1, 2) + np.int32(start))
        count += len(ids[-1])
        if count >= MAX_COUNTED:
            break
    ids.append(np.array(frame[1:], np.int32))
    offsets.append(np.zeros((1, 2), np.int32))
    return LongEncoding(np.concatenate(ids), np.concatenate(offsets))


def pieces(text: str) -> Iterator[tuple[int, int]]:
    """Where pieces begin and end; each weighs at most PIECE."""
    start = 0
    while start < len(text):
        end, size = start, 0
        while end < len(text) and (size := size + weight(text[end : end + _STEP])) <= PIECE:
            end = min(len(text), end + _STEP)
        if end < len(text):
            end = _good_end(text, start, end)
        yield start, end
        start = end


def _good_end(text: str, start: int, end: int) -> int:
    """The last place before `end` where a word begins; `end` itself where there is none nearby."""
    space = end
    while (space := text.rfind(" ", max(start + 1, end - _LOOK_BACK), space)) > 0:
        if text[space - 1].isalnum() and text[space + 1].isalnum():
            return space
    return end
