"""Reading checkpoint files: values equal to PyTorch's own, and every damaged or hostile file refused."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from weights.checkpoint import CheckpointError, open_file, open_weights
from weights.tensors import Tensors

# --- round trips ---------------------------------------------------------------------------------


def read_all(tensors: Tensors) -> dict[str, np.ndarray]:
    """Every tensor, read in two pieces where it has two rows."""
    values = {}
    for name in tensors.names():
        rows = tensors.info(name).shape[0]
        cut = max(rows // 2, 1)
        parts = [tensors.rows(name, 0, cut)]
        if cut < rows:
            parts.append(tensors.rows(name, cut, rows))
        values[name] = np.concatenate(parts)
    return values


def assert_same(path: Path, state: dict[str, torch.Tensor]) -> None:
    with open_file(path) as tensors:
        assert set(tensors.names()) == set(state)
        for name, values in read_all(tensors).items():
            assert tensors.info(name).shape == tuple(state[name].shape)
            assert tensors.info(name).dtype == str(state[name].dtype).removeprefix("torch.")
            np.testing.assert_array_equal(values, state[name].detach().float().numpy())
            assert values.flags.c_contiguous and values.dtype == np.float32


DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ending", [".bin", ".safetensors"])
def test_values_are_those_of_torch(tmp_path: Path, dtype: torch.dtype, ending: str) -> None:
    state = {
        "a": torch.randn(7, 5).to(dtype),
        "b.c": torch.randn(3).to(dtype),
        "d": torch.randn(2, 3, 4).to(dtype),
    }
    path = tmp_path / f"model{ending}"
    save_file(state, path) if ending == ".safetensors" else torch.save(state, path)
    assert_same(path, state)


def test_views_of_one_storage(tmp_path: Path) -> None:
    whole = torch.arange(60, dtype=torch.float32).reshape(6, 10)
    state = {
        "whole": whole,
        "transposed": whole.t(),
        "offset": whole[2:],
        "column": whole[:, 3],
        "block": whole[1:4, 2:9:3],
        "permuted": whole.reshape(2, 3, 10).permute(2, 0, 1),
        "one_row": whole[5:6],
    }
    torch.save(state, tmp_path / "model.bin")
    assert_same(tmp_path / "model.bin", state)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_state_dict_of_a_module_in_every_pickle_protocol(tmp_path: Path, protocol: int) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
    torch.save(module.state_dict(), tmp_path / "model.bin", pickle_protocol=protocol)  # has _metadata
    assert_same(tmp_path / "model.bin", module.state_dict())


def test_parameters_and_a_training_scripts_wrapper(tmp_path: Path) -> None:
    state = {"weight": torch.nn.Parameter(torch.randn(3, 2))}
    torch.save({"state_dict": state, "epoch": 3, "loss": [0.5, None]}, tmp_path / "model.bin")
    assert_same(tmp_path / "model.bin", state)


def test_integer_tensors_are_seen_but_not_read(tmp_path: Path) -> None:
    torch.save({"embeddings.position_ids": torch.arange(4)[None]}, tmp_path / "model.bin")
    with open_file(tmp_path / "model.bin") as tensors:
        assert tensors.info("embeddings.position_ids").dtype == "int64"
        with pytest.raises(CheckpointError, match=r"position_ids.*int64"):
            tensors.rows("embeddings.position_ids", 0, 1)


@pytest.mark.parametrize("device", [b"cuda:0", b"mps", b"xla:1"])
def test_device_of_a_storage_does_not_matter(tmp_path: Path, device: bytes) -> None:
    state = {"weight": torch.randn(4, 3).half(), "bias": torch.randn(4).half()}
    torch.save(state, tmp_path / "a.pt")

    def retag(pickled: bytes) -> bytes:
        tagged = pickled.replace(unicode(b"cpu"), unicode(device))
        assert tagged != pickled
        return tagged

    rebuild(tmp_path / "a.pt", tmp_path / "model.bin", retag)
    assert_same(tmp_path / "model.bin", state)


def test_reading_lets_go_of_pages_and_survives_closing(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(4, 2)}, tmp_path / "model.bin")
    tensors = open_file(tmp_path / "model.bin")
    rows = tensors.rows("a", 1, 3)
    tensors.close()
    np.testing.assert_array_equal(rows, np.ones((2, 2)))


# --- files made by hand --------------------------------------------------------------------------


def unicode(text: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text


def rebuild(source: Path, target: Path, change: Callable[[bytes], bytes]) -> None:
    """The same torch file with another data.pkl."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, change(data) if name.endswith("data.pkl") else data)


def torch_zip(
    path: Path,
    pickled: bytes,
    *,
    storage: bytes = bytes(24),
    how: int = zipfile.ZIP_STORED,
    order: str = "little",
) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", order)
        archive.writestr("archive/data/0", storage)
    return path


def tensor_pickle(
    *, kind: bytes = b"FloatStorage", key: bytes = b"0", values: int = 6, offset: int = 0,
    shape: tuple[int, ...] = (2, 3), strides: tuple[int, ...] = (3, 1), name: bytes = b"weight",
) -> bytes:  # fmt: skip
    """The pickle of {name: tensor}, with any numbers."""

    def integer(value: int) -> bytes:
        return b"\x8a\x0a" + value.to_bytes(10, "little", signed=True)

    def sizes(items: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(integer(item) for item in items) + b"t"

    reference = b"(" + unicode(b"storage") + b"ctorch\n" + kind + b"\n" + unicode(key) + unicode(b"cpu")
    reference += integer(values) + b"tQ"
    call = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + integer(offset) + sizes(shape) + sizes(strides)
    )
    call += b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}" + unicode(name) + call + b"s."


def safetensors(path: Path, header: object, data: bytes = bytes(24)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def refuse(path: Path, *parts: str) -> str:
    """Opening and reading everything is a CheckpointError that names the file, and says each part."""
    with pytest.raises(CheckpointError) as caught, open_file(path) as tensors:
        read_all(tensors)
    message = str(caught.value)
    assert str(path) in message
    for part in parts:
        assert part in message, message
    return message


def test_the_handmade_files_are_right_where_nothing_is_changed(tmp_path: Path) -> None:
    values = np.arange(6, dtype="<f4")
    path = torch_zip(tmp_path / "a.bin", tensor_pickle(), storage=values.tobytes())
    with open_file(path) as tensors:
        np.testing.assert_array_equal(tensors.rows("weight", 0, 2), values.reshape(2, 3))
    assert torch.equal(torch.load(path)["weight"], torch.from_numpy(values.reshape(2, 3)))
    entry = {"weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    with open_file(safetensors(tmp_path / "a.safetensors", entry, values.tobytes())) as tensors:
        np.testing.assert_array_equal(tensors.rows("weight", 0, 2), values.reshape(2, 3))


# --- hostile pickles -----------------------------------------------------------------------------


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_nothing_is_executed(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "executed"
    pickled = pickle.dumps({"weight": Call(os.system, f"touch {marker}")}, protocol=protocol)
    path = torch_zip(tmp_path / "model.bin", pickled)
    message = refuse(path)
    assert not marker.exists()
    assert protocol == 0 or "posix.system" in message
    pickle.loads(pickled)  # it does what it says, where it is let
    assert marker.exists()


@pytest.mark.parametrize(
    ("value", "refused"),
    [
        (Call(eval, "1"), "builtin"),
        (Call(getattr, "text", "upper"), "getattr"),
        (Call(__import__, "os"), "__import__"),
        (Call(io.open, "/etc/hostname"), "open"),
        (collections.defaultdict(int), "defaultdict"),
        (np.float64(1.0), "numpy"),
    ],
    ids=str,
)
def test_other_names_are_refused_by_name(tmp_path: Path, value: object, refused: str) -> None:
    refuse(torch_zip(tmp_path / "model.bin", pickle.dumps({"weight": value}, protocol=2)), refused, "refuses")


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.bin")
    refuse(tmp_path / "model.bin", "torch.nn.modules.linear.Linear", "state_dict()")


BOMBS = {
    "deep tuples": b"\x80\x02" + b")" + b"\x85" * 500_000 + b".",
    "exponential hash": b"\x80\x02})" + b"q\x00h\x00\x86" * 200 + b"K\x01s.",
    "exponential value": b"\x80\x02}" + unicode(b"a") + b")" + b"q\x00h\x00\x86" * 200 + b"s.",
    "huge memo index": b"\x80\x02}r\xff\xff\xff\xff.",
    "huge bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
    "huge bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
    "huge string": b"\x80\x04\x8d" + struct.pack("<Q", 2**50) + b".",
    "huge frame": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"}.",
    "long decimal": b"L" + b"9" * 100_000 + b"L\n.",
    "marks": b"(" * 100_000 + b".",
    "a list in itself": b"]q\x00h\x00a.",
    "empty stack": b"\x80\x02.",
    "no stop": b"\x80\x02}",
    "nothing": b"",
    "unknown opcode": b"\xff.",
    "extension registry": b"\x80\x02\x82\x01.",
    "build on a tensor": tensor_pickle()[:-2] + b"}b" + b"s.",
    "a key twice": b"\x80\x02}" + unicode(b"a") + b"Ns" + unicode(b"a") + b"Ns.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_malformed_and_exploding_pickles(tmp_path: Path, name: str) -> None:
    refuse(torch_zip(tmp_path / "model.bin", BOMBS[name]))


def test_a_huge_pickle_is_refused_before_it_is_read(tmp_path: Path) -> None:
    refuse(torch_zip(tmp_path / "model.bin", b"}" * 3_000_000), "data.pkl has 3000000 bytes")


# --- torch files that lie ------------------------------------------------------------------------

LIES: dict[str, dict[str, Any]] = {
    "shape": {"shape": (3, 3), "strides": (3, 1)},
    "stride": {"strides": (4, 1)},
    "offset": {"offset": 1},
    "expanded": {"shape": (1000, 1000), "strides": (0, 0)},
    "huge": {"shape": (2**60, 2**60), "strides": (1, 1)},
    "overflow": {"shape": (2**32, 2**32), "strides": (2**32, 1)},
    "many dimensions": {"shape": (1,) * 100, "strides": (1,) * 100},
    "storage too small": {"values": 7},
    "storage too large": {"values": 5},
    "other dtype": {"kind": b"DoubleStorage"},
    "no such storage": {"key": b"1"},
    "path as key": {"key": b"../data.pkl"},
}
MALFORMED: dict[str, dict[str, Any]] = {
    "negative offset": {"offset": -1},
    "negative stride": {"strides": (-3, 1)},
    "negative shape": {"shape": (-2, 3)},
    "negative storage": {"values": -6},
    "fewer strides": {"strides": (3,)},
    "size beyond int64": {"shape": (2**70, 3)},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_tensor_outside_its_storage(tmp_path: Path, lie: str) -> None:
    refuse(torch_zip(tmp_path / "model.bin", tensor_pickle(**LIES[lie])), "tensor 'weight'")


@pytest.mark.parametrize("lie", MALFORMED)
def test_a_tensor_of_impossible_numbers(tmp_path: Path, lie: str) -> None:
    refuse(torch_zip(tmp_path / "model.bin", tensor_pickle(**MALFORMED[lie])), "damaged")


def test_odd_zips(tmp_path: Path) -> None:
    pickled = tensor_pickle()
    refuse(torch_zip(tmp_path / "deflated.bin", pickled, how=zipfile.ZIP_DEFLATED), "data.pkl", "compressed")
    refuse(torch_zip(tmp_path / "big.bin", pickled, order="big"), "little-endian")
    good = torch_zip(tmp_path / "good.bin", pickled).read_bytes()
    cut = tmp_path / "cut.bin"
    cut.write_bytes(good[: len(good) // 2])
    refuse(cut, "cut short")
    moved = tmp_path / "moved.bin"  # the local header has a longer extra field than fits the file
    first = good.index(b"archive/data.pkl")
    moved.write_bytes(good[: first - 2] + b"\xff\xff" + good[first:])
    refuse(moved, "archive/data.pkl", "damaged")
    renamed = tmp_path / "renamed.bin"
    renamed.write_bytes(good.replace(b"archive/data/0", b"archive/data/1", 1))
    refuse(renamed, "archive/data/0", "damaged")
    with zipfile.ZipFile(tmp_path / "other.bin", "w") as archive:
        archive.writestr("word/document.xml", "")
    refuse(tmp_path / "other.bin", "0 data.pkl")
    with pytest.warns(UserWarning), zipfile.ZipFile(tmp_path / "twice.bin", "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/data.pkl", pickled)
    refuse(tmp_path / "twice.bin", "twice")


def test_torchscript_is_told_from_weights(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"archive/{name}", b"")
    refuse(tmp_path / "model.bin", "TorchScript")


def test_state_dicts_of_other_things(tmp_path: Path) -> None:
    for number, content in enumerate(
        [
            {},
            [torch.ones(2)],
            torch.ones(2),
            {"a": torch.ones(2), "b": 3},
            {1: torch.ones(2)},
            {"optimizer": {}},
        ]
    ):
        torch.save(content, tmp_path / f"{number}.bin")
        refuse(tmp_path / f"{number}.bin", "state_dict()")


@pytest.mark.parametrize("ending", [".bin", ".safetensors"])
def test_what_is_often_found_in_place_of_weights(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"model{ending}"
    path.write_bytes(b"")
    refuse(path, "empty")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 2270000000\n")
    refuse(path, "git-lfs pointer", "git lfs pull")
    path.write_bytes(b"\n<!DOCTYPE html><html><body>404</body></html>")
    refuse(path, "web page")
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    refuse(path, "before 1.6", "save it again")
    path.write_bytes(b"abc")
    refuse(path)
    path.unlink()
    refuse(path, "cannot open")
    path.mkdir()
    refuse(path, "cannot open")


# --- safetensors that lie ------------------------------------------------------------------------


def entry(
    dtype: object = "F32", shape: object = (2, 3), start: object = 0, stop: object = 24
) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


HEADERS: dict[str, tuple[object, str]] = {
    "not json": (b"{nonsense}", "JSON"),
    "not utf-8": (b'{"\xff": 1}', "JSON"),
    "not an object": (b"[1, 2]", "header"),
    "deep": (b'{"a":' + b"[" * 200_000, "JSON"),
    "long number": (b'{"a":' + b"1" * 10_000 + b"}", "JSON"),
    "a key twice": (b'{"a": 1, "a": 2}', "twice"),
    "entry is no object": ({"w": 3}, "'w'"),
    "entry with more": ({"w": entry() | {"x": 1}}, "'w'"),
    "dtype unknown": ({"w": entry("Q4")}, "'Q4'"),
    "dtype no string": ({"w": entry(4)}, "dtype"),
    "shape negative": ({"w": entry(shape=[-2, -3])}, "shape"),
    "shape true": ({"w": entry(shape=[True, 6])}, "shape"),
    "shape text": ({"w": entry(shape="23")}, "shape"),
    "shape overflow": ({"w": entry(shape=[2**33, 2**33])}, "shape"),
    "shape beyond int64": ({"w": entry(shape=[2**64 + 6])}, "shape"),
    "shape of another size": ({"w": entry(shape=[2, 2])}, "takes 16 bytes"),
    "offsets outside": ({"w": entry(shape=[7], stop=28)}, "not inside"),
    "offsets backwards": ({"w": entry(start=24, stop=0)}, "not inside"),
    "offsets negative": ({"w": entry(start=-24, stop=0)}, "data_offsets"),
    "offsets float": ({"w": entry(stop=24.0)}, "data_offsets"),
    "overlap": ({"v": entry(), "w": entry(shape=[1], start=20)}, "'w' overlaps"),
    "gap": ({"v": entry(shape=[1], stop=4), "w": entry(shape=[4], start=8)}, "'w' leaves 4 bytes"),
    "unused end": ({"w": entry(shape=[5], stop=20)}, "4 bytes after"),
    "metadata no map": ({"__metadata__": 3, "w": entry()}, "__metadata__"),
    "metadata of numbers": ({"__metadata__": {"a": 3}, "w": entry()}, "__metadata__"),
}


@pytest.mark.parametrize("lie", HEADERS)
def test_a_safetensors_header_that_lies(tmp_path: Path, lie: str) -> None:
    header, part = HEADERS[lie]
    refuse(safetensors(tmp_path / "model.safetensors", header), part)


@pytest.mark.parametrize("length", [0, 1, 2**20, 2**63, 2**64 - 1])
def test_a_safetensors_header_of_a_wrong_length(tmp_path: Path, length: int) -> None:
    path = safetensors(tmp_path / "model.safetensors", {"w": entry()})
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    refuse(path, "header" if length != 1 else "JSON")


def test_names_are_printable_in_messages(tmp_path: Path) -> None:
    header = b'{"\\ud800\\u001b[31m' + b"x" * 5000 + b'": 1}'
    message = refuse(safetensors(tmp_path / "model.safetensors", header))
    assert message.isprintable() and len(message) < 500


# --- shards --------------------------------------------------------------------------------------


def shards(folder: Path, ending: str, table: dict[str, Any] | None = None) -> None:
    base = "model" if ending == "safetensors" else "pytorch_model"
    names = [f"{base}-0000{i}-of-00002.{ending}" for i in (1, 2)]
    for i, name in enumerate(names):
        state = {f"t{i}": torch.full((2, 2), float(i)), f"u{i}": torch.ones(3)}
        save_file(state, folder / name) if ending == "safetensors" else torch.save(state, folder / name)
    weight_map = {"t0": names[0], "u0": names[0], "t1": names[1], "u1": names[1]} | (table or {})
    weight_map = {name: file for name, file in weight_map.items() if file is not None}
    index = {"metadata": {"total_size": 56}, "weight_map": weight_map}
    (folder / f"{base}.{ending}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards(tmp_path: Path, ending: str) -> None:
    shards(tmp_path, ending)
    with open_weights(tmp_path) as tensors:
        assert tensors.names() == ("t0", "t1", "u0", "u1")
        assert read_all(tensors)["t1"].tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"t9": "{0}"}, "'t9'"),
        ({"t1": None}, "'t1'"),
        ({"t0": "model-00000.{1}"}, "model-00000"),
        ({"t1": "../{0}"}, "'t1'"),
        ({"t1": "/etc/passwd"}, "'t1'"),
        ({"t1": "sub/x.{1}"}, "'t1'"),
        ({"t1": "..\\x.{1}"}, "'t1'"),
        ({"t1": ".."}, "'t1'"),
        ({"t1": 3}, "'t1'"),
        ({"t1": "weights.other"}, "'t1'"),
    ],
)
def test_an_index_that_lies(tmp_path: Path, ending: str, change: dict[str, Any], part: str) -> None:
    first = f"{'model' if ending == 'safetensors' else 'pytorch_model'}-00001-of-00002.{ending}"
    filled = {k: v.format(first, ending) if isinstance(v, str) else v for k, v in change.items()}
    shards(tmp_path, ending, filled)
    with pytest.raises(CheckpointError) as caught:
        open_weights(tmp_path)
    assert part in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("index", [b"", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": 3}', b"\xff"])
def test_an_index_that_is_none(tmp_path: Path, index: bytes) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        open_weights(tmp_path)


def test_safetensors_are_preferred_and_none_at_all_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors, .*pytorch_model\.bin"):
        open_weights(tmp_path)
    torch.save({"old": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with open_weights(tmp_path) as tensors:
        assert tensors.names() == ("old",)
    save_file({"new": torch.ones(1)}, tmp_path / "model.safetensors")
    with open_weights(tmp_path) as tensors:
        assert tensors.names() == ("new",)


# --- any damage ----------------------------------------------------------------------------------


def small_file(folder: Path, ending: str) -> bytes:
    state = {"w": torch.arange(12.0).reshape(3, 4).t(), "b": torch.ones(4).half()}
    path = folder / f"seed{ending}"
    if ending == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save(collections.OrderedDict(state), path)
    return path.read_bytes()


@pytest.mark.parametrize("ending", [".bin", ".safetensors"])
@settings(
    max_examples=300,
    deadline=5000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_damage_is_never_another_error(tmp_path: Path, ending: str, data: st.DataObject) -> None:
    damaged = bytearray(small_file(tmp_path, ending))
    # Most of a torch file is padding: aim half of the flips at its pickle, the header elsewhere.
    middle = damaged.find(b"\x80\x02") if ending == ".bin" else 0
    positions = st.one_of(st.integers(0, len(damaged) - 1), st.integers(middle, middle + 300))
    for position, value in data.draw(st.lists(st.tuples(positions, st.integers(0, 255)), max_size=6)):
        damaged[min(position, len(damaged) - 1)] = value
    end = data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))))
    path = tmp_path / f"model{ending}"
    path.write_bytes(bytes(damaged[:end]))
    try:
        with open_file(path) as tensors:
            read_all_or_refuse(tensors)
    except CheckpointError as error:
        assert str(path) in str(error)


def read_all_or_refuse(tensors: Tensors) -> None:
    for name in tensors.names():
        shape = tensors.info(name).shape
        if shape and shape[0]:  # a scalar has no rows to ask for
            tensors.rows(name, 0, shape[0])
