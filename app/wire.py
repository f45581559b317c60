"""Values on the wire: JSON read strictly, vectors written as numbers, base64 or safetensors.

Legend: N texts, D hidden size, C ColBERT dimension.
Bytes are little-endian and row-major. `dtype` is about dense and ColBERT vectors; lexical weights
are always plain numbers, of which there are few.
"""

from __future__ import annotations

import base64
import codecs
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from app.errors import InferenceFailed, InvalidRequest, MalformedJson
from app.schemas.base import VectorKind
from model.embedding import Embedding, FloatArray, LexicalWeights

Encoding = Literal["float", "base64"]
Dtype = Literal["float32", "float16", "int8", "binary"]

SAFETENSORS = "application/vnd.safetensors"
MAX_JSON_DEPTH = 100
"""Levels of lists and objects in a body: far beyond use, far below Python's recursion limit."""
MAX_JSON_CONTAINERS = 500_000
"""Lists and objects in a body: each takes 80 bytes of memory and as few as 3 of the body."""
LARGE_BODY_BYTES = 256 * 1024
"""A body of more is parsed and checked in a worker thread: it would hold up everyone else."""

_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_IS_BRACKET = np.isin(np.arange(256), list(b"[]{}"))
_INT8_MAX = 127


def unmarked(body: bytes) -> bytes:
    """A body without the byte order mark that editors write; RFC 8259 lets it be ignored."""
    return body.removeprefix(codecs.BOM_UTF8)


def parse_json(body: bytes) -> Any:
    """JSON as RFC 8259 has it: UTF-8, no NaN or Infinity, no number beyond a double, no half surrogate pair.

    Raises MalformedJson, or InvalidRequest naming the field that holds half a pair.
    """
    value = parse_unpaired(body)
    if may_hold_half_pairs(body):
        check_pairs(value)
    return value


def parse_unpaired(body: bytes) -> Any:
    """The same, but strings may hold half a surrogate pair: whoever asks checks the parts by themselves."""
    _check_brackets(body)
    # The parser is one call that holds the interpreter. A Python function for each number lets other
    # threads in between; for a small body that would only be slower.
    numbers: dict[str, Any] = (
        {"parse_float": _float, "parse_int": _int} if len(body) > LARGE_BODY_BYTES else {}
    )
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant, **numbers)
    except UnicodeDecodeError:
        raise MalformedJson("the body is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise MalformedJson(f"the body is not JSON: {error.msg} (character {error.pos})") from None
    except RecursionError:
        raise MalformedJson(f"the body nests deeper than {MAX_JSON_DEPTH} levels") from None
    except ValueError:
        # Python refuses integers of thousands of digits; NaN and Infinity end here too.
        raise MalformedJson("the body holds a number that JSON or a double cannot hold") from None
    return value


def _float(text: str) -> float:
    return float(text)


def _int(text: str) -> int:
    return int(text)


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _check_brackets(body: bytes) -> None:
    """Measure how much and how deep JSON nests before anything is made of it; no recursion.

    Of malformed JSON what comes before the fault counts, and that is all that a parser would make.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_JSON_DEPTH:
        return
    # Without escapes a quotation mark is where a string begins or ends.
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in body else body
    marks = np.frombuffer(plain, np.uint8)
    in_string = np.logical_xor.accumulate(marks == ord('"'))
    marks = marks[_IS_BRACKET[marks] & ~in_string]
    opens = (marks == ord("[")) | (marks == ord("{"))
    if np.count_nonzero(opens) > MAX_JSON_CONTAINERS:
        raise MalformedJson(f"the body holds more than {MAX_JSON_CONTAINERS} lists and objects")
    steps = np.where(opens, np.int32(1), np.int32(-1))
    if steps.size and int(np.cumsum(steps).max()) > MAX_JSON_DEPTH:
        raise MalformedJson(f"the body nests deeper than {MAX_JSON_DEPTH} levels")


def may_hold_half_pairs(body: bytes) -> bool:
    """Whether JSON has an escape of either half of a surrogate pair."""
    return _SURROGATE_ESCAPE.search(body) is not None


def check_pairs(value: Any, path: str = "") -> None:
    """Raise InvalidRequest where a string is no Unicode text: SQLite, the tokenizer and UTF-8 need one."""
    if isinstance(value, str):
        if not _encodable(value):
            raise InvalidRequest("the text holds half of a surrogate pair", param=path or None)
    elif isinstance(value, dict):
        for key, child in value.items():
            if not _encodable(key):
                raise InvalidRequest("a field's name holds half of a surrogate pair", param=path or None)
            check_pairs(child, f"{path}.{key[:80]}" if path else key[:80])
    elif isinstance(value, list):
        for place, child in enumerate(value):
            check_pairs(child, f"{path}.{place}" if path else str(place))


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def quantised(rows: FloatArray, dtype: Dtype) -> tuple[NDArray[Any], list[float] | None]:
    """Rows in the wire's number format, and for int8 each row's scale: value = stored * scale.

    Shape: [R, W] -> [R, W], or [R, ceil(W / 8)] uint8 for `binary`: one bit a number, set where it is
    greater than 0, the first number in the highest bit. Raises InferenceFailed for NaN or Infinity.
    """
    if not np.isfinite(rows).all():
        raise InferenceFailed("the model gave a number that is not finite")
    if dtype == "float32":
        return rows.astype("<f4"), None
    if dtype == "float16":
        limit = float(np.finfo(np.float16).max)  # vectors that were not normalised may lie beyond
        return np.clip(rows, -limit, limit).astype("<f2"), None
    if dtype == "binary":
        return np.packbits(rows > 0, axis=1), None
    largest = np.abs(rows).max(axis=1, keepdims=True) if rows.size else np.zeros((len(rows), 1), np.float32)
    steps = (largest / _INT8_MAX).astype(np.float32)
    scale = np.where(steps > 0, steps, np.float32(1))  # of a row below float32's reach nothing is left but 0
    stored = np.clip(np.rint(rows / scale), -_INT8_MAX, _INT8_MAX).astype(np.int8)
    return stored, [float(one) for one in scale[:, 0]]


def foreign_rows(rows: FloatArray, kind: VectorKind) -> list[Any]:
    """Vectors as OpenAI, Jina and Cohere write them, one entry for each row of [R, W].

    `float` and `base64` (of little-endian float32) are exact. `int8` is scaled by each row's largest number
    and `uint8` is the same plus 128: compare them by cosine. `ubinary` is a bit a number, set where it is
    greater than 0, the first in the highest bit of a byte; `binary` is the same minus 128.
    Raises InferenceFailed for NaN or Infinity.
    """
    if kind in ("float", "base64"):
        exact, _ = quantised(rows, "float32")
        return [written(row, "base64" if kind == "base64" else "float") for row in exact]
    if kind in ("int8", "uint8"):
        signed, _ = quantised(rows, "int8")
        return list(signed if kind == "int8" else (signed.astype(np.int16) + 128).astype(np.uint8))
    bits, _ = quantised(rows, "binary")
    return list(bits if kind == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8))


def foreign_numbers(width: int, kind: VectorKind) -> int:
    """How many JSON numbers `foreign_rows` makes of a vector."""
    return {"base64": 0, "binary": -(-width // 8), "ubinary": -(-width // 8)}.get(kind, width)


def written(rows: NDArray[Any], encoding: Encoding) -> Any:
    """Rows as they are, for `app.answers` to write as numbers, or as base64 of their bytes."""
    return base64.b64encode(rows.tobytes()).decode("ascii") if encoding == "base64" else rows


def rows_of_base64(
    text: str, dtype: Literal["float32", "float16"], width: int, param: str
) -> NDArray[np.float32]:
    """What `written` has made base64. Shape: [R, width], R at least 1.

    Raises InvalidRequest where it is no base64, no whole rows, or holds NaN or Infinity.
    """
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        raise InvalidRequest(f"base64 of little-endian {dtype} is expected", param=param) from None
    row_bytes = width * (4 if dtype == "float32" else 2)
    if not raw or len(raw) % row_bytes:
        raise InvalidRequest(
            f"{len(raw)} bytes, where a vector of this model has {row_bytes} as {dtype}; `dtype` says which",
            param=param,
        )
    rows = np.frombuffer(raw, "<f4" if dtype == "float32" else "<f2").astype(np.float32).reshape(-1, width)
    if not bool(np.isfinite(rows).all()):
        raise InvalidRequest("a number is NaN or infinite", param=param)
    return rows


def row_numbers(width: int, encoding: Encoding, dtype: Dtype) -> int:
    """How many JSON numbers a row of this width becomes; its int8 scale counts as one."""
    if encoding == "base64":
        return 1 if dtype == "int8" else 0
    return {"binary": -(-width // 8), "int8": width + 1}.get(dtype, width)


def embedding_json(
    embedding: Embedding,
    encoding: Encoding,
    dtype: Dtype,
    token_strings: Callable[[Sequence[int]], list[str]] | None,
) -> dict[str, Any]:
    """The fields `dense`, `sparse`, `colbert` and `scale` of one text; vectors of numbers as arrays."""
    fields: dict[str, Any] = {}
    scale: dict[str, Any] = {}
    if embedding.dense is not None:
        row, scales = quantised(embedding.dense[None], dtype)
        fields["dense"] = written(row[0], encoding)
        if scales:
            scale["dense"] = scales[0]
    if embedding.sparse is not None:
        fields["sparse"] = sparse_json(embedding.sparse, token_strings)
    if embedding.colbert is not None:
        rows, scales = quantised(embedding.colbert, dtype)
        fields["colbert"] = written(rows, encoding)
        if encoding == "base64":
            fields["colbert_shape"] = list(rows.shape)
        if scales is not None:
            scale["colbert"] = scales
    if scale:
        fields["scale"] = scale
    return fields


def sparse_json(
    weights: LexicalWeights, token_strings: Callable[[Sequence[int]], list[str]] | None
) -> dict[str, Any]:
    """Lexical weights by token id, with the vocabulary's entries where `token_strings` finds them."""
    fields: dict[str, Any] = {"indices": weights.indices, "values": weights.values}
    if token_strings is not None:
        fields["tokens"] = token_strings(weights.indices.tolist())
    return fields


def safetensors_body(embeddings: Sequence[Embedding]) -> bytes:
    """All texts in one safetensors file; the ragged outputs are values with N + 1 offsets.

    `dense` [N, D] float32; `sparse.indices` int32, `sparse.values` float32, `sparse.offsets` [N+1] int64;
    `colbert.values` [rows, C] float32, `colbert.offsets` [N+1] int64; `tokens` [N] int32;
    `truncated` [N] uint8. An output that the texts lack has no tensors. Needs at least one text.
    """
    tensors: dict[str, NDArray[Any]] = {
        "tokens": np.array([one.tokens for one in embeddings], np.int32),
        "truncated": np.array([one.truncated for one in embeddings], np.uint8),
    }
    dense = [one.dense for one in embeddings if one.dense is not None]
    sparse = [one.sparse for one in embeddings if one.sparse is not None]
    colbert = [one.colbert for one in embeddings if one.colbert is not None]
    if dense:
        tensors["dense"] = np.stack(dense).astype(np.float32)
    if sparse:
        tensors["sparse.indices"] = np.concatenate([one.indices for one in sparse]).astype(np.int32)
        tensors["sparse.values"] = np.concatenate([one.values for one in sparse]).astype(np.float32)
        tensors["sparse.offsets"] = _offsets([len(one) for one in sparse])
    if colbert:
        tensors["colbert.values"] = np.concatenate(colbert).astype(np.float32)
        tensors["colbert.offsets"] = _offsets([len(one) for one in colbert])
    return bytes(save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}))


def _offsets(lengths: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
