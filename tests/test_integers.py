"""5.0 is an integer in every body that takes one, as in JSON Schema; 5.5, true, "5" and 1e300 are none."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from starlette.testclient import TestClient

from app.main import create_app
from app.schemas import integers
from app.schemas.base import ForeignBody, IncomingBody, RequestBody
from app.schemas.openai import EmbeddingsRequest
from app.settings import Settings
from tests.fakes import BOS, COLBERT, EOS, HIDDEN
from tests.http_helpers import JSON, serving

STRICT = ConfigDict(strict=True, allow_inf_nan=False)
NONE = [5.5, True, "5", [5], math.inf, -math.inf, math.nan, 2.0**53, -(2.0**53), 1e300]
"""2^53 may have been written as 2^53 + 1."""
IDS = [BOS, 17, EOS]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("data")) as client:
        documents = [{"id": str(number), "text": f"cat {number}"} for number in range(9)]
        client.post("/collections/default/documents", json=documents)
        yield client


def bodies(kind: type[BaseModel] = IncomingBody) -> Iterator[type[BaseModel]]:
    for one in kind.__subclasses__():
        yield one
        yield from bodies(one)


def integer_fields() -> Iterator[tuple[str, type[BaseModel], int]]:
    """Each field of a request that may be an integer, and one that it may be."""
    for body in bodies():
        if body in (RequestBody, ForeignBody) or not body.__module__.startswith("app.schemas"):
            continue
        for name, field in body.model_fields.items():
            alone = create_model("Alone", __config__=STRICT, value=(field.annotation, field))
            schema = alone.model_json_schema()["properties"]["value"]
            for one in (schema, *schema.get("anyOf", ())):
                if one.get("type") == "integer":
                    yield f"{body.__name__}.{name}", alone, one.get("minimum", 3)


FIELDS = {name: (alone, least) for name, alone, least in integer_fields()}


def test_the_fields_are_found() -> None:
    assert {
        "SearchBody.top_k",
        "SearchBody.candidates",
        "EmbedRequest.max_length",
        "EmbeddingsRequest.dimensions",
        "CollectionBody.colbert_pooling",
        "CohereEmbedRequest.max_tokens",
        "TeiEmbedRequest.dimensions",
    } <= FIELDS.keys()
    assert len(FIELDS) >= 15


@pytest.mark.parametrize("name", FIELDS)
def test_every_integer_may_have_a_point(name: str) -> None:
    alone, least = FIELDS[name]
    found: Any = alone.model_validate({"value": float(least)})
    assert found.value == least and type(found.value) is int
    for value in (*NONE, float(least) - 4):  # the bounds hold for both
        with pytest.raises(ValidationError):
            alone.model_validate({"value": value})


UPSERT = "/collections/default/documents"
SPARSE = {"values": [0.5, 0.25]}
ROWS = [[0.5] * COLBERT] * 2
PAIRS = [
    ("/embed", {"texts": "a b c d e"}, {"max_length": 4}),
    ("/tokenize", {"texts": "a b c d e"}, {"max_length": 4}),
    ("/rerank", {"query": "a", "documents": ["a", "b"]}, {"top_n": 1}),
    ("/search", {"query": "cat"}, {"top_k": 2, "candidates": 5}),
    ("/search", {}, {"query": {"sparse": {**SPARSE, "indices": [5, 9]}}}),
    (UPSERT, [], {"id": "v", "text": "a", "embedding": {"sparse": {**SPARSE, "indices": [5, 9]}}}),
    (UPSERT, [], {"id": "w", "text": "a", "embedding": {"colbert": ROWS, "colbert_shape": [2, COLBERT]}}),
    ("/v1/embeddings", {"input": "a b c d e"}, {"max_length": 4, "dimensions": HIDDEN}),
    ("/v1/embeddings", {}, {"input": IDS}),
    ("/v1/embeddings", {}, {"input": [IDS, [BOS, EOS]]}),
    ("/v1/rerank", {"query": "a", "documents": ["a", "b"]}, {"top_n": 1, "max_tokens_per_doc": 2}),
    ("/v2/rerank", {"query": "a", "documents": ["a", "b"]}, {"top_n": 1, "max_tokens_per_doc": 2}),
    (
        "/v2/embed",
        {"texts": ["a b c d"], "embedding_types": ["float"]},
        {"max_tokens": 3, "output_dimension": HIDDEN},
    ),
    ("/tei/embed", {"inputs": "a"}, {"dimensions": 4}),
    ("/tei/embed", {}, {"inputs": IDS}),
    ("/tei/embed", {}, {"inputs": [IDS, "a", [17]]}),
    ("/tei/decode", {}, {"ids": IDS}),
    ("/tei/decode", {}, {"ids": [IDS, [17]]}),
]


def with_points(value: Any, *, last_only: bool = False) -> Any:
    """Integers as an encoder writes them that knows only doubles."""
    if isinstance(value, dict):
        return {name: with_points(one, last_only=last_only) for name, one in value.items()}
    if isinstance(value, list):
        kept = len(value) - 1 if last_only and all(type(one) is int for one in value) else 0
        return [*value[:kept], *(with_points(one, last_only=last_only) for one in value[kept:])]
    return float(value) if type(value) is int else value


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize(("path", "rest", "fields"), PAIRS)
def test_the_answer_is_the_same(
    client: TestClient, path: str, rest: Any, fields: dict[str, Any], last_only: bool
) -> None:
    def answer(fields: dict[str, Any]) -> Any:
        body = [fields] if path == UPSERT else {**rest, **fields}
        found = client.post(path, json=body)
        assert found.status_code == 200, found.text
        given = found.json()
        return {**given, "id": None} if isinstance(given, dict) else given

    pointed = with_points(fields, last_only=last_only)
    assert ".0" in json.dumps(pointed)
    assert answer(pointed) == answer(fields)


def test_collections_and_lines(client: TestClient) -> None:
    made = client.put("/collections/pooled", json={"colbert_pooling": 2.0})
    assert made.status_code == 201 and made.json()["settings"]["colbert_pooling"] == 2
    line = b'{"text": "a", "embedding": {"sparse": {"indices": [5.0, 9], "values": [0.5, 0.25]}}}\n'
    answer = client.post(UPSERT, content=line, headers={"Content-Type": "application/x-ndjson"})
    assert answer.json()["upserted"] == 1


@pytest.mark.parametrize(
    "written",
    [
        "5.5",
        "true",
        '"5"',
        "1e400",
        "-1e400",
        "NaN",
        "Infinity",
        "9007199254740993.0",
        "1e300",
        "0.0",
        "-1.0",
    ],
)
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/search", '{"query": "cat", "top_k": %s}'),
        ("/search", '{"query": {"sparse": {"indices": [1, %s], "values": [0.5, 0.5]}}}'),
        ("/v1/embeddings", '{"input": "a", "dimensions": %s}'),
        ("/v1/embeddings", '{"input": [0, 2, %s]}'),
        ("/v2/rerank", '{"query": "a", "documents": ["a"], "top_n": %s}'),
        ("/tei/embed", '{"inputs": "a", "dimensions": %s}'),
        ("/tei/decode", '{"ids": [2.0, %s, -3]}'),
    ],
)
def test_what_is_no_integer_is_refused_as_before(
    client: TestClient, path: str, body: str, written: str
) -> None:
    if "indices" in body and written == "0.0":
        return  # a token that there is
    answer = client.post(path, content=(body % written).encode(), headers=JSON)
    assert answer.status_code in (400, 422), answer.text


@pytest.mark.parametrize("written", ["1e300", "-1e300", "9007199254740993.0"])
def test_a_number_too_large_is_told_from_a_fraction(client: TestClient, written: str) -> None:
    for path, body, place in (
        ("/search", '{"query": "cat", "top_k": %s}', "top_k"),
        ("/tei/embed", '{"inputs": [5.0, %s, 5.5]}', "inputs.1"),
        ("/tei/embed", '{"inputs": ["a", [5, %s]]}', "inputs.1.1"),
    ):
        said = client.post(path, content=(body % written).encode(), headers=JSON).json()
        assert "a number is too large" in str(said) and place in str(said), said


def test_lists_of_integers_are_not_gone_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is what is refused for another reason: they may be as long as a body."""
    monkeypatch.delattr(integers, "_rewrite")
    for given in ([0, 17, 2] * 1000, [[0, 2]] * 1000, ["a"] * 1000):
        assert EmbeddingsRequest.model_validate({"input": given}).input == given
    for wrong in (
        [0, 1, 5.5, 6.0],
        [0, "5", 6.0],
        [0, True],
        ["a", 6.0],
        [[0, 2], [5.5, 6.0]],
    ):
        with pytest.raises(ValidationError):
            EmbeddingsRequest.model_validate({"input": wrong})
    with pytest.raises(NameError):
        EmbeddingsRequest.model_validate({"input": [0, 5.0]})


def test_the_document_says_what_it_said(tmp_path: Path) -> None:
    """Bounds that stand in the wrong place are lost to it."""
    schemas = create_app(Settings(data_dir=tmp_path)).openapi()["components"]["schemas"]
    fields = schemas["EmbedRequest"]["properties"]
    assert fields["max_length"]["anyOf"][0] == {"type": "integer", "minimum": 2, "maximum": 8192}
    assert schemas["SearchBody"]["properties"]["top_k"]["minimum"] == 1
    assert schemas["CollectionBody"]["properties"]["colbert_pooling"]["maximum"] == 8
    assert schemas["SparseWeights"]["properties"]["indices"]["items"] == {"type": "integer"}
