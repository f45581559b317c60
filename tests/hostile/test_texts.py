"""Ten thousand hostile texts through every route: served or refused by name, and the server is as before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.fakes import CARD, split, token_id
from tests.hostile.texts import FAMILIES, Hostile, texts
from tests.hostile.weather import DOCUMENTS, NDJSON, check_well, ok, refused, weathered, written
from tests.http_helpers import JSON
from tests.server import FAKE, running_server

SEED, COUNT, BATCH = 20_261_123, 10_000, 50


@pytest.fixture(scope="module")
def storm() -> list[Hostile]:
    found = texts(SEED, COUNT)
    assert len({one.text for one in found}) == COUNT
    assert {one.family for one in found} == set(FAMILIES)
    return found


def _batches(storm: Sequence[Hostile], every: int = 1) -> Iterator[tuple[int, list[str]]]:
    """(number, texts); with `every` only so much of all, of all families alike."""
    chosen = [one.text for one in storm[::every]]
    for number, start in enumerate(range(0, len(chosen), BATCH)):
        yield number, chosen[start : start + BATCH]


def _tokens(text: str) -> int:
    return min(len(split(text)) + 2, CARD.max_length)


def test_what_gives_vectors(tmp_path: Path, storm: list[Hostile]) -> None:
    with weathered(tmp_path) as client:
        for number, batch in _batches(storm):
            outputs = ["dense", "sparse", "colbert"] if number % 4 == 0 else ["dense", "sparse"]
            body = {"texts": batch, "outputs": outputs}
            results = ok(client.post("/embed", content=written(body, number), headers=JSON))["results"]
            assert [one["tokens"] for one in results] == [_tokens(text) for text in batch]
            for one in results:
                assert np.isfinite(one["dense"]).all() and np.isfinite(one["sparse"]["values"]).all()
                rows = one.get("colbert", [[0.0]] * (one["tokens"] - 1))
                assert np.isfinite(rows).all() and len(rows) == one["tokens"] - 1
            imitated = (_openai, _cohere, _tei, _tei_sparse)[number % 4]
            imitated(client, batch, number)


def _openai(client: TestClient, batch: list[str], number: int) -> None:
    path = ("/v1/embeddings", "/tei/v1/embeddings")[number // 4 % 2]
    given: list[Any] = [{"text": one} for one in batch] if number // 8 % 2 else list(batch)
    body = {"input": given, "user": batch[0], "model": batch[0], "task": batch[-1], "truncate": True}
    found = ok(client.post(path, content=written(body, number), headers=JSON))
    assert np.isfinite([one["embedding"] for one in found["data"]]).all() and len(found["data"]) == len(batch)
    assert found["usage"]["prompt_tokens"] == sum(map(_tokens, batch))


def _cohere(client: TestClient, batch: list[str], number: int) -> None:
    path = ("/v1/embed", "/v2/embed")[number // 4 % 2]
    inputs = [{"content": [{"type": "text", "text": one}]} for one in batch]
    given = {"inputs": inputs} if number // 8 % 2 else {"texts": batch}
    body = {**given, "input_type": batch[0], "embedding_types": ["float", "ubinary"]}
    found = ok(client.post(path, content=written(body, number), headers=JSON))
    assert np.isfinite(found["embeddings"]["float"]).all() and found["texts"] == batch


def _tei(client: TestClient, batch: list[str], number: int) -> None:
    body = written({"inputs": batch, "truncate": True}, number)
    dense = ok(client.post("/tei/embed", content=body, headers=JSON))
    rows = ok(client.post("/tei/embed_all", content=body, headers=JSON))
    assert np.isfinite(dense).all() and [len(one) + 1 for one in rows] == [_tokens(text) for text in batch]
    others = {"inputs": {"source_sentence": batch[0], "sentences": batch}, "parameters": {"truncate": True}}
    scores = ok(client.post("/tei/similarity", content=written(others, number), headers=JSON))
    assert scores[0] == pytest.approx(1, abs=1e-5) and np.isfinite(scores).all()


def _tei_sparse(client: TestClient, batch: list[str], number: int) -> None:
    body = written({"inputs": batch, "truncate": True}, number)
    rows = ok(client.post("/tei/embed_sparse", content=body, headers=JSON))
    assert len(rows) == len(batch) and all(pair["value"] > 0 for row in rows for pair in row)


def test_tokens_and_their_places(tmp_path: Path, storm: list[Hostile]) -> None:
    with weathered(tmp_path) as client:
        for number, batch in _batches(storm):
            found = ok(client.post("/tokenize", content=written({"texts": batch}, number), headers=JSON))
            for text, one in zip(batch, found["results"], strict=True):
                assert one["count"] == len(split(text)) + 2 and len(one["ids"]) == _tokens(text)
                places = zip(one["ids"][1:-1], one["offsets"][1:-1], strict=True)
                assert all(token_id(text[start:end].lower()) == token for token, (start, end) in places)
            body = written({"inputs": batch}, number)
            pieces = ok(client.post("/tei/tokenize", content=body, headers=JSON))
            for text, tokens in zip(batch, pieces, strict=True):
                assert [one["text"] for one in tokens[1:-1]] == [word for word, _ in split(text)]
            if number % 10 == 0:
                ids = [[token["id"] for token in tokens] for tokens in pieces]
                decoded = ok(client.post("/tei/decode", json={"ids": ids}))
                assert len(decoded) == len(batch)


def test_what_gives_scores(tmp_path: Path, storm: list[Hostile]) -> None:
    with weathered(tmp_path) as client:
        for number, batch in _batches(storm):
            query = batch[number % len(batch)]
            body = {"query": query, "documents": batch, "return_documents": True, "max_chunks_per_doc": query}
            if number % 4 == 0:
                del body["max_chunks_per_doc"]
                found = ok(client.post("/rerank", content=written(body, number), headers=JSON))["results"]
                given = [(one["index"], one["score"], one["text"]) for one in found]
            elif number % 4 == 3:
                body = {"query": query, "texts": batch, "return_text": True, "truncate": True}
                found = ok(client.post("/tei/rerank", content=written(body, number), headers=JSON))
                given = [(one["index"], one["score"], one["text"]) for one in found]
            else:
                path = f"/v{number % 4}/rerank"
                found = ok(client.post(path, content=written(body, number), headers=JSON))["results"]
                given = [(one["index"], one["relevance_score"], one["document"]["text"]) for one in found]
            assert {text for _, _, text in given} == set(batch)
            assert all(text == batch[index] for index, _, text in given)
            scores = [score for _, score, _ in given]
            assert np.isfinite(scores).all() and scores == sorted(scores, reverse=True)


def test_documents_come_back_as_they_were_sent(tmp_path: Path, storm: list[Hostile]) -> None:
    """As text, title, metadata key and value; in JSON and in NDJSON."""
    with weathered(tmp_path) as client:
        sent: dict[str, dict[str, Any]] = {}
        for number, batch in _batches(storm):
            documents = []
            for place, text in enumerate(batch):
                key, title = batch[place - 7], batch[place - 3]
                one = {"id": f"{number}-{place}", "text": text, "metadata": {"k": text, "o": {key: [text]}}}
                documents.append({**one, "title": title} if place % 5 == 0 else one)
            lines = b"\n".join(written(one, number) for one in documents)
            if number % 3:
                answer = client.post(DOCUMENTS, content=written(documents, number), headers=JSON)
            else:
                answer = client.post(DOCUMENTS, content=lines, headers=NDJSON)
            assert ok(answer)["failed"] == 0
            sent.update((str(one["id"]), one) for one in documents)
        collection = client.app.state.service.database.get("default")
        assert collection.stats().count == COUNT
        for name, one in sent.items():
            stored = collection.get(name)
            assert (stored.text, dict(stored.metadata)) == (_stored_text(one), one["metadata"])
        for name in list(sent)[::50]:
            found = ok(client.get(f"{DOCUMENTS}/{name}"))
            assert found["metadata"] == sent[name]["metadata"]
            assert found["text"] == _stored_text(sent[name])
        _filtered(client, list(sent.values())[::25])


def _stored_text(sent: dict[str, Any]) -> str:
    """A title goes before the text; where one of the two is white space alone, only the other stays."""
    title, text = sent.get("title", ""), sent["text"]
    if not title.strip():
        return str(text)
    return f"{title}. {text}" if text.strip() else str(title)


def _filtered(client: TestClient, documents: list[dict[str, Any]]) -> None:
    """Each is found by its metadata, as the value and as the key of a filter, and can be deleted so."""
    for number, one in enumerate(documents):
        text, (key,) = one["text"], one["metadata"]["o"]
        for condition in ({"k": text}, {"k": {"$in": [text]}}, {f"o.{key}": text}):
            body = written({"query": "cat", "filter": condition, "exact": True}, number)
            hits = ok(client.post("/search", content=body, headers=JSON))["hits"]
            assert [hit["id"] for hit in hits] == [one["id"]]
        body = written({"query": "cat", "filter": {key: text}}, number)
        answer = client.post("/search", content=body, headers=JSON)
        if key.startswith("$"):
            refused(answer)
        else:
            assert ok(answer)["hits"] == []
        if number % 4 == 0:
            body = written({"filter": {"k": text}}, number)
            assert ok(client.post(f"{DOCUMENTS}/delete", content=body, headers=JSON)) == {"deleted": 1}


def test_ids_of_every_kind(tmp_path: Path, storm: list[Hostile]) -> None:
    """Those of at most 512 bytes are stored, read, found and deleted; each of the others has its error."""
    # A real server: the test client decodes a path twice.
    with running_server(tmp_path, FAKE) as (client, _):
        fitting = [one.text for one in storm if len(one.text.encode()) <= 512]
        assert len(fitting) < COUNT
        for number, batch in _batches(storm):
            body = written([{"id": text, "text": f"plain {number}"} for text in batch], number)
            results = ok(client.post(DOCUMENTS, content=body, headers=JSON))["results"]
            for text, one in zip(batch, results, strict=True):
                if len(text.encode()) <= 512:
                    assert (one["id"], one["status"]) == (text, "upserted")
                else:
                    assert one["error"]["param"] == "id" and text not in one["error"]["message"]
        assert ok(client.get("/collections/default"))["count"] == len(fitting)
        for number, text in enumerate(fitting[::20]):
            path = f"{DOCUMENTS}/{quote(text, safe='')}"
            assert ok(client.get(path))["id"] == text
            if number % 2:
                assert ok(client.delete(path)) == {"deleted": 1}
            else:
                body = written({"ids": [text]}, number)
                assert ok(client.post(f"{DOCUMENTS}/delete", content=body, headers=JSON)) == {"deleted": 1}
            refused(client.get(path), text)
        assert ok(client.get("/collections/default"))["count"] == len(fitting) - len(fitting[::20])
        check_well(client)


def test_queries_and_their_explanations(tmp_path: Path, storm: list[Hostile]) -> None:
    with weathered(tmp_path) as client:
        client.put("/collections/words", json={"bm25": True, "colbert": "2bit"})
        known = [one.text for one in storm[::40]]
        for name in ("default", "words"):
            body = [{"id": str(place), "text": text} for place, text in enumerate(known)]
            assert ok(client.post(f"/collections/{name}/documents", json=body))["failed"] == 0
        modes = ("hybrid", "dense", "sparse", "colbert")
        for number, batch in _batches(storm, every=5):
            words = number % 2 == 1
            mode = "bm25" if words and number % 5 == 0 else modes[number % 4]
            body = {"query": batch, "mode": mode, "top_k": 3, "explain": number % 3 == 0}
            path = "/collections/words/search" if words else "/search"
            results = ok(client.post(path, content=written(body, number), headers=JSON))["results"]
            assert len(results) == len(batch)
            for query, found in zip(batch, results, strict=True):
                for hit in found["hits"]:
                    assert hit["text"] == known[int(hit["id"])]
                    _explained(query, hit)


def _explained(query: str, hit: dict[str, Any]) -> None:
    """Offsets are of characters of their texts."""
    for one in hit.get("explanation", {}).get("alignment", ()):
        for text, place in ((query, one["query_offset"]), (hit["text"], one["document_offset"])):
            assert place is None or 0 <= place[0] <= place[1] <= len(text)
        if one["query_offset"] is not None and one["query_token"] not in ("<s>", "</s>"):
            start, end = one["query_offset"]
            assert token_id(query[start:end].lower()) == token_id(one["query_token"])
        # The fake's vectors are of words: where two are the same, so are the words.
        assert one["similarity"] < 0.999 or one["query_token"] == one["document_token"]
