"""The int8 engine: close to the reference, the same alone and in a batch, without TensorFlow."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from app import cli
from app.converting import MANIFEST, PART_BLOCKS, convert, converted_checkpoint, read_converted, read_weights
from app.golden import GOLDEN_FILE, read_golden
from app.loading import load_int8, load_text_model
from app.settings import Settings
from model.embedder import Embedder
from model.embedding import OUTPUTS, Embedding
from model.litert import MODEL_FILE, LiteRTEngine, sequences
from model.mapped import release_pages
from tests.parity.compare import cosine
from tests.reference import make_checkpoint, random_batch, reference_outputs
from tests.test_words import resident_bytes
from weights.checkpoint import CheckpointError

ROOT = Path(__file__).parent.parent
MINI = ROOT / "weights" / "mini"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("converted")


@pytest.fixture(scope="module")
def engine(cache: Path) -> LiteRTEngine:
    return load_int8(MINI, cache)[0]


def test_golden_outputs_are_close(cache: Path) -> None:
    engine, tokenizer, _ = load_int8(MINI, cache)
    golden = read_golden(MINI / GOLDEN_FILE)
    ours = Embedder(tokenizer, engine, max_length=512).encode(golden.texts, max_length=512)
    for one, reference in zip(ours, golden.embeddings, strict=True):
        assert one.dense is not None and one.colbert is not None and one.sparse is not None
        assert reference.dense is not None and reference.colbert is not None and reference.sparse is not None
        assert cosine(one.dense[None], reference.dense[None])[0] > 0.999
        assert cosine(one.colbert, reference.colbert).min() > 0.999
        keys = np.union1d(one.sparse.indices, reference.sparse.indices)
        ours_at, theirs_at = np.zeros(len(keys)), np.zeros(len(keys))
        ours_at[np.searchsorted(keys, one.sparse.indices)] = one.sparse.values
        theirs_at[np.searchsorted(keys, reference.sparse.indices)] = reference.sparse.values
        assert np.abs(ours_at - theirs_at).max() < 0.03


@pytest.mark.parametrize("heads", [1, 3])
def test_random_checkpoints_are_close_in_every_case(heads: int, seed: int, tmp_path: Path) -> None:
    """Unlike lengths, literal special tokens, one token: as the float engine, at int8's distance."""
    encoder = make_checkpoint(
        tmp_path / "source",
        seed=seed,
        vocab_size=300,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=heads,
        intermediate_size=96,
        max_position_embeddings=130,
        colbert_dim=20,
    )
    batch = random_batch(np.random.default_rng(seed), [128, 1, 2, 7, 60, 61, 30], vocab_size=300)
    batch.append(np.array([0, 17, 1, 18, 2, 1, 19, 299, 3, 17, 2], np.int32))
    convert(tmp_path / "source", tmp_path / "converted", progress=False)
    converted = read_converted(tmp_path / "converted")
    weights = read_weights(converted)
    for max_scores, long_rows in ((1 << 25, 1024), (500, 1024), (500, 50)):
        engine = LiteRTEngine(
            converted.config,
            converted.folder,
            weights,
            unused_ids=(0, 1, 2, 3),
            threads=2,
            max_scores=max_scores,
            long_rows=long_rows,
        )
        for one, reference in zip(
            engine.forward(batch, OUTPUTS),
            reference_outputs(encoder, tmp_path / "source", batch),
            strict=True,
        ):
            assert one.dense is not None and one.colbert is not None
            assert cosine(one.dense[None], reference.dense[None])[0] > 0.995
            assert one.colbert.shape == reference.colbert.shape
            assert cosine(one.colbert, reference.colbert).min(initial=1.0) > 0.99


def test_a_text_is_the_same_alone_and_in_a_batch(engine: LiteRTEngine, seed: int) -> None:
    generator = np.random.default_rng(seed)
    batch = random_batch(generator, generator.integers(1, 200, 20).tolist(), vocab_size=32001)
    for together, ids in zip(engine.forward(batch, OUTPUTS), batch, strict=True):
        alone = engine.forward([ids], OUTPUTS)[0]
        assert together.dense is not None and alone.dense is not None
        assert cosine(together.dense[None], alone.dense[None])[0] > 0.9995


def test_work_can_be_left_between_parts(tmp_path: Path, seed: int) -> None:
    """Short texts, a long one, one for which each block is opened alone; another pass runs in each pause."""
    make_checkpoint(
        tmp_path / "source",
        seed=seed,
        vocab_size=900,
        hidden_size=48,
        num_hidden_layers=2 * PART_BLOCKS + 1,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=514,
        colbert_dim=20,
    )
    convert(tmp_path / "source", tmp_path / "converted", progress=False)
    converted = read_converted(tmp_path / "converted")
    engine = LiteRTEngine(
        converted.config,
        converted.folder,
        read_weights(converted),
        unused_ids=(0, 1, 2, 3),
        threads=2,
        long_rows=300,
    )
    rng = np.random.default_rng(seed)
    texts = [rng.integers(5, 900, size=size).astype(np.int32) for size in (7, 120, 30, 200, 400, 60)]
    alone = engine.forward(texts, OUTPUTS)
    query = rng.integers(5, 900, size=9).astype(np.int32)
    (expected,) = engine.forward([query], OUTPUTS)
    pauses = 0

    def between() -> None:
        nonlocal pauses
        pauses += 1
        _same(engine.forward([query], OUTPUTS)[0], expected)

    for one, reference in zip(engine.forward(texts, OUTPUTS, between=between), alone, strict=True):
        _same(one, reference)
    depth, count = engine.config.num_hidden_layers, len(sequences([len(ids) for ids in texts]))
    assert pauses == (count - 1) + 2 * (count - 1) + (
        depth - 1
    )  # sequences, their three parts, the long one's


def _same(one: Embedding, other: Embedding) -> None:
    assert one.sparse is not None and other.sparse is not None
    np.testing.assert_array_equal(one.dense, other.dense)
    np.testing.assert_array_equal(one.colbert, other.colbert)
    np.testing.assert_array_equal(one.sparse.values, other.sparse.values)


def test_sequences_hold_every_text_once_and_pad_none() -> None:
    lengths = [5, 130, 128, 60, 60, 9, 3, 500, 1]
    found = sequences(lengths)
    assert sorted(number for texts in found for number in texts) == list(range(len(lengths)))
    assert all(len(texts) == 1 or sum(lengths[n] for n in texts) <= 128 for texts in found)
    assert len(found) < len(lengths)


def test_attention_for_nothing_is_counted(engine: LiteRTEngine) -> None:
    def spent(*lengths: int) -> tuple[int, int]:
        scores = engine.attention_scores
        needed, computed = scores.needed, scores.computed
        engine.forward([np.full(length, 7, np.int32) for length in lengths], ["dense"])
        return scores.needed - needed, scores.computed - computed

    assert spent(50) == (2500, 2500)
    assert spent(130) == (16900, 16900)
    assert spent(30, 50) == (30**2 + 50**2, 80**2)  # side by side behind a mask
    assert spent(30, 120, 50) == (30**2 + 50**2 + 120**2, 80**2 + 120**2)


def test_bad_input_is_refused_as_by_the_float_engine(engine: LiteRTEngine) -> None:
    for bad, message in (([0, 32001, 2], "outside"), ([0] * 513, "513 tokens"), ([], "0 tokens")):
        with pytest.raises(ValueError, match=message):
            engine.forward([np.array(bad, np.int32)], OUTPUTS)


def test_a_conversion_is_made_once_and_found_again(cache: Path, engine: LiteRTEngine) -> None:
    first = converted_checkpoint(MINI, cache)
    before = (first.folder / MODEL_FILE).stat().st_mtime_ns
    again = converted_checkpoint(MINI, cache)
    assert again == first and (again.folder / MODEL_FILE).stat().st_mtime_ns == before
    assert [path for path in (cache / "litert").iterdir() if path.name.startswith(".")] == []


def test_a_damaged_conversion_says_what_to_do(tmp_path: Path) -> None:
    found = converted_checkpoint(MINI, tmp_path, progress=False)
    (found.folder / MANIFEST).write_text("{}")
    with pytest.raises(CheckpointError, match="delete it"):
        converted_checkpoint(MINI, tmp_path, progress=False)


def test_the_converted_files_pages_are_given_back(cache: Path, engine: LiteRTEngine) -> None:
    """A mapped file that was read counts as resident until its pages are released, and can be read after."""
    path = read_converted(next((cache / "litert").iterdir())).folder / MODEL_FILE
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        content = mapped[:]
        before = resident_bytes(path)
        release_pages(path)
        assert before >= len(content) > 4 * resident_bytes(path)
        assert mapped[:] == content


def test_serving_int8_imports_no_tensorflow(cache: Path, engine: LiteRTEngine) -> None:
    code = (
        "import sys; from pathlib import Path; from app.loading import load_int8;"
        f"engine, tokenizer, _ = load_int8(Path({str(MINI)!r}), Path({str(cache)!r}));"
        "engine.forward([tokenizer.tokenize(['a text'], 512)[0].ids], engine.outputs);"
        "sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_dense_only(tmp_path: Path) -> None:
    engine, tokenizer, _ = load_int8(MINI, tmp_path, dense_only=True)
    assert engine.outputs == ("dense",)
    assert engine.forward([tokenizer.tokenize(["a"], 8)[0].ids], ["dense"])[0].outputs == {"dense"}


def test_an_export_serves_without_its_checkpoint(cache: Path, tmp_path: Path) -> None:
    """`trivec export`: the folder can be moved, and says what it is to the float engines."""
    source, target, moved = tmp_path / "source", tmp_path / "new" / "int8", tmp_path / "moved"
    shutil.copytree(MINI, source)
    command = ["export", "--checkpoint", str(source), "--converted-dir", str(cache)]
    assert cli.main([*command, "--format", "litert", "-o", str(target)]) == 0
    shutil.rmtree(source)
    target.rename(moved)
    assert list((tmp_path / "new").iterdir()) == []
    expected = load_int8(MINI, cache)[0]
    settings = Settings(checkpoint=str(moved), engine="int8", converted_dir=tmp_path / "unused")
    model = load_text_model(settings, progress=False)
    ids = model.tokenize(["What is it worth?"], 512)[0].ids
    ours, theirs = model.forward([ids], ["dense"])[0].dense, expected.forward([ids], ["dense"])[0].dense
    assert ours is not None and theirs is not None
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert not (tmp_path / "unused").exists()
    assert cli.main(["selftest", "--checkpoint", str(moved), "--engine", "int8"]) == 0
    with pytest.raises(CheckpointError, match="TRIVEC_ENGINE=int8"):
        load_text_model(Settings(checkpoint=str(moved), engine="float32"), progress=False)
    with pytest.raises(CheckpointError, match="TRIVEC_DENSE_ONLY"):
        load_text_model(Settings(checkpoint=str(moved), engine="int8", dense_only=True), progress=False)


def test_an_export_overwrites_nothing(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("kept")
    command = ["export", "--checkpoint", "mini", "--converted-dir", str(cache), "-o", str(tmp_path / "mine")]
    assert cli.main(command) == 1
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "mine" / "file").read_text() == "kept"


def test_export_without_a_folder_fills_the_cache(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "--checkpoint", "mini", "--converted-dir", str(cache)]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder == converted_checkpoint(MINI, cache).folder
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in folder.iterdir()), "others may serve it"


def test_a_conversion_that_dies_leaves_nothing(tmp_path: Path) -> None:
    """Killed at a random moment, it is simply made again."""
    command = [sys.executable, "-m", "app.converting", str(MINI), str(tmp_path / "made"), "0", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while not any(tmp_path.glob(".converting-*/word.npy")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "made").exists()
    [left] = tmp_path.glob(".converting-*")
    convert(MINI, tmp_path / "made", progress=False)
    assert read_converted(tmp_path / "made").fingerprint
    assert left.exists(), "it may be another process at work"
    os.utime(left, (0, 0))
    convert(MINI, tmp_path / "again", progress=False)
    assert not left.exists()


def test_a_conversion_ends_with_who_wanted_it(tmp_path: Path) -> None:
    """A server that is told to end while its model is converted leaves nobody behind."""
    wanted = (
        f"from app.converting import *; converted_checkpoint(Path({str(MINI)!r}), Path({str(tmp_path)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", wanted], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not any(tmp_path.glob("litert/.converting-*/word.npy")):
        assert process.poll() is None
        time.sleep(0.01)
    (child,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    psutil.wait_procs([child])
    assert not any(tmp_path.rglob(MANIFEST))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("encoder.layer.1.output.dense.weight", np.nan, "NaN or infinite"),
        ("embeddings.word_embeddings.weight", np.inf, "NaN or infinite"),
        ("embeddings.word_embeddings.weight", 1e6, "float32 engine"),
    ],
)
def test_weights_that_cannot_be_converted_are_refused_by_name(
    place: str, value: float, message: str, seed: int, tmp_path: Path
) -> None:
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    source = tmp_path / "source"
    encoder = make_checkpoint(
        source, seed=seed, intermediate_size=32, max_position_embeddings=20, safetensors=False, **sizes
    )
    state = encoder.state_dict()
    state[place][-1, 0] = value
    torch.save(state, source / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=message):
        converted_checkpoint(source, tmp_path / "cache", progress=False)
    assert list((tmp_path / "cache" / "litert").iterdir()) == []
