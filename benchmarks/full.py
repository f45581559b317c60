"""The random full-size checkpoint that benchmarks share, made on first use, and its tokenizer."""

from __future__ import annotations

import lzma
import shutil
import sys
from pathlib import Path

import tokenizers

from benchmarks.encode_sides.workloads import Lengths

FULL = Path("/var/tmp/trivec/full")


def make_checkpoint(folder: Path, data: Path, seed: int) -> None:
    """A random checkpoint of BGE-M3's sizes with the real tokenizer; needs torch."""
    from benchmarks.checkpoints import make_full_size

    print(f"making a random full-size checkpoint in {folder}", file=sys.stderr)
    source = data / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_bytes(lzma.decompress((source / "tokenizer.json.xz").read_bytes()))
    for name in ("tokenizer_config.json", "special_tokens_map.json", "sentencepiece.bpe.model"):
        shutil.copyfile(source / name, folder / name)
    make_full_size(folder, seed=seed)


def token_counter(folder: Path) -> Lengths:
    """Counts true tokens with the checkpoint's own tokenizer."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda texts: [len(one.ids) for one in tokenizer.encode_batch(list(texts))]
