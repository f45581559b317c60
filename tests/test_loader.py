"""Loading: exact cover of checkpoint and model, both ways; values, fingerprint and memory."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from model.config import EncoderConfig
from weights.checkpoint import CheckpointError
from weights.fingerprint import TensorSample
from weights.loader import LoadedCheckpoint, load, read_fingerprint, read_layout
from weights.mapping import Entry, Layout, encoder_entries, head_entries

MINI = Path(__file__).parent.parent / "weights" / "mini"
ROOT = Path(__file__).parent.parent

CONFIG = EncoderConfig(
    vocab_size=300,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=12,
    type_vocab_size=1,
    layer_norm_eps=1e-5,
    bos_token_id=0,
    pad_token_id=1,
    eos_token_id=2,
)
COLBERT_DIM = 5

State = dict[str, torch.Tensor]


class ArraySlot:
    """A variable that is a NumPy array, and remembers how often each row was written."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.values = np.full(shape, np.nan, np.float32)
        self.writes = np.zeros(shape[0], int)

    def write(self, start: int, rows: NDArray[np.float32]) -> None:
        assert rows.dtype == np.float32 and rows.shape[1:] == self.shape[1:]
        self.values[start : start + len(rows)] = rows
        self.writes[start : start + len(rows)] += 1


def entries_of(config: EncoderConfig, colbert_dim: int | None) -> list[Entry]:
    heads = {} if colbert_dim is None else head_entries(config, colbert_dim)
    return [*encoder_entries(config), *(entry for entries in heads.values() for entry in entries)]


def slots_of(config: EncoderConfig = CONFIG, colbert_dim: int | None = COLBERT_DIM) -> dict[str, ArraySlot]:
    return {entry.variable: ArraySlot(entry.variable_shape) for entry in entries_of(config, colbert_dim)}


def random_state(seed: int = 0) -> State:
    """Values that float16 holds exactly, so that every dtype is the same checkpoint."""
    generator = torch.Generator().manual_seed(seed)
    return {
        entry.tensor: torch.randn(entry.shape, generator=generator).half().float()
        for entry in encoder_entries(CONFIG)
    }


def random_heads(seed: int = 1) -> dict[str, State]:
    generator = torch.Generator().manual_seed(seed)
    return {
        file: {entry.tensor: torch.randn(entry.shape, generator=generator).half() for entry in entries}
        for file, entries in head_entries(CONFIG, COLBERT_DIM).items()
    }


def write_rest(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps(dataclasses.asdict(CONFIG) | {"model_type": "xlm-roberta"})
    )
    (folder / "tokenizer.json").write_text("{}")
    for file, state in random_heads().items():
        torch.save(state, folder / file)


def as_safetensors(folder: Path, state: State) -> None:
    save_file(state, folder / "model.safetensors")


def as_torch(folder: Path, state: State) -> None:
    torch.save(state, folder / "pytorch_model.bin")


def as_half(folder: Path, state: State) -> None:
    as_safetensors(folder, {name: tensor.half() for name, tensor in state.items()})


def as_transposed_views(folder: Path, state: State) -> None:
    as_torch(folder, {name: tensor.t().contiguous().t() for name, tensor in state.items()})


def as_shards(folder: Path, state: State) -> None:
    names = sorted(state)
    table = {}
    for number in range(3):
        shard = f"model-0000{number + 1}-of-00003.safetensors"
        part = {name: state[name] for name in names[number::3]}
        save_file(part, folder / shard)
        table |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


def as_masked_language_model(folder: Path, state: State) -> None:
    """The encoder behind a prefix, beside what is ignored."""
    more = {
        "lm_head.bias": torch.zeros(300),
        "lm_head.dense.weight": torch.zeros(16, 16),
        "roberta.embeddings.position_ids": torch.arange(12)[None],
        "roberta.pooler.dense.weight": torch.zeros(16, 16),
    }
    as_torch(folder, {f"roberta.{name}": tensor for name, tensor in state.items()} | more)


def as_xlm_roberta(folder: Path, state: State) -> None:
    as_safetensors(folder, {f"xlm_roberta.{name}": tensor for name, tensor in state.items()})


FORMATS: list[Callable[[Path, State], None]] = [
    as_safetensors,
    as_torch,
    as_half,
    as_transposed_views,
    as_shards,
    as_masked_language_model,
    as_xlm_roberta,
]


def loaded(folder: Path, **options: bool) -> tuple[LoadedCheckpoint, dict[str, ArraySlot]]:
    slots = slots_of(colbert_dim=None if options.get("dense_only") else COLBERT_DIM)
    return load(folder, slots, **options), slots


@pytest.mark.parametrize("write", FORMATS)
def test_every_format_fills_every_variable_once_and_has_one_fingerprint(
    tmp_path: Path, write: Callable[[Path, State], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weights.loader.CHUNK_BYTES", 1000)  # the word embeddings take 20 chunks
    state = random_state()
    write_rest(tmp_path / "a")
    write(tmp_path / "a", state)
    result, slots = loaded(tmp_path / "a")
    heads = random_heads()
    expected = state | {f"{file[:-3]}.{name}": t for file, head in heads.items() for name, t in head.items()}
    assert result.tensors == len(slots) == len(expected)
    assert result.parameters == sum(tensor.numel() for tensor in expected.values())
    for name, tensor in expected.items():
        variable = name.replace(".", "/")
        values = tensor.float().numpy()
        if variable not in slots:
            variable, values = variable.removesuffix("weight") + "kernel", values.T
        np.testing.assert_array_equal(slots[variable].values, values)
        assert (slots[variable].writes == 1).all()
    write_rest(tmp_path / "b")
    as_safetensors(tmp_path / "b", state)
    monkeypatch.undo()
    assert loaded(tmp_path / "b")[0].fingerprint == result.fingerprint


def test_fingerprint_tells_checkpoints_apart(tmp_path: Path) -> None:
    write_rest(tmp_path)
    as_safetensors(tmp_path, random_state())
    seen = {loaded(tmp_path)[0].fingerprint, loaded(tmp_path, dense_only=True)[0].fingerprint}
    assert len(seen) == 2
    state = random_state()
    state["encoder.layer.1.output.dense.bias"][3] += 1
    as_safetensors(tmp_path, state)
    seen.add(loaded(tmp_path)[0].fingerprint)
    (tmp_path / "tokenizer.json").write_text("{ }")
    seen.add(loaded(tmp_path)[0].fingerprint)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-6}))
    seen.add(loaded(tmp_path)[0].fingerprint)
    torch.save(
        {name: t + 1 for name, t in random_heads()["sparse_linear.pt"].items()}, tmp_path / "sparse_linear.pt"
    )
    seen.add(loaded(tmp_path)[0].fingerprint)
    assert len(seen) == 6


def test_sample_of_a_large_tensor_does_not_depend_on_chunks() -> None:
    values = np.random.default_rng(5).standard_normal((3001, 77), np.float32)
    entry = Entry("a", "a", Layout.AS_IS, values.shape)

    def digest(step: int) -> bytes:
        sample = TensorSample(entry)
        for start in range(0, len(values), step):
            sample.add(start * 77, values[start : start + step])
        return sample.digest()

    whole = digest(3001)
    assert digest(1) == digest(10) == digest(1000) == whole
    for index in ((0, 0), (3000, 76)):  # the first and the last block reach the ends
        values[index] += 1
        assert digest(3001) != whole
        values[index] -= 1


def test_the_bundled_checkpoint_loads() -> None:
    layout = read_layout(MINI)
    assert (layout.config.num_hidden_layers, layout.colbert_dim) == (4, 256)
    slots = slots_of(layout.config, layout.colbert_dim)
    seen: list[tuple[int, int]] = []
    result = load(MINI, slots, progress=lambda done, total: seen.append((done, total)))
    assert set(result.ignored) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert seen[-1] == (4 * result.parameters, 4 * result.parameters)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    sparse = torch.load(MINI / "sparse_linear.pt")
    np.testing.assert_array_equal(slots["sparse_linear/kernel"].values, sparse["weight"].float().numpy().T)
    assert all(np.isfinite(slot.values).all() for slot in slots.values())


def test_table_is_reversible() -> None:
    entries = entries_of(CONFIG, COLBERT_DIM)
    assert len({entry.variable for entry in entries}) == len(entries)
    for entry in encoder_entries(CONFIG):
        name = entry.variable.replace("/", ".")
        if entry.layout is Layout.TRANSPOSED:
            name = re.sub("kernel$", "weight", name)
        assert name == entry.tensor
    assert head_entries(CONFIG, 5)["colbert_linear.pt"][0] == Entry(
        "weight", "colbert_linear/kernel", Layout.TRANSPOSED, (5, 16)
    )


# --- refusals: nothing is written, and the message names what is wrong ---------------------------

Change = Callable[[State], object]


def rename(state: State, old: str, new: str) -> None:
    state[new] = state.pop(old)


BIAS = "encoder.layer.1.output.dense.bias"
WORDS = "embeddings.word_embeddings.weight"

REFUSED: dict[str, tuple[Change, str]] = {
    "missing": (lambda s: s.pop(BIAS), rf"1 tensors are missing.*{BIAS}"),
    "many missing": (
        lambda s: [s.pop(n) for n in list(s) if ".0." in n],
        r"16 tensors are missing.* and 11 more",
    ),
    "extra": (lambda s: s.update({"adapter.weight": torch.ones(1)}), r"no known use: 'adapter\.weight'"),
    "extra layer": (
        lambda s: s.update({BIAS.replace(".1.", ".2."): torch.ones(16)}),
        r"no known use: .*layer\.2",
    ),
    "a reranker": (lambda s: s.update({"classifier.out_proj.bias": torch.ones(1)}), r"classifier\.out_proj"),
    "shape": (lambda s: s.update({BIAS: torch.ones(17)}), rf"{BIAS}.*\(17,\).*\(16,\)"),
    "transposed": (lambda s: s.update({WORDS: torch.ones(16, 300)}), rf"{WORDS}.*\(16, 300\).*\(300, 16\)"),
    "integers": (lambda s: s.update({BIAS: torch.ones(16).int()}), rf"{BIAS}.*int32"),
    "mixed prefixes": (
        lambda s: rename(s, BIAS, f"roberta.{BIAS}"),
        r"different prefixes \('', 'roberta\.'\)",
    ),
    "two of one": (lambda s: s.update({f"roberta.{BIAS}": torch.ones(16)}), rf"{BIAS}.*same tensor"),
}


@pytest.mark.parametrize("write", [as_safetensors, as_torch])
@pytest.mark.parametrize("name", REFUSED)
def test_a_checkpoint_that_does_not_fit(
    tmp_path: Path, name: str, write: Callable[[Path, State], None]
) -> None:
    change, message = REFUSED[name]
    write_rest(tmp_path)
    state = random_state()
    change(state)
    write(tmp_path, state)
    slots = slots_of()
    with pytest.raises(CheckpointError, match=message) as caught:
        load(tmp_path, slots)
    assert str(tmp_path) in str(caught.value)
    assert not any(slot.writes.any() for slot in slots.values())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(tmp_path: Path, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weights.loader.CHUNK_BYTES", 1000)
    write_rest(tmp_path)
    state = random_state()
    state[WORDS][200, 7] = value
    as_safetensors(tmp_path, state)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors.*{WORDS}.* 1 NaN.*{value} at \(200, 7\)"):
        loaded(tmp_path)


def test_float64_beyond_float32_is_not_finite(tmp_path: Path) -> None:
    write_rest(tmp_path)
    as_safetensors(tmp_path, random_state() | {BIAS: torch.full((16,), 1e300, dtype=torch.float64)})
    with pytest.raises(CheckpointError, match=rf"{BIAS}.* 16 NaN"):
        loaded(tmp_path)


def test_slots_must_match_too(tmp_path: Path) -> None:
    write_rest(tmp_path)
    as_safetensors(tmp_path, random_state())
    slots = slots_of()
    kernel = "encoder/layer/0/intermediate/dense/kernel"
    with pytest.raises(CheckpointError, match=r"nothing to fill.*'pooler/kernel'"):
        load(tmp_path, slots | {"pooler/kernel": ArraySlot((1, 1))})
    with pytest.raises(CheckpointError, match=r"no variables for.*intermediate/dense/kernel"):
        load(tmp_path, {name: slot for name, slot in slots.items() if name != kernel})
    with pytest.raises(CheckpointError, match=r"dense/kernel has shape \(24, 16\).*\(16, 24\)"):
        load(tmp_path, slots | {kernel: ArraySlot((24, 16))})
    assert not any(slot.writes.any() for slot in slots.values())


@pytest.mark.parametrize("file", ["sparse_linear.pt", "colbert_linear.pt"])
def test_a_missing_head_is_refused_unless_dense_only(tmp_path: Path, file: str) -> None:
    write_rest(tmp_path)
    as_safetensors(tmp_path, random_state())
    (tmp_path / file).unlink()
    with pytest.raises(CheckpointError, match=rf"{file} missing.*random heads.*TRIVEC_DENSE_ONLY") as caught:
        loaded(tmp_path)
    assert "--dense-only" in str(caught.value)
    with pytest.raises(CheckpointError, match="random heads"):
        read_layout(tmp_path)
    result, _ = loaded(tmp_path, dense_only=True)
    assert result.layout.colbert_dim is None and read_layout(tmp_path, dense_only=True).colbert_dim is None


@pytest.mark.parametrize(
    ("file", "state", "message"),
    [
        ("colbert_linear.pt", {"bias": torch.ones(5)}, "colbert_linear.pt: tensor 'weight' is not there"),
        (
            "colbert_linear.pt",
            {"weight": torch.ones(5, 15), "bias": torch.ones(5)},
            r"weight' has shape \(5, 15\)",
        ),
        (
            "colbert_linear.pt",
            {"weight": torch.ones(5, 16), "bias": torch.ones(6)},
            r"'bias' has shape \(6,\)",
        ),
        (
            "sparse_linear.pt",
            {"weight": torch.ones(2, 16), "bias": torch.ones(2)},
            r"'weight' has shape \(2, 16\)",
        ),
        (
            "sparse_linear.pt",
            {"weight": torch.ones(1, 16)},
            "sparse_linear.pt: 1 tensors are missing.*'bias'",
        ),
        (
            "sparse_linear.pt",
            {"weight": torch.ones(1, 16), "bias": torch.ones(1), "x": torch.ones(1)},
            "use: 'x'",
        ),
        (
            "sparse_linear.pt",
            {"weight": torch.full((1, 16), np.nan), "bias": torch.ones(1)},
            "'weight' has 16 NaN",
        ),
    ],
)
def test_a_head_that_does_not_fit(tmp_path: Path, file: str, state: State, message: str) -> None:
    write_rest(tmp_path)
    as_safetensors(tmp_path, random_state())
    torch.save(state, tmp_path / file)
    with pytest.raises(CheckpointError, match=message):
        loaded(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named_before_a_model_is_built(tmp_path: Path, file: str) -> None:
    write_rest(tmp_path)
    as_safetensors(tmp_path, random_state())
    (tmp_path / file).unlink()
    with pytest.raises(CheckpointError, match=re.escape(file)):
        read_layout(tmp_path)


def test_a_config_of_another_architecture(tmp_path: Path) -> None:
    shutil.copytree(MINI, tmp_path / "mini")
    (tmp_path / "mini" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match=r"config\.json.*model_type"):
        read_layout(tmp_path / "mini")


# --- memory --------------------------------------------------------------------------------------

MEASURE = """
import json, sys
from pathlib import Path
import numpy as np
from weights.loader import load, read_layout
from weights.mapping import encoder_entries

class Slot:
    def __init__(self, shape):
        self.shape = shape
        self.values = np.empty(shape, np.float32)
    def write(self, start, rows):
        self.values[start : start + len(rows)] = rows

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

folder = Path(sys.argv[1])
config = read_layout(folder, dense_only=True).config
slots = {entry.variable: Slot(entry.variable_shape) for entry in encoder_entries(config)}
before = memory("VmRSS")
result = load(folder, slots, dense_only=True)
print(json.dumps([4 * result.parameters, memory("VmHWM") - before]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's memory counters")
@pytest.mark.parametrize("write", [as_safetensors, as_torch])
def test_peak_memory_is_little_more_than_the_weights(
    tmp_path: Path, write: Callable[[Path, State], None]
) -> None:
    config = dataclasses.replace(CONFIG, vocab_size=60_000, hidden_size=768, intermediate_size=3072)
    write_rest(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    write(tmp_path, {entry.tensor: torch.ones(entry.shape) for entry in encoder_entries(config)})
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    weights, peak = json.loads(done.stdout)
    assert weights > 200e6
    assert weights * 0.95 < peak < weights * 1.3, f"{peak / weights:.2f} times the weights"


def test_a_config_of_invented_sizes_is_refused_before_a_model_is_built(mini: Path, tmp_path: Path) -> None:
    folder = tmp_path / "huge"
    shutil.copytree(mini, folder)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**fields, "hidden_size": 2**20, "intermediate_size": 2**30})
    )
    with pytest.raises(CheckpointError, match=r"not of one model|is expected"):
        read_layout(folder)


@pytest.mark.parametrize("dense_only", [False, True])
def test_the_fingerprint_can_be_read_without_loading(dense_only: bool) -> None:
    layout = read_layout(MINI, dense_only=dense_only)
    whole = load(MINI, slots_of(layout.config, layout.colbert_dim), dense_only=dense_only).fingerprint
    assert read_fingerprint(MINI, dense_only=dense_only) == whole
