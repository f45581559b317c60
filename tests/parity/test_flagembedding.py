"""Against FlagEmbedding itself, from text to all three outputs, on the same folder.

Needs the reference implementation in an environment of its own: `make test-peers`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from app.loading import load_checkpoint
from model.embedder import Embedder, EncodingOptions
from tests.parity.compare import cosine
from tests.reference import make_checkpoint

ROOT = Path(__file__).parent.parent.parent
PEERS = Path(os.environ.get("TRIVEC_PEERS_PYTHON", str(ROOT / ".venv-peers" / "bin" / "python")))

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not PEERS.exists(), reason="FlagEmbedding is not installed: run `make peers`"),
]

TEXTS = [
    "What is BGE M3?",
    "Defination of BM25",
    "BGE M3 is an embedding model supporting dense retrieval, lexical matching and multi-vector interaction.",
    "三种向量,一次前向计算。检索、排序与解释。",
    "نموذج واحد للبحث الكثيف والمعجمي.",
    "Один проход — три представления, и каждое объяснимо.",
    "Tek geçişte üç temsil: yoğun, sözcüksel, çoklu vektör.",
    "ประโยคทดสอบภาษาไทยสำหรับการค้นหา",
    "a literal </s> and <mask> and <unk> inside a text",
    "x",
    "the same word the same word the same word",
    "A long text that is cut at the limit. " * 80,
]


def _compare(folder: Path, work: Path, max_length: int) -> None:
    (work / "texts.json").write_text(json.dumps(TEXTS))
    script = Path(__file__).parent / "flagembedding_side.py"
    subprocess.run(
        [PEERS, script, folder, work / "texts.json", work / "out.npz", str(max_length)], check=True
    )
    theirs = np.load(work / "out.npz")
    engine, tokenizer, _ = load_checkpoint(folder)
    embedder = Embedder(tokenizer, engine, max_length=engine.config.max_length, options=EncodingOptions())
    ours = embedder.encode(TEXTS, max_length=max_length, progress=False)
    for number, one in enumerate(ours):
        assert one.dense is not None and one.sparse is not None and one.colbert is not None
        assert cosine(one.dense[None], theirs["dense"][number][None])[0] > 0.99999
        order = np.argsort(theirs[f"ids{number}"])
        assert one.sparse.indices.tolist() == theirs[f"ids{number}"][order].tolist(), TEXTS[number]
        np.testing.assert_allclose(one.sparse.values, theirs[f"weights{number}"][order], atol=1e-4, rtol=0)
        assert one.colbert.shape == theirs[f"colbert{number}"].shape
        assert cosine(one.colbert, theirs[f"colbert{number}"]).min() > 0.99999


def test_bundled_checkpoint(mini: Path, tmp_path: Path) -> None:
    _compare(mini, tmp_path, 512)


def test_random_checkpoint_with_the_real_tokenizer(real_tokenizer: Path, seed: int, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    make_checkpoint(
        folder,
        seed=seed,
        safetensors=False,
        vocab_size=250002,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=514,
    )
    for file in real_tokenizer.iterdir():
        if file.name != "config.json":
            shutil.copy(file, folder / file.name)
    _compare(folder, tmp_path, 256)
