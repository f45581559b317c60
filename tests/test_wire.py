"""JSON read strictly; vectors written as numbers, base64, int8, bits and safetensors."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load

from app.answers import MAX_NUMBER_BYTES, gathered, json_pieces, numbers_of
from app.errors import InferenceFailed, InvalidRequest, MalformedJson
from app.wire import (
    LARGE_BODY_BYTES,
    MAX_JSON_DEPTH,
    embedding_json,
    parse_json,
    quantised,
    row_numbers,
    safetensors_body,
    unmarked,
)
from model.embedding import Embedding, LexicalWeights

rows = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 20)), elements=st.floats(-9, 9, width=32)
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(json_values, st.booleans())
def test_json_is_read_as_it_was_written(value: object, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert parse_json(body) == value
    assert unmarked(b"\xef\xbb\xbf" + body) == unmarked(body) == body


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nul", b"NaN", b'{"a": Infinity}', b"[-Infinity]", b"\xff", b'"\x00"', b"[1]2", b"9" * 5000],
)
def test_what_is_not_json_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedJson):
        parse_json(body)


def test_depth_is_bounded_without_recursion() -> None:
    assert parse_json(b"[" * MAX_JSON_DEPTH + b"]" * MAX_JSON_DEPTH) is not None
    for depth in (MAX_JSON_DEPTH + 1, 100_000):
        with pytest.raises(MalformedJson, match="deeper"):
            parse_json(b"[" * depth + b"]" * depth)
    # Brackets in strings are text, on both sides of the count.
    assert parse_json(json.dumps(["[" * 500, '"\\' + "[" * 500]).encode())
    with pytest.raises(MalformedJson, match="deeper"):
        parse_json(b'["' + b"]" * 500 + b'",' + b"[" * 150 + b"]" * 151)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (rb'{"texts": ["fine", "\ud800"]}', "texts.1"),
        (rb'{"texts": "\udfff x"}', "texts"),
        (rb'{"a": {"\uD800": 1}}', "a"),
    ],
)
def test_half_a_surrogate_pair_is_named(body: bytes, param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        parse_json(body)
    assert refusal.value.param == param


def test_a_whole_pair_is_an_emoji() -> None:
    assert parse_json(rb'"\ud83d\ude00"') == "\N{GRINNING FACE}"


@given(rows)
def test_int8_is_within_half_a_step(values: np.ndarray) -> None:
    stored, scales = quantised(values, "int8")
    assert stored.dtype == np.int8 and scales is not None
    back = stored * np.array(scales, np.float32)[:, None]
    assert np.all(np.abs(back - values) <= np.array(scales)[:, None] * 0.51 + 1e-7)


@given(rows)
def test_binary_is_the_sign_bits_first_number_highest(values: np.ndarray) -> None:
    stored, scales = quantised(values, "binary")
    assert scales is None
    np.testing.assert_array_equal(np.unpackbits(stored, axis=1)[:, : values.shape[1]], values > 0)
    assert stored.shape[1] == -(-values.shape[1] // 8)


def test_zero_and_huge_rows_stay_finite() -> None:
    stored, scales = quantised(np.zeros((2, 3), np.float32), "int8")
    assert not stored.any() and scales == [1.0, 1.0]
    half, _ = quantised(np.full((1, 2), 1e9, np.float32), "float16")
    assert np.isfinite(half).all()


def read(value: Any) -> Any:
    """A value as a client reads it."""
    return parse_json(b"".join(gathered(json_pieces(value))))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "binary"])
def test_nan_is_not_quantised(dtype: Any) -> None:
    with pytest.raises(InferenceFailed):
        quantised(np.array([[0, np.nan]], np.float32), dtype)


def embedding(sparse: LexicalWeights | None = None) -> Embedding:
    return Embedding(
        tokens=3,
        truncated=True,
        dense=np.array([0.5, -0.25], np.float32),
        sparse=sparse or LexicalWeights(np.array([7, 9], np.int32), np.array([0.5, 2], np.float32)),
        colbert=np.array([[1, 0], [0, -1]], np.float32),
    )


@pytest.mark.parametrize(
    ("dtype", "kind"), [("float32", "<f4"), ("float16", "<f2"), ("int8", "i1"), ("binary", "u1")]
)
def test_base64_holds_the_same_numbers_as_json(dtype: str, kind: str) -> None:
    numbers = read(embedding_json(embedding(), "float", dtype, None))  # type: ignore[arg-type]
    coded = embedding_json(embedding(), "base64", dtype, None)  # type: ignore[arg-type]
    dense = np.frombuffer(base64.b64decode(coded["dense"]), kind)
    colbert = np.frombuffer(base64.b64decode(coded["colbert"]), kind).reshape(coded["colbert_shape"])
    assert dense.tolist() == numbers["dense"] and colbert.tolist() == numbers["colbert"]
    assert ("scale" in numbers) == (dtype == "int8")


def test_token_strings_stand_beside_the_weights() -> None:
    fields = read(embedding_json(embedding(), "float", "float32", lambda ids: [f"t{one}" for one in ids]))
    assert fields["sparse"] == {"indices": [7, 9], "values": [0.5, 2.0], "tokens": ["t7", "t9"]}


def test_the_safetensors_layout() -> None:
    none = LexicalWeights(np.array([], np.int32), np.array([], np.float32))
    short = Embedding(
        tokens=2, dense=np.zeros(2, np.float32), sparse=none, colbert=np.ones((1, 2), np.float32)
    )
    tensors = load(safetensors_body([embedding(), short]))
    assert {name: (str(one.dtype), one.shape) for name, one in tensors.items()} == {
        "dense": ("float32", (2, 2)),
        "sparse.indices": ("int32", (2,)),
        "sparse.values": ("float32", (2,)),
        "sparse.offsets": ("int64", (3,)),
        "colbert.values": ("float32", (3, 2)),
        "colbert.offsets": ("int64", (3,)),
        "tokens": ("int32", (2,)),
        "truncated": ("uint8", (2,)),
    }
    assert tensors["sparse.offsets"].tolist() == [0, 2, 2]
    assert tensors["colbert.offsets"].tolist() == [0, 2, 3]
    assert tensors["truncated"].tolist() == [1, 0]


def test_outputs_that_are_absent_have_no_tensors() -> None:
    tensors = load(safetensors_body([Embedding(tokens=2, dense=np.zeros(2, np.float32))]))
    assert set(tensors) == {"dense", "tokens", "truncated"}
    only_empty = Embedding(tokens=2, sparse=LexicalWeights(np.array([], np.int32), np.array([], np.float32)))
    assert load(safetensors_body([only_empty]))["sparse.indices"].shape == (0,)


float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(hnp.arrays(np.float32, st.integers(0, 30), elements=float32))
def test_a_float32_comes_back_bit_for_bit(values: np.ndarray) -> None:
    text = "".join(json_pieces(values))
    back = np.array(json.loads(text), np.float64).astype(np.float32)
    assert back.tobytes() == values.tobytes()
    assert len(text) <= MAX_NUMBER_BYTES * max(1, len(values)) + 1


@given(hnp.arrays(np.float16, (3, 7), elements=st.floats(width=16, allow_nan=False, allow_infinity=False)))
def test_a_float16_comes_back_in_few_digits(values: np.ndarray) -> None:
    text = "".join(json_pieces(values))
    assert np.array(json.loads(text), np.float64).astype(np.float16).tobytes() == values.tobytes()
    assert len(text) <= values.size * 12 + 20


@given(json_values)
def test_json_is_written_as_it_is_read(value: object) -> None:
    assert read(value) == value


def test_an_iterator_is_written_as_a_list() -> None:
    assert read({"a": iter([{"n": np.arange(3)}, {"n": []}]), "b": iter([])}) == {
        "a": [{"n": [0, 1, 2]}, {"n": []}],
        "b": [],
    }


def test_no_piece_takes_long() -> None:
    value = {"rows": np.ones((20, 9000), np.float32), "ids": list(range(50_000)), "row": np.arange(50_000)}
    assert max(map(len, json_pieces(value))) <= 4096 * MAX_NUMBER_BYTES
    assert read(value)["ids"] == value["ids"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_json_cannot_hold_is_not_written(bad: float) -> None:
    with pytest.raises(InferenceFailed):
        list(json_pieces({"dense": np.array([0, bad], np.float32)}))
    with pytest.raises(ValueError, match="JSON"):
        list(json_pieces({"score": bad}))


@pytest.mark.parametrize("dtype", ["float32", "int8", "binary"])
def test_numbers_are_counted_as_they_are_written(dtype: Any) -> None:
    fields = read(embedding_json(embedding(), "float", dtype, None))
    flat = (
        json.dumps(fields).replace("[", ",").replace("]", ",").replace("}", ",").replace(":", ",").split(",")
    )
    written = sum(one.strip().lstrip("-").replace(".", "").isdigit() for one in flat)
    # Two weights of three tokens: the count beforehand supposes one for each token.
    widths = {"dense": row_numbers(2, "float", dtype), "colbert": row_numbers(2, "float", dtype)}
    assert numbers_of([3], ["dense", "sparse", "colbert"], **widths) == written + 2


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53), min_size=1))
def test_a_large_body_is_read_like_a_small_one(values: list[float]) -> None:
    small = json.dumps(values)
    large = " " * LARGE_BODY_BYTES + small
    assert parse_json(large.encode()) == parse_json(small.encode()) == values
