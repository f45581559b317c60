"""The ten thousand texts with the bundled checkpoint: true tokens, finite vectors, alone as in a batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from starlette.testclient import TestClient

from app.loading import load_text_model
from app.settings import Settings
from app.wire import SAFETENSORS
from tests.hostile.texts import Hostile, giants, texts
from tests.hostile.weather import DOCUMENTS, ok, weathered

pytestmark = pytest.mark.slow

COUNT, BATCH = 10_000, 100
EXACT = 1e-5
"""Of numbers around 1: a batch adds in another order."""


@pytest.fixture(scope="module")
def model() -> Any:
    return load_text_model(Settings())


@pytest.fixture(scope="module")
def storm() -> list[Hostile]:
    return texts(20_261_123, COUNT)


@pytest.fixture
def client(tmp_path: Path, model: Any) -> Iterator[TestClient]:
    with weathered(tmp_path, model) as client:
        yield client


def _embedded(client: TestClient, batch: list[str]) -> dict[str, np.ndarray]:
    answer = client.post("/embed", json={"texts": batch}, headers={"Accept": SAFETENSORS})
    assert answer.status_code == 200, answer.text[:500]
    return safetensors.numpy.load(answer.content)


def _one(tensors: dict[str, np.ndarray], place: int) -> dict[str, np.ndarray]:
    found = {"dense": tensors["dense"][place]}
    for name, parts in (("sparse", ("indices", "values")), ("colbert", ("values",))):
        start, end = tensors[f"{name}.offsets"][place : place + 2]
        found.update({f"{name}.{part}": tensors[f"{name}.{part}"][start:end] for part in parts})
    return found


def test_tokens_and_vectors(client: TestClient, mini: Path, storm: list[Hostile]) -> None:
    reference = tokenizers.Tokenizer.from_file(str(mini / "tokenizer.json"))
    reference.no_truncation()
    most = client.get("/info").json()["limits"]["passage_max_length"]
    for start in range(0, COUNT, BATCH):
        batch = [one.text for one in storm[start : start + BATCH]]
        counts = []
        found = ok(client.post("/tokenize", json={"texts": batch}))["results"]
        for text, one in zip(batch, found, strict=True):
            true = reference.encode(text)
            expected = true.ids if text.strip() else [true.ids[0], true.ids[-1]]
            counts.append(min(len(expected), most))
            assert one["count"] == len(expected), text
            assert one["ids"][:-1] == expected[: counts[-1] - 1] and one["ids"][-1] == expected[-1], text
            assert all(0 <= begin <= end <= len(text) for begin, end in one["offsets"]), text
        tensors = _embedded(client, batch)
        assert tensors["tokens"].tolist() == counts
        assert (np.diff(tensors["colbert.offsets"]) == tensors["tokens"] - 1).all()
        for name in ("dense", "colbert.values"):
            assert np.linalg.norm(tensors[name], axis=-1) == pytest.approx(1, abs=EXACT)
        assert np.isfinite(tensors["sparse.values"]).all() and (tensors["sparse.values"] > 0).all()
        place = start // BATCH % BATCH
        alone, together = _one(_embedded(client, [batch[place]]), 0), _one(tensors, place)
        for name, numbers in alone.items():
            np.testing.assert_allclose(together[name], numbers, rtol=0, atol=EXACT, err_msg=batch[place])


def test_searches_explain_themselves(client: TestClient, storm: list[Hostile]) -> None:
    client.put("/collections/default", json={"bm25": True})
    known = [one.text for one in storm[::20]]
    documents = [{"id": str(place), "text": text} for place, text in enumerate(known)]
    assert ok(client.post(DOCUMENTS, json=documents))["failed"] == 0
    for start in range(0, len(known), 50):
        queries = known[start : start + 50]
        results = ok(client.post("/search", json={"query": queries, "top_k": 3, "explain": True}))["results"]
        for query, found in zip(queries, results, strict=True):
            for hit in found["hits"]:
                assert hit["text"] == known[int(hit["id"])]
                _explained(query, hit)


def _explained(query: str, hit: dict[str, Any]) -> None:
    for one in hit["explanation"]["alignment"]:
        for text, place in ((query, one["query_offset"]), (hit["text"], one["document_offset"])):
            assert place is not None and 0 <= place[0] <= place[1] <= len(text)
        assert -1 - EXACT <= one["similarity"] <= 1 + 1e-3
    products = sum(one["product"] for one in hit["explanation"]["matched_tokens"])
    assert products == pytest.approx(hit["scores"]["sparse"], rel=1e-4, abs=EXACT)


MORE = [
    Hostile("10 MB of one mark", "e" + "\u0301" * 5_000_000),
    Hostile("10 MB of one family", "👩\u200d" * 1_400_000),
]
"""Too many words for the fake model."""


@pytest.mark.parametrize("giant", [*giants(), *MORE], ids=lambda giant: giant.family)
def test_ten_megabytes(client: TestClient, giant: Hostile) -> None:
    tensors = _embedded(client, ["a", giant.text])
    assert np.isfinite(tensors["dense"]).all() and np.isfinite(tensors["colbert.values"]).all()
    stored = ok(client.post(DOCUMENTS, json=[{"id": "1", "text": giant.text}]))["results"][0]
    assert stored["tokens"] == tensors["tokens"][1]
    (hit,) = ok(client.post("/search", json={"query": giant.text, "explain": True}))["hits"]
    assert hit["text"] == giant.text
    _explained(giant.text, hit)
