"""The library's front door on the bundled checkpoint: options, order, and the golden outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from app.golden import GOLDEN_FILE, largest_differences, read_golden
from app.loading import load_checkpoint
from model.embedder import Embedder, EncodingOptions, TextTooLongError
from model.embedding import OUTPUTS, Embedding
from model.tensorflow_engine import TensorFlowEngine
from model.tokenizer import TextError

TEXTS = ["eine kurze Frage?", "x", "a much longer passage " * 40, "日本語のテキスト", "tail "]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    engine, tokenizer, _ = load_checkpoint(Path(__file__).parent.parent / "weights" / "mini")
    return Embedder(tokenizer, engine, max_length=engine.config.max_length)


def with_options(embedder: Embedder, **options: object) -> Embedder:
    return Embedder(
        embedder.tokenizer,
        embedder.engine,
        max_length=embedder.max_length,
        options=EncodingOptions(**options),
    )


def test_golden_outputs_of_the_bundled_checkpoint(embedder: Embedder, mini: Path) -> None:
    golden = read_golden(mini / GOLDEN_FILE)
    ours = embedder.encode(golden.texts, max_length=512)
    for one, reference in zip(ours, golden.embeddings, strict=True):
        assert one.tokens == reference.tokens
        assert max(largest_differences(one, reference).values()) < 1e-5


@pytest.mark.parametrize("budget", [1, 30, 10**6])
def test_batches_change_nothing_and_keep_the_order(embedder: Embedder, budget: int) -> None:
    whole = [embedder.encode([text])[0] for text in TEXTS]
    found = with_options(embedder, max_batch_tokens=budget).encode(TEXTS, progress=False)
    for one, alone in zip(found, whole, strict=True):
        assert one.tokens == alone.tokens
        assert max(largest_differences(one, alone).values()) < 1e-5


def test_work_can_be_left_between_texts(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another pass in each pause changes nothing; memory that does not suffice is a MemoryError."""
    engine = embedder.engine
    assert isinstance(engine, TensorFlowEngine)
    ids = [one.ids for one in embedder.tokenizer.tokenize(TEXTS, 512)]
    alone = engine.forward(ids, OUTPUTS)
    monkeypatch.setattr("model.tensorflow_engine.PART_TOKENS", 20)
    pauses: list[Embedding] = []
    found = engine.forward(ids, OUTPUTS, between=lambda: pauses.append(engine.forward(ids[:1], OUTPUTS)[0]))
    assert len(pauses) >= 2
    for one, reference in zip([*found, *pauses], [*alone, *alone[:1] * len(pauses)], strict=True):
        assert max(largest_differences(one, reference).values()) < 1e-5

    def exhausted(*_: object) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    monkeypatch.setattr(engine, "_embed", exhausted)
    with pytest.raises(MemoryError):
        engine.forward(ids, OUTPUTS)


def test_lengths_truncation_and_kinds(embedder: Embedder) -> None:
    short = with_options(embedder, query_max_length=8, passage_max_length=16)
    text = TEXTS[2]
    assert short.encode([text], kind="query")[0].tokens == 8
    cut = short.encode([text], kind="passage")[0]
    assert cut.tokens == 16 and cut.truncated and not short.encode(["x"])[0].truncated
    assert short.encode([text], max_length=10)[0].tokens == 10
    with pytest.raises(TextTooLongError, match=r"text 1 has \d+ tokens, the limit is 16"):
        short.encode(["x", text], truncate=False)
    for bad in (1, 513):
        with pytest.raises(ValueError, match="max_length"):
            embedder.encode(["x"], max_length=bad)
    (uncut,) = embedder.tokenize([text * 50], None)
    assert len(uncut.ids) == uncut.total > 513


def test_outputs_and_normalisation(embedder: Embedder) -> None:
    only = embedder.encode(["a b"], outputs=["sparse"])[0]
    assert only.outputs == {"sparse"} and only.dense is None and only.colbert is None
    raw, unit = embedder.encode(["a b"], normalize=False)[0], embedder.encode(["a b"])[0]
    assert raw.dense is not None and unit.dense is not None
    assert abs(np.linalg.norm(unit.dense) - 1) < 1e-6 < abs(np.linalg.norm(raw.dense) - 1)
    np.testing.assert_allclose(raw.dense / np.linalg.norm(raw.dense), unit.dense, atol=1e-6)
    with pytest.raises(ValueError, match="unknown outputs"):
        embedder.encode(["a"], outputs=["splade"])  # type: ignore[list-item]


def test_query_instruction_goes_before_queries_alone(embedder: Embedder) -> None:
    told = with_options(embedder, query_instruction="query: ")
    expected = embedder.encode(["query: a b"])[0]
    assert max(largest_differences(told.encode(["a b"], kind="query")[0], expected).values()) < 1e-6
    plain = embedder.encode(["a b"])[0]
    assert max(largest_differences(told.encode(["a b"])[0], plain).values()) < 1e-6


def test_white_space_is_as_in_the_reference_unless_told(embedder: Embedder) -> None:
    assert embedder.encode([" "])[0].tokens == 3
    assert with_options(embedder, blank_as_empty=True).encode([" \n\t"])[0].tokens == 2


def test_bad_texts(embedder: Embedder) -> None:
    with pytest.raises(ValueError, match="text 1 is empty"):
        embedder.encode(["a", ""])
    with pytest.raises(TextError, match="text 0"):
        embedder.encode(["\udfff"])
    assert embedder.encode([]) == []


def test_progress_bar_can_be_turned_on_and_off(
    embedder: Embedder, capsys: pytest.CaptureFixture[str]
) -> None:
    small = with_options(embedder, max_batch_tokens=4)
    small.encode(["a", "b", "c"], progress=False)
    assert "embedding" not in capsys.readouterr().err
    small.encode(["a", "b", "c"], progress=True)
    assert "3/3" in capsys.readouterr().err


def test_dense_only_needs_no_heads_and_says_so(mini: Path) -> None:
    engine, tokenizer, _ = load_checkpoint(mini, dense_only=True)
    one = Embedder(tokenizer, engine, max_length=512).encode(["a b"])[0]
    assert one.outputs == {"dense"}
    with pytest.raises(ValueError, match="no colbert head"):
        engine.forward([np.array([0, 5, 2], np.int32)], ["colbert"])


def test_bfloat16_is_close(mini: Path, embedder: Embedder) -> None:
    engine, tokenizer, _ = load_checkpoint(mini, precision="bfloat16")
    half = Embedder(tokenizer, engine, max_length=512)
    for one, exact in zip(half.encode(TEXTS), embedder.encode(TEXTS), strict=True):
        assert one.dense is not None and exact.dense is not None
        assert one.dense.dtype == np.float32 and one.dense @ exact.dense > 0.995
