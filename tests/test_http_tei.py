"""/tei: every shape that clients of text-embeddings-inference send, and what they read of the answers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from starlette.testclient import TestClient

from app.routes import tei
from app.schemas.tei import Rank, SimpleToken, SparseValue, TeiError, TeiInfo
from app.settings import Settings
from app.token_ids import text_of
from tests.clients import tei_payloads as payloads
from tests.fakes import BOS, CARD, EOS, FakeModel, token_id
from tests.http_helpers import JSON, dense_vectors, serving, serving_async

TEXTS = ["the cat sat", "a dog barked loudly", "cat"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("data"), max_texts=4) as client:
        yield client


def refused(response: Any, status: int, kind: str) -> str:
    """Check an error in this API's form and return its words."""
    assert response.status_code == status, response.text
    found = TeiError.model_validate_json(response.content)
    assert found.error_type == kind, response.text
    assert response.headers["X-Request-ID"]
    return found.error


def native(client: TestClient, **body: Any) -> list[dict[str, Any]]:
    """What /embed says of the same texts."""
    answer = client.post("/embed", json=body)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["results"]
    return found


# What clients send, each as it was seen on the wire.


@pytest.mark.parametrize("sent", payloads.EMBED.values(), ids=payloads.EMBED)
def test_what_clients_embed(client: TestClient, sent: payloads.Sent) -> None:
    body = sent["body"]
    answer = client.post(sent["path"], json=body)
    texts = [body["inputs"]] if isinstance(body["inputs"], str) else body["inputs"]
    wanted = native(client, texts=texts, normalize=body.get("normalize", True))
    assert answer.json() == [one["dense"][: body.get("dimensions")] for one in wanted]


@pytest.mark.parametrize("sent", payloads.SPARSE.values(), ids=payloads.SPARSE)
def test_what_clients_embed_as_sparse(client: TestClient, sent: payloads.Sent) -> None:
    assert_lexical(client, client.post(sent["path"], json=sent["body"]).json(), sent["body"]["inputs"])


@pytest.mark.parametrize("sent", payloads.RERANK.values(), ids=payloads.RERANK)
@pytest.mark.parametrize("path", [None, "/tei", "/tei/"])
def test_what_clients_rerank(client: TestClient, sent: payloads.Sent, path: str | None) -> None:
    query, texts = sent["body"]["query"], sent["body"]["texts"]
    wanted = client.post("/rerank", json={"query": query, "documents": texts}).json()["results"]
    answer = client.post(path or sent["path"], json=sent["body"])
    assert answer.json() == [{"index": one["index"], "score": one["score"]} for one in wanted]


@pytest.mark.parametrize("path", ["/tei", "/tei/", "/tei/similarity"])
def test_what_clients_compare(client: TestClient, path: str) -> None:
    body = payloads.HUB_SIMILARITY["body"]
    rows = dense_vectors(client, [body["inputs"]["source_sentence"], *body["inputs"]["sentences"]])
    np.testing.assert_allclose(client.post(path, json=body).json(), rows[1:] @ rows[0], atol=1e-6)


@pytest.mark.parametrize("path", ["/tei/embed", "/tei", "/tei/"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"truncate": None, "normalize": None, "prompt_name": None, "dimensions": None},
        {"truncation_direction": None, "model": "BAAI/bge-m3", "encoding_format": "base64", "nobody": {}},
    ],
)
def test_embed_is_the_dense_output(client: TestClient, path: str, options: dict[str, Any]) -> None:
    wanted = [one["dense"] for one in native(client, texts=TEXTS)]
    assert client.post(path, json={"inputs": TEXTS, **options}).json() == wanted
    assert client.post(path, json={"inputs": TEXTS[1], **options}).json() == wanted[1:2]


@pytest.mark.parametrize("inputs", [TEXTS, TEXTS[0]])
def test_embed_sparse_is_the_lexical_output(client: TestClient, inputs: Any) -> None:
    assert_lexical(client, client.post("/tei/embed_sparse", json={"inputs": inputs}).json(), inputs)


def assert_lexical(client: TestClient, found: Any, texts: Any) -> None:
    """The pairs of each text are the native route's lexical weights."""
    for got, one in zip(found, native(client, texts=texts), strict=True):
        values = [SparseValue.model_validate(pair) for pair in got]
        assert [pair.index for pair in values] == one["sparse"]["indices"]
        assert [pair.value for pair in values] == one["sparse"]["values"]


def test_lexical_weights_are_written_in_parts(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = client.post("/tei/embed_sparse", json={"inputs": [*TEXTS, " "]}).json()
    monkeypatch.setattr(tei, "_PART", 2)
    assert client.post("/tei/embed_sparse", json={"inputs": [*TEXTS, " "]}).json() == whole
    assert len(whole[1]) == 4 and whole[3] == []


def test_embed_all_is_the_colbert_output(client: TestClient) -> None:
    answer = client.post("/tei/embed_all", json={"inputs": TEXTS, "truncate": True})
    assert answer.json() == [one["colbert"] for one in native(client, texts=TEXTS)]
    assert [len(one) for one in answer.json()] == [4, 5, 2]  # a row for each token but <s>


def test_rerank_can_return_the_texts(client: TestClient) -> None:
    answer = client.post("/tei/rerank", json={"query": "cat", "texts": TEXTS, "return_text": True})
    ranks = [Rank.model_validate(one) for one in answer.json()]
    assert [one.text for one in ranks] == [TEXTS[one.index] for one in ranks]


def test_rerank_takes_an_empty_text(client: TestClient) -> None:
    """A pair is empty there only if both are, and retrievers do hand over documents without a text."""
    answer = client.post("/tei/rerank", json={"query": "cat", "texts": ["", "cat"]})
    assert [one["index"] for one in answer.json()] == [1, 0]


@pytest.mark.parametrize("parameters", [None, {}, {"truncate": True, "truncation_direction": "Left"}])
def test_similarity_takes_parameters(client: TestClient, parameters: Any) -> None:
    inputs = {"source_sentence": TEXTS[0], "sentences": TEXTS}
    plain = client.post("/tei/similarity", json={"inputs": inputs}).json()
    assert client.post("/tei/similarity", json={"inputs": inputs, "parameters": parameters}).json() == plain
    assert plain[0] == pytest.approx(1, abs=1e-6) and len(plain) == 3


def test_tokenize_gives_each_tokens_place(client: TestClient) -> None:
    (first, second) = client.post("/tei/tokenize", json={"inputs": ["the cat  sat", "cat"]}).json()
    tokens = [SimpleToken.model_validate(one) for one in first]
    assert [one.text for one in tokens] == ["<s>", "the", "cat", "sat", "</s>"]
    assert [one.id for one in tokens] == [BOS, *map(token_id, ("the", "cat", "sat")), EOS]
    assert [one.special for one in tokens] == [True, False, False, False, True]
    assert [(one.start, one.stop) for one in tokens] == [(None, None), (0, 3), (4, 7), (9, 12), (None, None)]
    assert len(second) == 3
    (plain,) = client.post(
        "/tei/tokenize", json={"inputs": "the cat  sat", "add_special_tokens": False}
    ).json()
    assert plain == first[1:-1]


def test_tokenize_cuts_nothing(client: TestClient) -> None:
    words = CARD.max_length + 600  # and more than one part of the answer
    (tokens,) = client.post("/tei/tokenize", json={"inputs": "cat " * words}).json()
    assert len(tokens) == words + 2 and tokens[-2]["start"] == 4 * (words - 1)


def test_token_ids_stand_for_a_text(client: TestClient) -> None:
    ids = [token_id("the"), token_id("cat")]
    whole = [BOS, *ids, EOS]
    (wanted,) = client.post("/tei/embed", json={"inputs": "the cat"}).json()
    for given in (whole, ids, whole[:-1], whole[1:]):
        answer = client.post("/tei/embed", json={"inputs": given})
        assert answer.json() == [wanted]
        assert answer.headers["x-compute-tokens"] == "4"
    mixed = client.post("/tei/embed", json={"inputs": [[BOS, EOS], "the cat", ids]})
    assert mixed.json()[1:] == [wanted, wanted]
    (blank,) = client.post("/tei/embed_all", json={"inputs": [[BOS, EOS]]}).json()
    assert len(blank) == 1
    assert client.post("/tei/embed", json={"inputs": [BOS]}).json() == mixed.json()[:1]


def test_what_tokenize_gives_can_be_embedded(client: TestClient) -> None:
    tokens = client.post("/tei/tokenize", json={"inputs": TEXTS}).json()
    ids = [[one["id"] for one in text] for text in tokens]
    for path in ("/tei/embed", "/tei/embed_sparse", "/tei/embed_all"):
        texts = client.post(path, json={"inputs": TEXTS})
        assert client.post(path, json={"inputs": ids}).json() == texts.json()


@pytest.mark.parametrize("ids", [[CARD.vocab_size], [[5], [10**30]], [5, CARD.vocab_size + 7, 5]])
@pytest.mark.parametrize(("path", "field"), [("/tei/embed", "inputs"), ("/tei/decode", "ids")])
def test_ids_that_the_vocabulary_lacks(client: TestClient, path: str, field: str, ids: Any) -> None:
    assert str(CARD.vocab_size - 1) in refused(client.post(path, json={field: ids}), 422, "Tokenizer")


def test_decode_takes_one_or_several(client: TestClient) -> None:
    client.post("/tei/tokenize", json={"inputs": "cat"})  # the fake knows the words that it has seen
    ids = [BOS, token_id("cat"), EOS]
    assert client.post("/tei/decode", json={"ids": ids}).json() == ["cat"]
    assert client.post("/tei/decode", json={"ids": ids, "skip_special_tokens": False}).json() == [
        "<s>cat</s>"
    ]
    assert client.post("/tei/decode", json={"ids": [ids, [EOS]]}).json() == ["cat", ""]


@pytest.mark.parametrize(
    "text",
    ["Hello wörld", "  two  spaces ", "日本語のテキスト", "a </s> b <mask> c <unk> \u0301", "", "▁▁x▁"],
)
def test_text_is_joined_as_the_tokenizer_does(mini: Path, text: str) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(mini / "tokenizer.json"))
    ids = tokenizer.encode(text).ids
    for given in (ids, ids[1:], ids[::-1]):
        entries = [tokenizer.id_to_token(one) or "<unk>" for one in given]
        for skip in (True, False):
            assert text_of(entries, skip_special=skip) == tokenizer.decode(given, skip_special_tokens=skip)


# What clients read.


def test_headers_say_what_it_cost(client: TestClient) -> None:
    for path, body in (
        ("/tei/embed", {"inputs": ["ab c", [5, 6, 7]]}),
        ("/tei/embed_sparse", {"inputs": ["ab c", [5, 6, 7]]}),
        ("/tei/embed_all", {"inputs": ["ab c", [5, 6, 7]]}),
        ("/tei/rerank", {"query": "ab c", "texts": ["d e"]}),
        ("/tei/similarity", {"inputs": {"source_sentence": "ab c", "sentences": ["d e"]}}),
    ):
        headers = client.post(path, json=body).headers
        assert headers["x-compute-characters"] == "7"
        assert headers["x-compute-tokens"] == ("9" if "inputs" in path or "embed" in path else "8")
        for name in ("compute", "total", "tokenization", "queue", "inference"):
            assert headers[f"x-{name}-time"].isdigit()
        assert "X-Truncated-Texts" not in headers
    assert "x-compute-tokens" not in client.post("/tei/tokenize", json={"inputs": "a"}).headers


def test_info(client: TestClient) -> None:
    found = TeiInfo.model_validate_json(client.get("/tei/info").content)
    assert found.model_id == CARD.name and found.model_dtype == CARD.precision
    assert client.get("/tei/info").json()["model_type"] == {"embedding": {"pooling": "cls"}}
    assert found.max_input_length == CARD.max_length
    assert found.max_client_batch_size == 4
    assert found.auto_truncate is False


def test_a_client_that_wants_a_reranker_finds_one(client: TestClient) -> None:
    """Dify asks /info for the kind of the model, and takes a reranker for nothing else."""
    kind = client.get("/tei/reranker/info").json()["model_type"]
    TeiInfo.model_validate_json(client.get("/tei/reranker/info").content)
    assert list(kind) == ["reranker"]
    body = {"query": "cat", "texts": TEXTS, "return_text": True}
    wanted = client.post("/tei/rerank", json=body)
    for path in ("/tei/reranker/rerank", "/tei/reranker", "/tei/reranker/"):
        assert client.post(path, json=body).json() == wanted.json()
    assert client.get("/tei/reranker/health").status_code == 200
    refused(client.post("/tei/reranker/rerank", json={"query": "cat"}), 422, "Validation")


@pytest.mark.parametrize("path", ["/tei/health", "/tei/ping", "/tei", "/tei/"])
def test_health_has_no_body_and_needs_no_key(tmp_path: Path, path: str) -> None:
    model = FakeModel()
    with serving(tmp_path, model, api_keys="secret") as client:
        answer = client.get(path)
        assert (answer.status_code, answer.content) == (200, b"")
        model.broken = True
        client.post("/tei/embed", json={"inputs": "a"}, headers={"Authorization": "Bearer secret"})
        answer = client.get(path)
        refused(answer, 503, "Unhealthy")
        assert answer.headers["Retry-After"]


# Length, and what is cut.


def long_text(words: int) -> str:
    return " ".join(f"word{n}" for n in range(words))


def compared(source: str, sentences: Any, **parameters: Any) -> dict[str, Any]:
    """A body of /tei/similarity."""
    return {"inputs": {"source_sentence": source, "sentences": sentences}, "parameters": parameters}


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/tei/embed", {"inputs": long_text(600)}, "inputs"),
        ("/tei/embed", {"inputs": ["a", long_text(600)], "truncate": False}, "inputs.1"),
        ("/tei/embed", {"inputs": [5] * 600}, "inputs"),
        ("/tei/embed_sparse", {"inputs": long_text(600)}, "inputs"),
        ("/tei/embed_all", {"inputs": long_text(600), "truncate": None}, "inputs"),
        ("/tei/rerank", {"query": "a", "texts": ["a", long_text(600)]}, "texts.1"),
        ("/tei/rerank", {"query": long_text(600), "texts": ["a"]}, "query"),
        (
            "/tei/similarity",
            {"inputs": {"source_sentence": "a", "sentences": [long_text(600)]}},
            "inputs.sentences.0",
        ),
    ],
)
def test_a_text_that_is_too_long(client: TestClient, path: str, body: Any, name: str) -> None:
    words = refused(client.post(path, json=body), 413, "Validation")
    assert words.startswith(f"{name}: ")
    assert "must have less than 512 tokens. Given: 602" in words  # what clients look for


def test_a_text_may_be_as_long_as_the_model_takes(tmp_path: Path) -> None:
    """The defaults for queries and passages do not hold here, for there they do not exist."""
    with serving(tmp_path, passage_max_length=8, query_max_length=8) as client:
        (wanted,) = native(client, texts=long_text(100), max_length=CARD.max_length)
        assert client.post("/tei/embed", json={"inputs": long_text(100)}).json() == [wanted["dense"]]
        ranks = client.post("/tei/rerank", json={"query": "word90", "texts": [long_text(80), long_text(100)]})
        assert [one["index"] for one in ranks.json()] == [1, 0]


def test_the_end_is_cut_off_unless_it_shall_be_the_beginning(client: TestClient) -> None:
    text, kept = long_text(600), CARD.max_length - 2
    head = " ".join(text.split()[:kept])
    tail = " ".join(text.split()[-kept:])
    for path in ("/tei/embed", "/tei/embed_sparse", "/tei/embed_all", "/tei"):
        for direction, part in (("Right", head), ("right", head), ("Left", tail), ("left", tail)):
            body = {"inputs": [text, "cat"], "truncate": True, "truncation_direction": direction}
            cut = client.post(path, json=body)
            assert cut.status_code == 200, cut.text
            assert cut.json() == client.post(path, json={"inputs": [part, "cat"]}).json()
            assert cut.headers["x-compute-tokens"] == str(CARD.max_length + 3)
            assert cut.headers["X-Truncated-Texts"] == "1"
    assert client.post("/tei", json={"inputs": text, "truncate": True}).json() == (
        client.post("/tei", json={"inputs": head}).json()
    )


@pytest.mark.parametrize("direction", ["Left", "Right"])
def test_given_ids_are_cut_like_a_text(client: TestClient, direction: str) -> None:
    text = long_text(600)
    (tokens,) = client.post("/tei/tokenize", json={"inputs": text}).json()
    ids = [one["id"] for one in tokens]
    options = {"truncate": True, "truncation_direction": direction}
    found = [
        client.post("/tei/embed_all", json={"inputs": one, **options}).json()
        for one in (text, ids, ids[1:-1])
    ]
    assert found[0] == found[1] == found[2]


def test_rerank_and_similarity_cut_too(client: TestClient) -> None:
    words = long_text(600)
    tail = " ".join(words.split()[2 - CARD.max_length :])
    cut = {"truncate": True, "truncation_direction": "left"}
    ranks = client.post("/tei/rerank", json={"query": words, "texts": [words, "cat"], **cut})
    assert ranks.json() == client.post("/tei/rerank", json={"query": tail, "texts": [tail, "cat"]}).json()
    assert ranks.headers["X-Truncated-Texts"] == "2"
    body = {"inputs": {"source_sentence": words, "sentences": [words]}, "parameters": cut}
    assert client.post("/tei/similarity", json=body).json() == pytest.approx([1.0], abs=1e-5)


def test_cutting_can_be_the_servers_default(tmp_path: Path) -> None:
    with serving(tmp_path, tei_auto_truncate=True) as client:
        assert client.get("/tei/info").json()["auto_truncate"] is True
        assert client.post("/tei/embed", json={"inputs": long_text(600)}).status_code == 200
        assert client.post("/tei/rerank", json={"query": "a", "texts": [long_text(600)]}).status_code == 200
        refused(
            client.post("/tei/embed", json={"inputs": long_text(600), "truncate": False}), 413, "Validation"
        )


@pytest.mark.parametrize("path", ["/tei/v1/embeddings", "/tei/embeddings"])
def test_openais_format(client: TestClient, path: str) -> None:
    """Dify embeds so, and cuts texts itself at `max_input_length`, which must therefore hold."""
    found = client.post(path, json={"input": TEXTS}).json()
    assert [one["embedding"] for one in found["data"]] == [
        one["dense"] for one in native(client, texts=TEXTS)
    ]
    assert found["usage"]["total_tokens"] == 14
    words = long_text(600)
    refused(client.post(path, json={"input": words}), 413, "Validation")
    assert client.post(path, json={"input": words, "truncate": True}).status_code == 200
    cut = client.post(path, json={"input": words, "truncate": True, "max_length": 9})
    assert cut.json()["usage"]["total_tokens"] == 9


def test_openais_format_keeps_whole_texts(tmp_path: Path) -> None:
    with serving(tmp_path, passage_max_length=8, tei_auto_truncate=True) as client:
        found = client.post("/tei/v1/embeddings", json={"input": long_text(600)}).json()
        assert found["usage"]["total_tokens"] == CARD.max_length


def test_fewer_dimensions_are_the_first_ones_at_unit_length(client: TestClient) -> None:
    (whole,) = client.post("/tei/embed", json={"inputs": "cat"}).json()
    (short,) = client.post("/tei/embed", json={"inputs": "cat", "dimensions": 5}).json()
    kept = np.array(whole[:5], np.float64)
    np.testing.assert_allclose(short, kept / np.linalg.norm(kept), atol=1e-6)
    raw = client.post("/tei/embed", json={"inputs": "cat", "dimensions": 5, "normalize": False}).json()
    np.testing.assert_allclose(raw, [3 * kept], atol=1e-5)
    assert client.post("/tei/embed", json={"inputs": "cat", "dimensions": len(whole)}).json() == [whole]
    for wrong in (0, len(whole) + 1, 10**20):
        assert client.post("/tei/embed", json={"inputs": "cat", "dimensions": wrong}).status_code in (
            413,
            422,
        )


def test_parallel_requests_get_what_sequential_ones_get(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving_async(tmp_path, max_batch_tokens=40) as (client, _):
            bodies = [{"inputs": [f"word{n} cat", [5 + n, 6]]} for n in range(30)]
            paths = ["/tei/embed", "/tei/embed_sparse", "/tei/embed_all"]
            asked = [(paths[n % 3], body) for n, body in enumerate(bodies)]
            alone = [(await client.post(path, json=body)).json() for path, body in asked]
            together = await asyncio.gather(*(client.post(path, json=body) for path, body in asked))
        assert [one.json() for one in together] == alone

    asyncio.run(run())


def test_a_large_body_is_served(client: TestClient) -> None:
    """Parsed and checked in a worker thread, as bodies beyond some size are."""
    ids = [[5 + n % 1000 for n in range(60_000)]]
    answer = client.post("/tei/embed", content=json.dumps({"inputs": ids, "truncate": True}), headers=JSON)
    assert answer.status_code == 200 and answer.headers["x-compute-tokens"] == str(CARD.max_length)


def test_the_document_shows_the_forms(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    paths = {path for path in document["paths"] if path.startswith("/tei")}
    model = {"embed", "embed_sparse", "embed_all", "rerank", "similarity", "v1/embeddings"}
    other = {"tokenize", "decode", "info", "reranker/info", "health"}
    assert paths == {"/tei", *(f"/tei/{name}" for name in model | other)}
    assert set(document["paths"]["/tei"]) == {"get", "post"}
    for path in paths - {"/tei/health"}:
        operation = document["paths"][path].get("post") or document["paths"][path]["get"]
        for status in ("400", "401", "413", "422", "424", "429", "503", "504"):
            schema = operation["responses"][status]["content"]["application/json"]["schema"]
            assert schema["$ref"].endswith("/TeiError"), (path, status)


def test_the_guide_names_what_there_is(client: TestClient) -> None:
    guide = (Path(__file__).parent.parent / "docs" / "tei.md").read_text(encoding="utf-8")
    paths = client.get("/openapi.json").json()["paths"]
    for path in re.findall(r"`(?:POST |GET )?(/tei[a-z_/]*)`", guide):
        assert path in paths or path in ("/tei/ping", "/tei/reranker"), path
    knobs = set(re.findall(r"TRIVEC_[A-Z_]+", guide))
    assert len(knobs) > 10
    assert {one.removeprefix("TRIVEC_").lower() for one in knobs} <= set(Settings.model_fields)
