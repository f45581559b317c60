"""The main job on a real server: documents in over HTTP, searched in every mode, the same after SIGKILL."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import httpx
import numpy as np
import safetensors.numpy

from model.embedding import LexicalWeights
from model.scoring import FusionWeights, colbert_score, dense_score, hybrid_score, lexical_score
from tests.server import running_server

TOPICS = {
    "en": ["The river floods every spring.", "A violin has four strings.", "Bread rises because of yeast."],
    "de": ["Der Fluss tritt jedes Frühjahr über die Ufer.", "Eine Geige hat vier Saiten."],
    "es": ["El río se desborda cada primavera.", "El pan sube gracias a la levadura."],
    "ru": ["Река разливается каждую весну.", "У скрипки четыре струны."],
    "zh": ["这条河每年春天都会泛滥。", "小提琴有四根弦。"],
    "ar": ["يفيض النهر كل ربيع.", "للكمان أربعة أوتار."],
    "tr": ["Nehir her bahar taşar.", "Kemanın dört teli vardır."],
    "th": ["แม่น้ำท่วมทุกฤดูใบไม้ผลิ"],
}
QUERIES = [
    "Which instrument has four strings?",
    "Wann tritt der Fluss über die Ufer?",
    "小提琴有几根弦",
    "levadura",
]
MODES = ("hybrid", "dense", "sparse", "colbert")


def documents() -> list[dict[str, object]]:
    return [
        {"id": f"{lang}/{n}", "text": text, "metadata": {"lang": lang, "n": n}}
        for lang, texts in TOPICS.items()
        for n, text in enumerate(texts)
    ]


def answers(client: httpx.Client) -> list[object]:
    return [
        client.post(
            "/search", json={"query": QUERIES, "mode": mode, "fusion": fusion, "explain": True}
        ).json()["results"]
        for mode in MODES
        for fusion in ("weighted", "rrf")
    ]


def embed(client: httpx.Client, texts: list[str], kind: str) -> dict[str, np.ndarray]:
    reply = client.post(
        "/embed", json={"texts": texts, "kind": kind}, headers={"Accept": "application/vnd.safetensors"}
    )
    assert reply.status_code == 200, reply.text
    return safetensors.numpy.load(reply.content)


def test_search_is_exact_complete_and_survives_a_kill(tmp_path: Path) -> None:
    with running_server(tmp_path / "data") as (client, process):
        body = "\n".join(json.dumps(one) for one in documents())
        reply = client.post(
            "/collections/default/documents", content=body, headers={"Content-Type": "application/x-ndjson"}
        )
        assert reply.json()["upserted"] == len(documents())
        _scores_are_those_of_the_vectors(client)
        before = answers(client)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with running_server(tmp_path / "data") as (client, process):
        assert answers(client) == before
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def _scores_are_those_of_the_vectors(client: httpx.Client) -> None:
    """Every hit's scores from the vectors that /embed gives, by the equations themselves."""
    texts = [str(one["text"]) for one in documents()]
    passages, queries = embed(client, texts, "passage"), embed(client, QUERIES, "query")
    hits = client.post("/search", json={"query": QUERIES, "top_k": 50}).json()["results"]
    place = {str(one["id"]): n for n, one in enumerate(documents())}
    for q, found in enumerate(hits):
        assert {hit["id"] for hit in found["hits"]} == place.keys()
        for hit in found["hits"]:
            d = place[hit["id"]]
            dense = dense_score(queries["dense"][q], passages["dense"][d])
            sparse = lexical_score(_lexical(queries, q), _lexical(passages, d))
            colbert = colbert_score(_colbert(queries, q), _colbert(passages, d))
            assert abs(hit["scores"]["dense"] - dense) < 1e-5
            assert abs(hit["scores"]["sparse"] - sparse) < 1e-5
            assert abs(hit["scores"]["colbert"] - colbert) < 1e-3  # stored as float16
            assert abs(hit["score"] - hybrid_score(FusionWeights(), dense, sparse, colbert)) < 1e-3
        scores = [hit["score"] for hit in found["hits"]]
        assert scores == sorted(scores, reverse=True)


def _lexical(tensors: dict[str, np.ndarray], n: int) -> LexicalWeights:
    begin, end = tensors["sparse.offsets"][n : n + 2]
    return LexicalWeights(tensors["sparse.indices"][begin:end], tensors["sparse.values"][begin:end])


def _colbert(tensors: dict[str, np.ndarray], n: int) -> np.ndarray:
    begin, end = tensors["colbert.offsets"][n : n + 2]
    return tensors["colbert.values"][begin:end]
