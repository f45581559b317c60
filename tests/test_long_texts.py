"""Texts tokenised a piece at a time: the same tokens as in one go, wherever words allow it."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model import long_texts
from model.config import EncoderConfig
from model.long_texts import encode_long, pieces, weight
from model.tokenizer import Tokenizer

MINI = Path(__file__).parent.parent / "weights" / "mini"
SMALL = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
WORDS = st.sampled_from(["cat", "Zürich", "東京", "ﷺ", "</s>", "<mask>", "é", "ﬁn", "x1", "e\u0301a", "ไทย"])
GAPS = st.sampled_from([" ", " ", "  ", ", ", " - ", "\n", "\u3000", "\u200b ", " ▁"])


@functools.cache
def raw() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(MINI / "tokenizer.json"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of some words; of three words in the tests below one may begin a piece."""
    monkeypatch.setattr(long_texts, "PIECE", 150)
    monkeypatch.setattr(long_texts, "_STEP", 7)
    monkeypatch.setattr(long_texts, "_LOOK_BACK", 150)


@SMALL
@given(st.lists(st.tuples(WORDS, GAPS), max_size=60))
def test_words_are_the_same_tokens_at_the_same_places(small: None, words: list[tuple[str, str]]) -> None:
    # Two plain words now and then: there a piece may begin.
    text = "".join(f"{word}{gap}" + "ab cd " * (place % 3 == 0) for place, (word, gap) in enumerate(words))
    text += "end"
    whole, found = raw().encode(text), encode_long(raw(), text)
    assert found.ids.tolist() == whole.ids
    assert [tuple(pair) for pair in found.offsets.tolist()] == whole.offsets


@SMALL
@given(st.text(max_size=400))
def test_any_text_is_covered_by_pieces(small: None, text: str) -> None:
    places = list(pieces(text))
    assert [start for start, _ in places] == [0, *(end for _, end in places)][: len(places)]
    assert not text or places[-1][1] == len(text)
    assert all(weight(text[start:end]) <= 150 or end - start <= 7 for start, end in places)
    found = encode_long(raw(), text)
    assert found.ids[0] == 0 and found.ids[-1] == 2 and found.offsets.shape == (len(found.ids), 2)
    assert (found.offsets[:, 0] <= found.offsets[:, 1]).all() and (found.offsets <= len(text)).all()


@SMALL
@given(st.text(alphabet=" \n\t\u3000", max_size=300))
def test_white_space_alone_is_what_a_space_is(small: None, text: str) -> None:
    expected = raw().encode(" " if text else "").ids
    assert encode_long(raw(), text).ids.tolist() == expected


@pytest.mark.parametrize("gap", [" " * 500, "\u3000" * 500])
def test_long_gaps_are_no_tokens(small: None, gap: str) -> None:
    text = f"cat dog{gap}bird owl{gap}"
    assert encode_long(raw(), text).ids.tolist() == raw().encode(text).ids


def test_tokens_are_counted_up_to_a_bound(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_texts, "MAX_COUNTED", 100)
    found = encode_long(raw(), "cat " * 5000)
    assert len(found.ids) == 100 and found.ids[-1] == 2
    assert np.array_equal(found.ids[:-1], raw().encode("cat " * 500).ids[:99])


def test_a_character_weighs_what_it_becomes() -> None:
    assert weight("a" * 9000) == 9000 and weight("ﷺ" * 9000) == 18 * 9000
    assert long_texts.PIECE < weight("ﷺ" * 10_000_000) < 2 * long_texts.PIECE


def test_the_tokenizer_takes_long_texts_in_pieces() -> None:
    tokenizer = Tokenizer(MINI / "tokenizer.json", EncoderConfig.from_file(MINI / "config.json"))
    text = "".join(f"number {n} " for n in range(120_000))
    (found,) = tokenizer.tokenize([text], 8192)
    whole = raw().encode(text)
    assert found.total == len(whole.ids) and found.ids.tolist() == [*whole.ids[:8191], 2]
    assert found.offsets[:8191] == whole.offsets[:8191]
    letters, other = tokenizer.tokenize(["a" * 10_000_000, "cat"], 512)
    assert letters.truncated and len(letters.ids) == 512 and letters.total == long_texts.MAX_COUNTED
    assert other.ids.tolist() == raw().encode("cat").ids
