"""What is no text, in every place where one may stand, and texts of ten megabytes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.hostile.texts import Hostile, cut_utf8, giants, half_pairs
from tests.hostile.weather import DOCUMENTS, NDJSON, ok, refused, weathered
from tests.http_helpers import JSON

SEED = 20_261_123
BODIES = [
    ("/embed", b'{"texts": @}'),
    ("/embed", b'{"texts": ["a", @]}'),
    ("/embed", b'{"texts": "a", @: 1}'),
    ("/embed", b'{"texts": "a", "kind": @}'),
    ("/tokenize", b'{"texts": [@]}'),
    ("/rerank", b'{"query": @, "documents": ["a"]}'),
    ("/rerank", b'{"query": "a", "documents": ["a", @]}'),
    ("/rerank", b'{"query": "a", "documents": [{"text": @}]}'),
    ("/search", b'{"query": @}'),
    ("/search", b'{"query": ["a", @]}'),
    ("/search", b'{"query": "a", "collection": @}'),
    ("/search", b'{"query": "a", "filter": {"k": @}}'),
    ("/search", b'{"query": "a", "filter": {@: 1}}'),
    ("/search", b'{"query": "a", "filter": {"$or": [{"k": {"$in": [@]}}]}}'),
    ("/search", b'{"query": {"dense": @}}'),
    ("/collections/default/search", b'{"query": @}'),
    (DOCUMENTS, b'[{"text": @}]'),
    (DOCUMENTS, b'{"documents": [{"text": "a", "title": @}]}'),
    (DOCUMENTS, b'[{"text": "a", "id": @}]'),
    (DOCUMENTS, b'[{"text": "a", "metadata": {"k": @}}]'),
    (DOCUMENTS, b'[{"text": "a", "metadata": {@: 1}}]'),
    (DOCUMENTS, b'[{"text": "a", "metadata": {"a": [{"b": @}]}}]'),
    (f"{DOCUMENTS}/delete", b'{"ids": [@]}'),
    (f"{DOCUMENTS}/delete", b'{"filter": {"k": @}}'),
    ("/v1/embeddings", b'{"input": @}'),
    ("/v1/embeddings", b'{"input": ["a", @]}'),
    ("/v1/embeddings", b'{"input": [{"text": @}]}'),
    ("/v1/embeddings", b'{"input": "a", "user": @}'),
    ("/v1/embed", b'{"texts": [@]}'),
    ("/v2/embed", b'{"inputs": [{"content": [{"type": "text", "text": @}]}]}'),
    ("/v1/rerank", b'{"query": @, "documents": ["a"]}'),
    ("/v2/rerank", b'{"query": "a", "documents": ["a", @]}'),
    ("/tei", b'{"inputs": @}'),
    ("/tei/embed", b'{"inputs": [@, [5]]}'),
    ("/tei/embed_sparse", b'{"inputs": @}'),
    ("/tei/embed_all", b'{"inputs": [@]}'),
    ("/tei/rerank", b'{"query": "a", "texts": [@]}'),
    ("/tei/similarity", b'{"inputs": {"source_sentence": @, "sentences": ["a"]}}'),
    ("/tei/tokenize", b'{"inputs": [@]}'),
    ("/tei/v1/embeddings", b'{"input": @}'),
]
"""Bodies of every route, with @ for a string."""


def test_what_is_no_text_is_refused_wherever_it_stands(tmp_path: Path) -> None:
    with weathered(tmp_path) as client:
        paths = client.get("/openapi.json").json()["paths"]
        posts = {path.replace("{name}", "default") for path, methods in paths.items() if "post" in methods}
        assert posts - {path for path, _ in BODIES} == {"/tei/decode"}  # takes numbers alone
        halves, cut = iter(half_pairs(SEED, 12 * len(BODIES))), iter(cut_utf8(SEED, 12 * len(BODIES)))
        for path, body in BODIES:
            for _ in range(12):
                for wrong, words in ((next(halves), "half of a surrogate pair"), (next(cut), "not UTF-8")):
                    answer = client.post(path, content=body.replace(b"@", wrong), headers=JSON)
                    assert words in refused(answer), (path, wrong)
                    assert answer.status_code in (400, 422)
        counts = {one["name"]: one["count"] for one in client.get("/collections").json()["collections"]}
        assert counts.get("default", 0) == 0, "nothing was stored"


def test_lines_that_are_no_text_are_refused_alone(tmp_path: Path) -> None:
    with weathered(tmp_path) as client:
        wrong = [*half_pairs(SEED, 200), *cut_utf8(SEED, 200)]
        lines = []
        for place, one in enumerate(wrong):
            part = (b'{"text": %s}', b'{"text": "a", "metadata": {%s: 1}}', b'{"text": "a", "id": %s}')[
                place % 3
            ]
            lines += [part % one, b'{"id": "%d", "text": "good"}' % place]
        found = ok(client.post(DOCUMENTS, content=b"\n".join(lines), headers=NDJSON))
        assert (found["upserted"], found["failed"]) == (len(wrong), len(wrong))
        for place, one in enumerate(found["results"]):
            if place % 2:
                assert one["status"] == "upserted"
            else:
                assert one["error"]["code"] in ("malformed_json", "invalid_request")
                assert re.search("half of a surrogate|not UTF-8", one["error"]["message"])


@pytest.mark.parametrize("giant", giants(), ids=lambda giant: giant.family)
def test_ten_megabytes(tmp_path: Path, giant: Hostile) -> None:
    with weathered(tmp_path) as client:
        text = giant.text
        for path, body in (
            ("/tokenize", {"texts": text}),
            ("/embed", {"texts": ["a", text]}),
            ("/rerank", {"query": text, "documents": [text]}),
            ("/search", {"query": text}),
            ("/v1/embeddings", {"input": text}),
            ("/v2/rerank", {"query": "a", "documents": [text, "a"]}),
            ("/tei/embed", {"inputs": text, "truncate": True}),
            ("/tei/tokenize", {"inputs": [text]}),
        ):
            ok(client.post(path, json=body))
        stored = ok(client.post(DOCUMENTS, json=[{"id": "1", "text": text, "metadata": {"k": text}}]))
        assert stored["failed"] == 0
        found = ok(client.get(f"{DOCUMENTS}/1"))
        assert found["text"] == found["metadata"]["k"] == text
        line = json.dumps({"id": "2", "text": text, "title": "a"}).encode()
        assert ok(client.post(DOCUMENTS, content=line, headers=NDJSON))["upserted"] == 1
        for one in ({"id": text, "text": "a"}, {"text": "a", "metadata": {text: 1}}):
            assert len(refused(client.post(DOCUMENTS, json=[one]), text)) < 500
        assert client.post("/embed", json={"texts": "a", "kind": text}).status_code == 422
        assert len(client.post("/search", json={"query": "a", "filter": {text: {text: 1}}}).content) < 2000
        assert len(client.post("/search", json={"query": "a", "collection": text}).content) < 2000
