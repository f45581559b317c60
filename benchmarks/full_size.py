"""Parity at full size: a random 24-layer, 1024-wide, 250002-word checkpoint, ours against torch.

    python -m benchmarks.full_size [--folder DIR] [--seed N] [--texts 72] [--no-result]

Each side runs in a process of its own, one after the other: first Trivec loads the torch zip file
(time and peak memory are measured there), then transformers' XLMRobertaModel with the heads written
from their definitions. The texts are multilingual where the test data is at hand (TRIVEC_TEST_DATA),
random token ids otherwise; one has 8192 tokens. Needs 8 GB of memory and 6 GB of disk, for minutes.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import resource
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.checkpoints import make_full_size
from benchmarks.machine import write_result

LANGUAGES = ("en", "zh", "ar", "es", "ru", "th", "tr")
LONGEST = 8192


def collect_batch(texts: int, seed: int) -> tuple[list[np.ndarray], str]:
    """Token ids of 1 to 512 tokens and one text of 8192; and a word on where they come from."""
    data = Path(os.environ.get("TRIVEC_TEST_DATA", "../shared"))
    generator = np.random.default_rng(seed)
    lengths = [1, 2, 3, 512, *generator.integers(4, 513, texts - 4).tolist(), LONGEST]
    if not (data / "tokenizer" / "tokenizer.json.xz").exists():
        return [_random_text(generator, length) for length in lengths], "random token ids"
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(
        lzma.decompress((data / "tokenizer" / "tokenizer.json.xz").read_bytes()).decode()
    )
    passages: list[list[int]] = []
    for language in LANGUAGES:
        lines = (data / "data" / "dev" / f"xquad-{language}" / "corpus.jsonl").read_text("utf-8").splitlines()
        passages.append(
            [token for line in lines for token in tokenizer.encode(json.loads(line)["text"]).ids[1:-1]]
        )
    batch = []
    for number, length in enumerate(lengths):
        source = passages[number % len(passages)]
        start = int(generator.integers(0, len(source) - length))
        batch.append(
            np.array([0, *source[start : start + length - 2], 2][:length] if length > 1 else [0], np.int32)
        )
    return batch, f"XQuAD passages in {len(LANGUAGES)} languages, bge-m3's own tokenizer"


def _random_text(generator: np.random.Generator, length: int) -> np.ndarray:
    inner = generator.integers(4, 250001, max(length - 2, 0))
    return np.array([0, *inner, 2][:length] if length > 1 else [0], np.int32)


def run_ours(folder: Path, work: Path) -> None:
    """Load and embed with Trivec; writes `ours.npz` and `ours.json`."""
    import tensorflow as tf

    from app.loading import load_engine
    from model.embedding import OUTPUTS

    batch = _read_batch(work)
    tf.constant(1.0)  # TensorFlow's own start is no part of the load
    before = _resident()
    began = time.monotonic()
    engine, loaded = load_engine(folder, unused_ids=(0, 1, 2, 3))
    load_s, peak = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began = time.monotonic()
    found = engine.forward([batch[0][:1]], OUTPUTS)
    first_s = time.monotonic() - began
    began, results = time.monotonic(), []
    short, long = batch[:-1], batch[-1:]
    for begin in range(0, len(short), 16):
        results += engine.forward(short[begin : begin + 16], OUTPUTS)
    short_s = time.monotonic() - began
    loaded_rss = _resident()
    began = time.monotonic()
    results += engine.forward(long, OUTPUTS)
    long_s = time.monotonic() - began
    assert found
    arrays: dict[str, np.ndarray] = {}
    for number, one in enumerate(results):
        assert one.dense is not None and one.sparse is not None and one.colbert is not None
        arrays |= {f"dense{number}": one.dense, f"colbert{number}": one.colbert}
        arrays |= {f"ids{number}": one.sparse.indices, f"weights{number}": one.sparse.values}
    np.savez(work / "ours.npz", **arrays)
    weights = 4 * loaded.parameters
    report = {
        "parameters": loaded.parameters,
        "weights_gib": round(weights / 2**30, 3),
        "load_s": round(load_s, 1),
        "first_forward_with_tracing_s": round(first_s, 1),
        "resident_before_load_gib": round(before / 2**30, 3),
        "peak_while_loading_gib": round(peak / 2**30, 3),
        "peak_growth_over_weights": round((peak - before) / weights, 3),
        "short_texts_tokens_per_s": round(sum(map(len, short)) / short_s, 1),
        "long_text_s": round(long_s, 1),
        "peak_extra_memory_of_long_text_gib": round(
            (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - loaded_rss) / 2**30, 3
        ),
    }
    (work / "ours.json").write_text(json.dumps(report))


def run_reference(folder: Path, work: Path) -> None:
    """The same with torch, one text at a time; writes `reference.npz`."""
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaModel

    encoder = XLMRobertaModel(XLMRobertaConfig.from_pretrained(folder), add_pooling_layer=False).eval()
    state = torch.load(folder / "pytorch_model.bin", mmap=True, weights_only=True)
    encoder.load_state_dict({name: value for name, value in state.items() if not name.startswith("pooler")})
    colbert = {name: value.float() for name, value in torch.load(folder / "colbert_linear.pt").items()}
    sparse = {name: value.float() for name, value in torch.load(folder / "sparse_linear.pt").items()}
    arrays: dict[str, np.ndarray] = {}
    for number, ids in enumerate(_read_batch(work)):
        with torch.no_grad():
            tokens = torch.from_numpy(ids.astype(np.int64))[None]
            hidden = encoder(tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state[0]
            weights = torch.relu(hidden @ sparse["weight"].T + sparse["bias"])[:, 0].tolist()
            vectors = hidden[1:] @ colbert["weight"].T + colbert["bias"]
        lexical: dict[int, float] = {}
        for token, weight in zip(ids.tolist(), weights, strict=True):
            if token not in (0, 1, 2, 3) and weight > 0:
                lexical[token] = max(weight, lexical.get(token, 0.0))
        keys = sorted(lexical)
        arrays[f"dense{number}"] = torch.nn.functional.normalize(hidden[0], dim=-1).numpy()
        arrays[f"colbert{number}"] = torch.nn.functional.normalize(vectors, dim=-1).numpy()
        arrays[f"ids{number}"] = np.array(keys, np.int32)
        arrays[f"weights{number}"] = np.array([lexical[key] for key in keys], np.float32)
    np.savez(work / "reference.npz", **arrays)


def compare(work: Path, count: int) -> dict[str, object]:
    """Smallest cosine and largest absolute difference of every head over all texts and tokens."""
    ours, reference = np.load(work / "ours.npz"), np.load(work / "reference.npz")
    cosines: dict[str, list[float]] = {"dense": [], "colbert": [], "sparse": []}
    largest = dict.fromkeys(cosines, 0.0)
    for number in range(count):
        for part in ("dense", "colbert"):
            a, b = ours[f"{part}{number}"], reference[f"{part}{number}"]
            assert a.shape == b.shape, (part, number, a.shape, b.shape)
            if a.size:
                rows_a, rows_b = np.atleast_2d(a).astype(np.float64), np.atleast_2d(b).astype(np.float64)
                norms = np.linalg.norm(rows_a, axis=1) * np.linalg.norm(rows_b, axis=1)
                cosines[part].append(float(((rows_a * rows_b).sum(axis=1) / norms).min()))
                largest[part] = max(largest[part], float(np.abs(a - b).max()))
        a_weights = dict(zip(ours[f"ids{number}"].tolist(), ours[f"weights{number}"].tolist(), strict=True))
        b_weights = dict(
            zip(reference[f"ids{number}"].tolist(), reference[f"weights{number}"].tolist(), strict=True)
        )
        keys = sorted(a_weights | b_weights)
        if keys:
            a = np.array([a_weights.get(key, 0.0) for key in keys])
            b = np.array([b_weights.get(key, 0.0) for key in keys])
            cosines["sparse"].append(float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))))
            largest["sparse"] = max(largest["sparse"], float(np.abs(a - b).max()))
    return {
        "smallest_cosine": {part: min(values) for part, values in cosines.items()},
        "largest_absolute_difference": largest,
    }


def _read_batch(work: Path) -> list[np.ndarray]:
    packed = np.load(work / "batch.npz")
    return [packed[f"arr_{number}"] for number in range(len(packed.files))]


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(folder: Path | None, seed: int, texts: int) -> dict[str, object]:
    """Make the checkpoint unless `folder` has one, run both sides, compare."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        folder = folder or work / "checkpoint"
        if not (folder / "pytorch_model.bin").exists():
            make_full_size(folder, seed=seed)
            (folder / "tokenizer.json").write_text("{}")  # part of the fingerprint; token ids are given here
        batch, source = collect_batch(texts, seed)
        np.savez(work / "batch.npz", *batch)
        for side in ("ours", "reference"):
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "benchmarks.full_size",
                    "--side",
                    side,
                    "--folder",
                    folder,
                    "--work",
                    work,
                ],
                check=True,
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            )
        return {
            "benchmark": "full-size random checkpoint (torch zip file), all heads, against torch float32",
            "seed": seed,
            "texts": len(batch),
            "tokens": int(sum(map(len, batch))),
            "longest_text": max(map(len, batch)),
            "source_of_texts": source,
            **json.loads((work / "ours.json").read_text()),
            **compare(work, len(batch)),
        }


def main() -> None:
    """Run it and write `results/full_size.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=None, help="keep or reuse the checkpoint here")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--texts", type=int, default=72)
    parser.add_argument("--no-result", action="store_true", help="do not write the result file")
    parser.add_argument("--side", choices=("ours", "reference"), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        (run_ours if options.side == "ours" else run_reference)(options.folder, options.work)
        return
    seed = secrets.randbits(32) if options.seed is None else options.seed
    result = measure(options.folder, seed, options.texts)
    print(json.dumps(result, indent=2))
    if not options.no_result:
        print(write_result("full_size", result))


if __name__ == "__main__":
    main()
