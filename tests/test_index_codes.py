"""Token vectors as codes: their bytes, their error, and MaxSim from them against decoded vectors in NumPy."""

from __future__ import annotations

import hashlib
from typing import get_args

import numpy as np
import pytest

from app.index import code_kernels, codes
from app.index.codes import Kind, TokenCodec, codec
from app.index.pooling import pooled
from app.index.workers import Workers
from model.embedding import FloatArray
from tests.index_helpers import unit

KINDS: tuple[Kind, ...] = get_args(Kind)
QUANTISED: tuple[Kind, ...] = ("int8", "4bit", "2bit", "1bit")
WIDTHS = (1, 3, 7, 8, 12, 64, 256, 1024)
TOLERANCE = 5e-5
"""Of |q| |d|, largest: the query's 16 bits and float32 sums."""


def brute_force(use: TokenCodec, query: FloatArray, blobs: list[bytes]) -> np.ndarray:
    """MaxSim of the decoded vectors, in float64."""
    wide = query.astype(np.float64)
    return np.array([(wide @ use.decode(blob).astype(np.float64).T).max(axis=1).mean() for blob in blobs])


def greatest(use: TokenCodec, query: FloatArray, blobs: list[bytes]) -> float:
    """The largest |q| |d|."""
    longest = max(np.linalg.norm(use.decode(blob).astype(np.float64), axis=1).max() for blob in blobs)
    return float(longest * np.linalg.norm(query.astype(np.float64), axis=1).max())


def error(use: TokenCodec, vectors: FloatArray) -> float:
    """Squared error of coding, of the vectors' own squares."""
    found = use.decode(use.encode(vectors)).astype(np.float64)
    return float(((found - vectors) ** 2).sum() / (vectors.astype(np.float64) ** 2).sum())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_maxsim_equals_that_of_the_decoded_vectors(
    monkeypatch: pytest.MonkeyPatch, seed: int, kind: Kind, width: int
) -> None:
    monkeypatch.setattr(codes, "PARALLEL_WORK", 1)
    rng = np.random.default_rng(seed)
    use = codec(kind, width)
    counts = [*rng.integers(1, 40, 12).tolist(), 1, 1, 2, 200]
    scales = np.exp(rng.normal(0, 2, len(counts)))
    documents = [
        (rng.standard_normal((count, width)) * scale).astype(np.float32)
        for count, scale in zip(counts, scales, strict=True)
    ]
    blobs = [use.encode(one) for one in documents]
    assert [use.rows(blob) for blob in blobs] == counts
    assert all(len(blob) == use.row_bytes * count for blob, count in zip(blobs, counts, strict=True))
    query = rng.standard_normal((int(rng.integers(1, 140)), width)).astype(np.float32)
    expected = brute_force(use, query, blobs)
    bound = TOLERANCE * greatest(use, query, blobs)
    np.testing.assert_allclose(use.maxsim(query, blobs), expected, rtol=0, atol=bound)
    for threads in (1, 2, 3, 16):
        workers = Workers(threads)
        np.testing.assert_allclose(use.maxsim(query, blobs, workers), expected, rtol=0, atol=bound)
        # Fewer rows than threads, and one document that is divided more than once.
        np.testing.assert_allclose(use.maxsim(query, blobs[-1:], workers), expected[-1:], rtol=0, atol=bound)
        np.testing.assert_allclose(
            use.maxsim(query, blobs[-3:-2], workers), expected[-3:-2], rtol=0, atol=bound
        )
        workers.close()


@pytest.mark.parametrize("kind", ["float16", "int8", "2bit", "1bit"])
def test_long_texts_and_long_queries(seed: int, kind: Kind) -> None:
    rng = np.random.default_rng(seed)
    use, workers = codec(kind, 16), Workers(2)
    blobs = [use.encode(unit(rng, count, 16)) for count in (8191, 1, 700)]
    query = unit(rng, 8191, 16)
    np.testing.assert_allclose(
        use.maxsim(query, blobs, workers), brute_force(use, query, blobs), atol=TOLERANCE
    )
    workers.close()


@pytest.mark.parametrize("kind", QUANTISED)
def test_sums_do_not_overflow(kind: Kind) -> None:
    """A query with the signs of a row's own levels, at the largest width: sums as large as can be."""
    use = codec(kind, 8192)
    rng = np.random.default_rng(5)
    blob = use.encode(rng.choice([-1.0, 1.0], (3, 8192)).astype(np.float32))
    query = np.sign(use.decode(blob)) * np.float32(1e3)
    found = use.maxsim(query, [blob])
    np.testing.assert_allclose(found, brute_force(use, query, [blob]), rtol=2e-3)
    assert found[0] > 0.5 * np.linalg.norm(query[0]) * np.linalg.norm(use.decode(blob)[0])


@pytest.mark.parametrize("width", [3, 12, 256, 1000])
def test_an_extreme_code_does_not_overflow(width: int) -> None:
    """A damaged int8 blob may hold -128 and a rotated query be one-sided."""
    use = codec("int8", width)
    blob = (b"\x80" * width + np.float32(1).tobytes()) * 5
    query = -use.decode(blob)
    np.testing.assert_allclose(use.maxsim(query, [blob]), brute_force(use, query, [blob]), rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [("int8", 1e-5, 1e-4), ("4bit", 0.0092, 0.0101), ("2bit", 0.113, 0.121), ("1bit", 0.355, 0.370)],
)
@pytest.mark.parametrize("width", [256, 768, 1000, 1024])
def test_error_of_normal_values(seed: int, kind: Kind, low: float, high: float, width: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((400, width)).astype(np.float32)
    assert low < error(codec(kind, width), vectors) < high


@pytest.mark.parametrize(("kind", "high"), [("int8", 2e-3), ("4bit", 0.06), ("2bit", 0.3), ("1bit", 0.6)])
def test_the_rotation_tames_outliers(seed: int, kind: Kind, high: float) -> None:
    """Without it the few large values would take the whole scale."""
    rng = np.random.default_rng(seed)
    for width in (256, 768, 1000):
        vectors = rng.standard_normal((50, width)).astype(np.float32)
        vectors[:, rng.choice(width, 3, replace=False)] *= 50
        assert error(codec(kind, width), vectors) < high


@pytest.mark.parametrize(("kind", "bound"), [("float32", 0.0), ("float16", 1e-6)])
def test_floats_are_kept(seed: int, kind: Kind, bound: float) -> None:
    vectors = np.random.default_rng(seed).standard_normal((50, 12)).astype(np.float32)
    assert error(codec(kind, 12), vectors) <= bound


def test_row_bytes() -> None:
    sizes = {kind: codec(kind, 1024).row_bytes for kind in KINDS}
    assert sizes == {"float32": 4096, "float16": 2048, "int8": 1028, "4bit": 516, "2bit": 260, "1bit": 132}
    assert [codec("1bit", width).row_bytes for width in (1, 8, 9)] == [5, 5, 6]


@pytest.mark.parametrize("kind", QUANTISED)
def test_rows_are_coded_by_themselves(seed: int, kind: Kind) -> None:
    """The same bytes for a row wherever it stands, for every count up to two blocks of lanes."""
    rng = np.random.default_rng(seed)
    for width in (5, 12, 128):
        use, vectors = codec(kind, width), rng.standard_normal((33, width)).astype(np.float32)
        whole = use.encode(vectors)
        assert whole == b"".join(use.encode(vectors[row : row + 1]) for row in range(33))
        assert whole[: 20 * use.row_bytes] == use.encode(vectors[:20])
        doubled = np.frombuffer(use.encode(2 * vectors), np.uint8).reshape(33, -1)
        values = np.frombuffer(whole, np.uint8).reshape(33, -1)
        np.testing.assert_array_equal(doubled[:, :-4], values[:, :-4])
        np.testing.assert_array_equal(use.decode(use.encode(2 * vectors)), 2 * use.decode(whole))
        np.testing.assert_array_equal(use.decode(whole[use.row_bytes :]), use.decode(whole)[1:])


def whole_numbers(rows: int, width: int) -> FloatArray:
    """Vectors for the golden bytes that need no random generator to stay as it is."""
    return (
        ((np.arange(1, rows * width + 1) ** 2 * 7919 % 2003) - 1001).reshape(rows, width).astype(np.float32)
    )


GOLDEN = {
    "float32": (
        "0040634400801d44000025430000f3c300002a440080abc30080e14300006cc4008002c400008fc300006cc30000bac3"
        "00802dc4004048440000d642004041c40000244300c0644400c002c4000010c300004442000060420000f6c20000f4c3"
    ),
    "float16": "1a63ec60285998df50615cdd0c5f60e314e078dc60dbd0dd"
    "6ce14262b0560ae22059266316e080d820520053b0d7a0df",
    "int8": "feab81edc04c1e51bf414f107b480241c720095acc75d390ad71987f1a4dbd40",
    "4bit": "97c342b6c48c26ed1241553948cb35cc048e0d41",
    "2bit": "a5f49c74359842dd06dea1088742",
    "1bit": "283cb25df0430237ffe0e743",
}
GOLDEN_DIGESTS = {
    "float32": "4c03b7b7a20a2e61",
    "float16": "c8766286fcab2974",
    "int8": "2e50a8afb39b6ee0",
    "4bit": "cbcecf8fc4746d8d",
    "2bit": "d6abd8425f5b54ae",
    "1bit": "872b11d8d2600bb1",
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_format_is_kept(kind: Kind) -> None:
    """Stored codes outlive every version: these bytes must never change, on no machine."""
    assert codec(kind, 12).encode(whole_numbers(2, 12)).hex() == GOLDEN[kind]
    many = b"".join(codec(kind, width).encode(whole_numbers(21, width)) for width in (1, 7, 100, 256, 1024))
    assert hashlib.sha256(many).hexdigest()[:16] == GOLDEN_DIGESTS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_zero_vectors(kind: Kind) -> None:
    use = codec(kind, 12)
    vectors = np.zeros((18, 12), np.float32)
    vectors[17] = np.arange(-5, 7)
    blob = use.encode(vectors)
    assert not use.decode(blob)[:17].any()
    assert use.maxsim(np.ones((3, 12), np.float32), [use.encode(vectors[:17])]).tolist() == [0.0]
    assert use.maxsim(np.zeros((3, 12), np.float32), [blob, blob]).tolist() == [0.0, 0.0]
    # A zero row is better than one that points away.
    assert use.maxsim(-use.decode(blob)[17:], [blob]).tolist() == [0.0]


@pytest.mark.parametrize("norm", [1e-30, 1e-20, 1e15])
@pytest.mark.parametrize("kind", ["float32", *QUANTISED])
def test_any_length_of_vector(seed: int, kind: Kind, norm: float) -> None:
    rng = np.random.default_rng(seed)
    use = codec(kind, 12)
    vectors = (unit(rng, 40, 12) * norm).astype(np.float32)
    plain = error(use, unit(rng, 40, 12))
    assert error(use, vectors) <= 2 * plain + 1e-12
    query = (unit(rng, 3, 12) / norm).astype(np.float32)
    blobs = [use.encode(vectors), use.encode(vectors[:1])]
    np.testing.assert_allclose(use.maxsim(query, blobs), brute_force(use, query, blobs), atol=TOLERANCE)


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("norm", [1e30, 3e38, 1e-44])
def test_the_ends_of_float32(kind: Kind, norm: float) -> None:
    """One large value in each row: all that a float32 can hold is coded, and nearly nothing is."""
    use = codec(kind, 8)
    vectors = (np.eye(8) * norm).astype(np.float32)
    blob = use.encode(vectors)
    found = use.maxsim(np.eye(8, dtype=np.float32), [blob])
    assert np.isfinite(use.decode(blob)).all() and np.isfinite(found).all()
    if norm > 1:
        np.testing.assert_allclose(found, brute_force(use, np.eye(8, dtype=np.float32), [blob]), rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_stored(kind: Kind) -> None:
    use = codec(kind, 8)
    for value in (np.nan, np.inf, -np.inf):
        for row in (0, 16, 18):
            vectors = np.ones((19, 8), np.float32)
            vectors[row, 3] = value
            with pytest.raises(ValueError, match="not finite"):
                use.encode(vectors)
            with pytest.raises(ValueError, match="not finite"):
                use.maxsim(vectors, [use.encode(np.ones((1, 8), np.float32))])
    for shape in ((0, 8), (2, 7), (8,)):
        with pytest.raises(ValueError, match="8"):
            use.encode(np.ones(shape, np.float32))
        with pytest.raises(ValueError, match="8"):
            use.maxsim(np.ones(shape, np.float32), [])
    if kind == "float16":
        with pytest.raises(ValueError, match="too large for float16"):
            use.encode(np.full((1, 8), 70000, np.float32))


def test_a_scale_that_float32_cannot_hold() -> None:
    """Finite values whose rotation gathers them all in one dimension of many."""
    use = codec("int8", 2**20)
    gathered = use.decode(b"\x7f" + bytes(2**20 - 1) + np.float32(1 / 127).tobytes())
    use.encode(gathered)
    with pytest.raises(ValueError, match="too long"):
        use.encode(gathered / np.abs(gathered).max() * np.float32(3e38))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_blobs(seed: int, kind: Kind) -> None:
    rng = np.random.default_rng(seed)
    use = codec(kind, 12)
    good = use.encode(unit(rng, 70, 12))
    query = unit(rng, 3, 12)
    for bad in (b"", good[:-1], good + b"\0", good[: use.row_bytes - 1]):
        for call in (use.rows, use.decode, lambda blob: use.maxsim(query, [good, blob])):
            with pytest.raises(ValueError, match="damaged"):
                call(bad)
    number = np.dtype("<f2" if kind == "float16" else "<f4")
    for value in (np.nan, np.inf, -np.inf):
        for row in (0, 66, 69):
            broken = bytearray(good)
            end = (row + 1) * use.row_bytes
            broken[end - number.itemsize : end] = np.array(value, number).tobytes()
            for call in (use.decode, lambda blob: use.maxsim(query, [good, blob])):
                with pytest.raises(ValueError, match="damaged"):
                    call(bytes(broken))


@pytest.mark.parametrize("kind", QUANTISED)
def test_any_bytes_can_be_scored(seed: int, kind: Kind) -> None:
    """Noise of the right length gives a score, that of what it decodes to, or a clear error."""
    rng = np.random.default_rng(seed)
    use = codec(kind, 9)
    noise = np.frombuffer(rng.bytes(30 * use.row_bytes), np.uint8).reshape(30, -1).copy()
    noise[:, -4:] = np.frombuffer(rng.standard_normal(30).astype("<f4").tobytes(), np.uint8).reshape(30, 4)
    query = unit(rng, 5, 9)
    blobs = [noise.tobytes()]
    bound = TOLERANCE * greatest(use, query, blobs)
    np.testing.assert_allclose(use.maxsim(query, blobs), brute_force(use, query, blobs), atol=bound)


def test_no_documents() -> None:
    assert codec("2bit", 8).maxsim(np.ones((1, 8), np.float32), []).shape == (0,)


def test_unknown_kinds_and_widths() -> None:
    with pytest.raises(ValueError, match="3bit"):
        codec("3bit", 8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="width"):
        codec("2bit", 0)


@pytest.mark.parametrize("width", [1, 2, 3, 6, 12, 100, 256])
def test_the_rotation_keeps_lengths(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    use = codec("2bit", width)
    rotated = np.empty((width, width))
    code_kernels.rotate_rows(np.eye(width, dtype=np.float32), use._signs, use._size, rotated)
    np.testing.assert_allclose(rotated @ rotated.T, np.eye(width), atol=1e-5)
    if width >= 100:
        # Every dimension reaches every other.
        assert np.abs(rotated).max() < 0.8
    assert np.abs(rng.standard_normal(width) @ rotated).max() > 0


def oracle_groups(vectors: FloatArray, most: int) -> list[list[int]]:
    """Greedy merging, every cosine computed anew."""
    groups = [[row] for row in range(len(vectors))]
    while len(groups) > most:
        sums = [vectors[group].astype(np.float64).sum(axis=0) for group in groups]
        lengths = [np.linalg.norm(one) for one in sums]
        cosines = [
            sums[k] @ sums[k + 1] / lengths[k] / lengths[k + 1] if lengths[k] and lengths[k + 1] else 0.0
            for k in range(len(groups) - 1)
        ]
        best = int(np.argmax(cosines))
        groups[best : best + 2] = [groups[best] + groups[best + 1]]
    return groups


@pytest.mark.parametrize("factor", [1, 2, 3, 100])
def test_pooling(seed: int, factor: int) -> None:
    rng = np.random.default_rng(seed)
    for count in (1, 2, 7, 40):
        vectors = (unit(rng, count, 8) * rng.uniform(0.5, 2, (count, 1))).astype(np.float32)
        if count == 40:
            vectors[5:9] = 0
        found, groups = pooled(vectors, factor)
        expected = oracle_groups(vectors, -(-count // factor))
        assert groups.dtype == np.int32 and len(found) == len(expected) == -(-count // factor)
        assert [np.flatnonzero(groups == k).tolist() for k in range(len(found))] == expected
        for row, group in zip(found, expected, strict=True):
            total = vectors[group].astype(np.float64).sum(axis=0)
            norm, length = (
                np.linalg.norm(total),
                np.linalg.norm(vectors[group].astype(np.float64), axis=1).mean(),
            )
            np.testing.assert_allclose(row, total * (length / norm if norm else 0), rtol=1e-5, atol=1e-6)


def test_pooling_takes_neighbours_that_are_alike_first() -> None:
    one, other = np.array([1, 0], np.float32), np.array([0, 1], np.float32)
    found, groups = pooled(np.stack([one, other, other, one]), 2)
    assert groups.tolist() == [0, 1, 1, 1] or groups.tolist() == [0, 0, 0, 1]
    found, groups = pooled(np.stack([one, one, other, one]), 1)
    assert len(found) == 4
    found, groups = pooled(np.stack([one * 3, one, other, other]), 2)
    assert groups.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(found, [[2, 0], [0, 1]])


def test_pooling_refuses() -> None:
    for vectors, factor in ((np.ones((2, 2)), 0), (np.full((2, 2), np.nan), 2), (np.ones((0, 2)), 2)):
        with pytest.raises(ValueError, match="factor"):
            pooled(vectors.astype(np.float32), factor)
