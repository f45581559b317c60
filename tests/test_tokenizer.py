"""Token ids are part of the behaviour: the golden ones must come out exactly."""

from __future__ import annotations

import functools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from model.config import EncoderConfig
from model.tokenizer import TextError, Tokenizer, TokenizerError

MINI = Path(__file__).parent.parent / "weights" / "mini"


@functools.cache
def shared() -> Tokenizer:
    return Tokenizer(MINI / "tokenizer.json", EncoderConfig.from_file(MINI / "config.json"))


@pytest.fixture
def tokenizer() -> Tokenizer:
    return shared()


def test_all_golden_texts_give_the_published_ids(
    real_tokenizer: Path, golden_token_ids: list[dict[str, object]]
) -> None:
    real = Tokenizer(
        real_tokenizer / "tokenizer.json", EncoderConfig.from_file(real_tokenizer / "config.json")
    )
    assert len(golden_token_ids) == 364
    found = real.tokenize([str(row["text"]) for row in golden_token_ids], 8192)
    wrong = [row for row, one in zip(golden_token_ids, found, strict=True) if one.ids.tolist() != row["ids"]]
    assert not wrong
    assert real.tokenize(["Hello world"], 8192)[0].ids.tolist() == [0, 35378, 8999, 2]
    assert real.unused_ids == {0, 1, 2, 3}


def test_truncation_is_reported_and_keeps_the_end(tokenizer: Tokenizer) -> None:
    whole = tokenizer.tokenize(["one two three four five six seven"], 512)[0]
    assert not whole.truncated and whole.total == len(whole.ids)
    cut = tokenizer.tokenize(["one two three four five six seven"], 5)[0]
    assert cut.truncated and cut.total == whole.total
    assert cut.ids.tolist() == [*whole.ids[:4].tolist(), 2]
    assert len(cut.offsets) == 5 and cut.offsets[:4] == whole.offsets[:4] and cut.offsets[4] == (0, 0)
    exact = tokenizer.tokenize(["one two three four five six seven"], len(whole.ids))[0]
    assert not exact.truncated
    uncut = tokenizer.tokenize(["one two three four five six seven"], None)[0]
    assert uncut.ids.tolist() == whole.ids.tolist() and not uncut.truncated


@given(st.text(max_size=200), st.integers(2, 40))
def test_terms_count_the_whole_text_or_what_is_kept_of_it(text: str, limit: int) -> None:
    whole = shared().tokenize([text], 8192)[0]
    assert whole.terms is None
    for count, source in (("whole", whole.ids), ("kept", shared().tokenize([text], limit)[0].ids)):
        (cut,) = shared().tokenize([text], limit, count_terms=count)
        assert cut.terms is not None and len(cut.ids) <= limit
        expected = Counter(one for one in source.tolist() if one not in {0, 1, 2, 3})
        assert dict(zip(cut.terms.indices.tolist(), cut.terms.values.tolist(), strict=True)) == expected


def test_special_ids_are_no_terms(tokenizer: Tokenizer) -> None:
    (one,) = tokenizer.tokenize(["the <pad> the </s><s><unk> the"], 5, count_terms="whole")
    assert one.terms is not None and not set(one.terms.indices.tolist()) & {0, 1, 2, 3}
    assert one.terms.values.max() == 3
    for empty in ("", "</s>"):
        (one,) = tokenizer.tokenize([empty], 5, count_terms="whole")
        assert one.terms is not None and len(one.terms) == 0


@given(st.text(max_size=200), st.integers(2, 40))
def test_any_text_is_cut_to_a_frame(text: str, limit: int) -> None:
    one = shared().tokenize([text], limit)[0]
    assert 2 <= len(one.ids) <= limit
    assert one.ids[0] == 0 and one.ids[-1] == 2 and len(one.offsets) == len(one.ids)
    assert one.truncated == (one.total > limit)
    assert all(0 <= start <= end <= len(text) for start, end in one.offsets)


def test_offsets_are_characters_of_the_original_text(tokenizer: Tokenizer) -> None:
    text = "Zürich 東京 😀 ok"
    one = tokenizer.tokenize([text], 512)[0]
    strings = tokenizer.token_strings(one.ids.tolist())
    words = {text[a:b].strip() for a, b in one.offsets}
    assert strings[0] == "<s>" and strings[-1] == "</s>"
    assert "ok" in words


def test_invalid_unicode_is_an_error_that_says_where(tokenizer: Tokenizer) -> None:
    with pytest.raises(TextError, match=r"text 1 .* character 2"):
        tokenizer.tokenize(["fine", "ab\ud800"], 10)


def test_hostile_texts_become_tokens(tokenizer: Tokenizer) -> None:
    texts = ["\0", "a\0b", "‮right to left", "👨‍👩‍👧‍👦" * 50, "a" * 100_000, "\ufffe", " " * 5000, "\n\t"]
    for one in tokenizer.tokenize(texts, 512):
        assert 2 <= len(one.ids) <= 512


def test_a_files_own_truncation_and_padding_are_ignored(tmp_path: Path) -> None:
    raw = tokenizers.Tokenizer.from_file(str(MINI / "tokenizer.json"))
    raw.enable_truncation(4)
    raw.enable_padding(length=16, pad_id=1, pad_token="<pad>")
    raw.save(str(tmp_path / "tokenizer.json"))
    config = EncoderConfig.from_file(MINI / "config.json")
    one, other = Tokenizer(tmp_path / "tokenizer.json", config).tokenize(
        ["one two three four five", "a"], 512
    )
    assert one.total > 4 and 1 not in other.ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: "not json", "cannot read the tokenizer"),
        (lambda fields: json.dumps({**fields, "post_processor": None}), "the empty text becomes"),
    ],
)
def test_files_that_do_not_serve_are_refused(change, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    fields = json.loads((MINI / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer.json").write_text(change(fields), encoding="utf-8")
    config = EncoderConfig.from_file(MINI / "config.json")
    with pytest.raises(TokenizerError, match=message):
        Tokenizer(tmp_path / "tokenizer.json", config)


def test_a_tokenizer_of_a_larger_vocabulary_is_refused(tmp_path: Path) -> None:
    fields = json.loads((MINI / "config.json").read_text())
    config = EncoderConfig.from_fields({**fields, "vocab_size": 1000})
    with pytest.raises(TokenizerError, match="32001 tokens"):
        Tokenizer(MINI / "tokenizer.json", config)


def test_threads_share_one_tokenizer(tokenizer: Tokenizer) -> None:
    from concurrent.futures import ThreadPoolExecutor

    texts = [f"text number {n} " * (n % 7 + 1) for n in range(200)]
    expected = [one.ids for one in tokenizer.tokenize(texts, 64)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: tokenizer.tokenize([text], 64)[0].ids, texts))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
