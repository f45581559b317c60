"""The format of derived files: what was written is read, and nothing else is taken for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app.index import arrays
from app.index.arrays import DerivedDamaged


def _write(path: Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
    content = {
        "floats": rng.standard_normal((7, 3)).astype(np.float32),
        "flags": rng.random(13) < 0.5,
        "halves": rng.standard_normal((0, 5)).astype(np.float16),
        "numbers": rng.integers(-(2**62), 2**62, 100),
        "scalar": np.array(7, np.uint16),
    }
    with arrays.writing(path) as file:
        for name, array in content.items():
            file.add(name, array)
        blocks = np.array_split(content["numbers"], 7)
        file.stream("streamed", np.dtype(np.int64), (100,), blocks)
        np.testing.assert_array_equal(file.written("streamed"), content["numbers"])
        assert file.written("halves").shape == (0, 5)
        file.finish({"format": 1, "name": "ä"})
    return {**content, "streamed": content["numbers"]}


@pytest.mark.parametrize("reader", [arrays.read, arrays.mapped])
def test_what_goes_in_comes_out(tmp_path: Path, seed: int, reader: object) -> None:
    path = tmp_path / "folder" / "file"
    content = _write(path, np.random.default_rng(seed))
    facts, found = reader(path)  # type: ignore[operator]
    assert facts == {"format": 1, "name": "ä"}
    assert found.keys() == content.keys()
    for name, array in content.items():
        assert found[name].dtype == array.dtype and not found[name].flags.writeable
        np.testing.assert_array_equal(found[name], array)
    path.unlink()
    np.testing.assert_array_equal(found["numbers"], content["numbers"])  # the map outlives the file
    assert list(path.parent.iterdir()) == []


def test_any_other_byte_is_noticed(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path = tmp_path / "file"
    content = _write(path, rng)
    whole = path.read_bytes()
    for place in rng.integers(0, len(whole), 300):
        changed = bytearray(whole)
        changed[place] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:
            found = arrays.read(path)[1]
        except DerivedDamaged:
            continue
        # Padding between arrays is nobody's.
        for name, array in content.items():
            np.testing.assert_array_equal(found[name], array)


def test_a_file_of_any_other_length_is_refused(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "file"
    _write(path, np.random.default_rng(seed))
    whole = path.read_bytes()
    for content in (b"", whole[:5], *(whole[:-cut] for cut in (1, 8, 20, 21, 500)), whole + b"\0", whole[1:]):
        path.write_bytes(content)
        with pytest.raises(DerivedDamaged):
            arrays.read(path)
    path.unlink()
    with pytest.raises(DerivedDamaged):
        arrays.read(path)
    path.mkdir()
    with pytest.raises(DerivedDamaged):
        arrays.read(path)


def test_what_raises_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"older")
    with pytest.raises(ValueError, match="do not make"), arrays.writing(path) as file:
        file.stream("short", np.dtype(np.int64), (3,), [np.zeros(2, np.int64)])
    with pytest.raises(ValueError, match="not stored"), arrays.writing(path) as file:
        file.add("objects", np.array(["a", "b"]))
    assert path.read_bytes() == b"older"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
