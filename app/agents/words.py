"""A hit's explanation as a sentence, in words of the query and of the document instead of tokens.

Legend: an `alignment` row is a token of the query, the document's token nearest to it, and their similarity.
It says nothing of the dense score, which no word has a part of.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MAX_WORDS = 6
"""Of each kind; the rest is of little weight."""
_LONGEST_WORD = 30
_WORD_MARK = "▁"
"""What the tokenizer writes for the space before a word."""


def in_words(query: str, text: str, explanation: Mapping[str, Any]) -> str:
    """What the lexical and the ColBERT score come from; offsets are those of the whole stored `text`."""
    alignment: Sequence[Mapping[str, Any]] = explanation.get("alignment") or []
    matched: Sequence[Mapping[str, Any]] = explanation.get("matched_tokens") or []
    return " ".join([_shared(matched, _words_of_tokens(query, alignment)), *_aligned(query, text, alignment)])


def _words_of_tokens(query: str, alignment: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The query's word that each of its tokens is a part of."""
    return {
        row["query_token"]: word_at(query, row["query_offset"])
        for row in reversed(list(alignment))
        if row["query_offset"] is not None and row["query_offset"][1] > row["query_offset"][0]
    }


def _shared(matched: Sequence[Mapping[str, Any]], words: Mapping[str, str]) -> str:
    parts: dict[str, float] = {}
    for row in matched:
        word = words.get(row["token"]) or row["token"].replace(_WORD_MARK, " ").strip() or row["token"]
        parts[word] = parts.get(word, 0.0) + row["product"]
    if not parts:
        return "No word is shared with the query."
    best = sorted(parts.items(), key=lambda item: -item[1])[:MAX_WORDS]
    return f"Shared words and their part of the sparse score: {_listed(best)}."


def _aligned(query: str, text: str, alignment: Iterable[Mapping[str, Any]]) -> list[str]:
    """The document's nearest word for each word of the query, with the best similarity of its tokens."""
    nearest: dict[str, tuple[str, float]] = {}
    for row in alignment:
        ours, theirs = row["query_offset"], row["document_offset"]
        # `<s>` and `</s>` stand for no place in a text.
        if ours is None or theirs is None or ours[1] <= ours[0] or theirs[1] <= theirs[0]:
            continue
        word = word_at(query, ours)
        if word not in nearest or row["similarity"] > nearest[word][1]:
            nearest[word] = (word_at(text, theirs), row["similarity"])
    if not nearest:
        return []
    pairs = [(f"{word} ~ {other}", similarity) for word, (other, similarity) in nearest.items()]
    best = sorted(pairs, key=lambda item: -item[1])[:MAX_WORDS]
    return [f"Nearest words of query ~ document (ColBERT similarity): {_listed(best)}."]


def _listed(items: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in items)


def word_at(text: str, offset: Sequence[int]) -> str:
    """The word around a token, or the token itself where words are not told apart by spaces."""
    start, end = offset
    while start < end and text[start : start + 1].isspace():
        start += 1  # many tokens begin with the space before them
    first, last = start, end
    while first > 0 and last - first <= _LONGEST_WORD and _in_a_word(text[first - 1]):
        first -= 1
    while last < len(text) and last - first <= _LONGEST_WORD and _in_a_word(text[last]):
        last += 1
    found = text[first:last] if last - first <= _LONGEST_WORD else text[start:end]
    return " ".join(found.split())


def _in_a_word(character: str) -> bool:
    # Letters, the marks upon them, and digits; but Thai and its neighbours, Chinese, Japanese have no spaces.
    unspaced = "\u0e00" <= character <= "\u109f" or "\u3040" <= character <= "\u9fff"
    return unicodedata.category(character)[0] in "LMN" and not unspaced
