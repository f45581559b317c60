"""/embed, /rerank, /tokenize, /health, /info: what a client gets."""

from __future__ import annotations

import asyncio
import base64
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load
from starlette.testclient import TestClient

from app.routes.docs import files_folder
from app.schemas.native import EmbedResponse, RerankResponse, TokenizeResponse
from app.schemas.ops import Info
from model.embedding import OUTPUTS
from model.scoring import FusionWeights, colbert_score, dense_score, hybrid_score, lexical_score
from tests.fakes import BOS, CARD, EOS, FakeModel
from tests.http_helpers import problem, serving, serving_async

TEXTS = ["the cat sat", "a dog barked loudly", "cat"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("data")) as client:
        yield client


def test_embed_gives_all_outputs_in_order(client: TestClient) -> None:
    answer = client.post("/embed", json={"texts": TEXTS})
    assert answer.status_code == 200
    body = answer.json()
    EmbedResponse.model_validate_json(answer.content)
    fake = FakeModel()
    wanted = fake.forward([one.ids for one in fake.tokenize(TEXTS, 512)], OUTPUTS)
    assert [one["index"] for one in body["results"]] == [0, 1, 2]
    for got, want in zip(body["results"], wanted, strict=True):
        assert want.dense is not None and want.sparse is not None and want.colbert is not None
        np.testing.assert_array_equal(np.array(got["dense"], np.float32), want.dense)
        np.testing.assert_array_equal(np.array(got["colbert"], np.float32), want.colbert)
        assert got["sparse"]["indices"] == want.sparse.indices.tolist()
        assert got["tokens"] == want.tokens and got["truncated"] is False
    assert body["usage"] == {"tokens": sum(one.tokens for one in wanted), "texts": 3}
    assert body["model"] == "fake"
    assert answer.headers["Server-Timing"].startswith("queue;dur=")


def test_embed_takes_one_text_and_some_outputs(client: TestClient) -> None:
    (one,) = client.post(
        "/embed", json={"texts": "cat", "outputs": ["sparse"], "return_tokens": True}
    ).json()["results"]
    assert set(one) == {"index", "tokens", "truncated", "sparse"}
    assert one["sparse"]["tokens"] == ["cat"]


def test_white_space_is_the_empty_sequence(client: TestClient) -> None:
    (one,) = client.post("/embed", json={"texts": " \n\t"}).json()["results"]
    assert one["tokens"] == 2 and len(one["colbert"]) == 1
    assert client.post("/tokenize", json={"texts": " "}).json()["results"][0]["ids"] == [BOS, EOS]


def test_truncation_is_reported(client: TestClient) -> None:
    body = {"texts": ["a b c d e", "a"], "max_length": 4}
    long, short = client.post("/embed", json=body).json()["results"]
    assert (long["tokens"], long["truncated"]) == (4, True)
    assert (short["tokens"], short["truncated"]) == (3, False)


def test_normalisation_can_be_turned_off(client: TestClient) -> None:
    (one,) = client.post("/embed", json={"texts": "cat", "normalize": False}).json()["results"]
    assert np.linalg.norm(one["dense"]) == pytest.approx(3, abs=1e-5)


@pytest.mark.parametrize(
    ("accept", "tensors"),
    [
        ("Application/VND.safetensors", True),
        ("text/html, application/vnd.safetensors;q=0.5", True),
        ("application/vnd.safetensors; q=0, application/json", False),
        ("application/vnd.safetensors-index", False),
        ("*/*", False),
    ],
)
def test_safetensors_are_what_accept_names(client: TestClient, accept: str, tensors: bool) -> None:
    answer = client.post("/embed", json={"texts": "a"}, headers={"Accept": accept})
    assert answer.headers["Content-Type"] == (
        "application/vnd.safetensors" if tensors else "application/json"
    )


def test_base64_int8_and_safetensors(client: TestClient) -> None:
    plain = client.post("/embed", json={"texts": TEXTS}).json()["results"]
    coded = client.post("/embed", json={"texts": TEXTS, "encoding": "base64"}).json()["results"]
    small = client.post("/embed", json={"texts": TEXTS, "dtype": "int8"})
    EmbedResponse.model_validate_json(small.content)
    tensors = load(
        client.post(
            "/embed", json={"texts": TEXTS}, headers={"Accept": "application/vnd.safetensors"}
        ).content
    )
    for place, one in enumerate(plain):
        dense = np.array(one["dense"], np.float32)
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(coded[place]["dense"]), "<f4"), dense)
        np.testing.assert_array_equal(tensors["dense"][place], dense)
        step = small.json()["results"][place]
        np.testing.assert_allclose(
            np.array(step["dense"]) * step["scale"]["dense"], dense, atol=step["scale"]["dense"]
        )
        assert step["scale"]["dense"] == pytest.approx(np.abs(dense).max() / 127)
    assert tensors["tokens"].tolist() == [one["tokens"] for one in plain]
    refused = client.post(
        "/embed", json={"texts": "a", "dtype": "int8"}, headers={"Accept": "application/vnd.safetensors"}
    )
    problem(refused, 422, "invalid_request", "dtype")


def test_rerank_scores_as_the_equations_say(client: TestClient) -> None:
    answer = client.post(
        "/rerank",
        json={
            "query": "cat",
            "documents": [TEXTS[1], {"text": TEXTS[0]}, TEXTS[2]],
            "return_documents": True,
        },
    )
    RerankResponse.model_validate_json(answer.content)
    results = answer.json()["results"]
    assert [one["index"] for one in results] == [2, 1, 0]
    assert results[0]["text"] == "cat"
    fake = FakeModel()
    query, document = fake.forward([one.ids for one in fake.tokenize(["cat", TEXTS[0]], 512)], OUTPUTS)
    assert query.dense is not None and document.dense is not None
    assert query.sparse is not None and document.sparse is not None
    assert query.colbert is not None and document.colbert is not None
    scores = {
        "dense": dense_score(query.dense, document.dense),
        "sparse": lexical_score(query.sparse, document.sparse),
        "colbert": colbert_score(query.colbert, document.colbert),
    }
    assert results[1]["scores"] == pytest.approx(scores)
    assert results[1]["score"] == pytest.approx(float(hybrid_score(FusionWeights(), **scores)))


def test_rerank_by_one_mode_and_top_n(client: TestClient) -> None:
    body = {"query": "cat", "documents": TEXTS, "mode": "sparse", "top_n": 2}
    results = client.post("/rerank", json=body).json()["results"]
    assert [one["index"] for one in results] == [0, 2]  # equal scores keep their order
    assert all(one["score"] == one["scores"]["sparse"] for one in results)
    no_weight = {**body, "weights": {"dense": 0, "sparse": 0, "colbert": 0}}
    problem(client.post("/rerank", json=no_weight), 422, "invalid_request", "weights")


def test_tokenize_shows_what_embed_would_cut(client: TestClient) -> None:
    answer = client.post("/tokenize", json={"texts": ["the cat  sat", "cat"], "max_length": 4})
    TokenizeResponse.model_validate_json(answer.content)
    long, short = answer.json()["results"]
    assert long["tokens"] == ["<s>", "the", "cat", "</s>"]
    assert long["offsets"] == [[0, 0], [0, 3], [4, 7], [0, 0]]
    assert (long["count"], long["truncated"]) == (5, True)
    assert (short["count"], short["truncated"]) == (3, False)
    assert "Server-Timing" not in answer.headers


def test_info_and_health(client: TestClient) -> None:
    assert client.get("/health/live").status_code == client.get("/health/ready").status_code == 200
    answer = client.get("/info")
    Info.model_validate_json(answer.content)
    assert answer.json()["model"]["fingerprint"] == CARD.fingerprint


def test_openapi_names_every_route_and_its_errors(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert client.get("/docs").status_code == 200
    schemas = document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"] and operation["description"], (method, path)
            if path.startswith(("/v1/", "/v2/")):
                # Those have errors in the form of other APIs: `app.error_formats`.
                assert {"400", "401", "503"} <= set(operation["responses"]), (method, path)
            elif path.startswith("/tei"):
                assert "503" in operation["responses"], (method, path)  # test_http_tei.py asks for the rest
            elif not path.startswith("/health"):
                assert {"401", "422", "504"} <= set(operation["responses"]), (method, path)
                # Who watches the service must be answered while it is not ready, too.
                assert ("503" in operation["responses"]) == (path != "/metrics"), (method, path)
                error = operation["responses"]["422"]["content"]["application/json"]["schema"]["$ref"]
                assert error.endswith(("/ErrorBody", "/UpsertRefusal"))
    references = {
        part.split('"')[0] for part in str(document).replace("'", '"').split("#/components/schemas/")[1:]
    }
    assert references <= set(schemas)
    assert "DocumentBody" in references


def test_an_output_that_the_model_lacks(tmp_path: Path) -> None:
    model = FakeModel(card=replace(CARD, outputs=("dense",), colbert_dim=0))
    with serving(tmp_path, model) as client:
        assert set(client.post("/embed", json={"texts": "a"}).json()["results"][0]) == {
            "index", "tokens", "truncated", "dense",
        }  # fmt: skip
        problem(
            client.post("/embed", json={"texts": "a", "outputs": ["colbert"]}),
            422,
            "output_unavailable",
            "outputs",
        )
        problem(
            client.post("/search", json={"query": "a", "mode": "sparse"}), 422, "output_unavailable", "mode"
        )
        client.post("/collections/default/documents", json=[{"id": "1", "text": "the cat"}])
        (hit,) = client.post("/search", json={"query": "the cat"}).json()["hits"]
        assert hit["scores"]["sparse"] is None and hit["score"] == pytest.approx(1, abs=1e-5)
        (one,) = client.post("/rerank", json={"query": "cat", "documents": ["cat"]}).json()["results"]
        assert one["scores"]["colbert"] is None and one["score"] == pytest.approx(1, abs=1e-5)


def test_parallel_requests_get_what_sequential_ones_get(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving_async(tmp_path, max_batch_tokens=40) as (client, _):
            bodies = [{"texts": [f"word{n} cat", f"dog word{n % 7}"]} for n in range(50)]
            alone = [(await client.post("/embed", json=body)).json() for body in bodies]
            together = await asyncio.gather(*(client.post("/embed", json=body) for body in bodies))
        assert [one.json() for one in together] == alone

    asyncio.run(run())


def test_the_service_runs_without_tensorflow(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["tensorflow"] = None
from pathlib import Path
from tests.http_helpers import serving
with serving(Path(sys.argv[1])) as client:
    assert client.post("/embed", json={"texts": "hello"}).status_code == 200
print("served")
"""
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == "served", done.stderr


def test_every_field_of_the_contract_says_what_it_is(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    own = {
        name: one for name, one in schemas.items() if name not in ("HTTPValidationError", "ValidationError")
    }
    silent = [
        f"{name}.{field}"
        for name, schema in own.items()
        for field, one in schema.get("properties", {}).items()
        if not one.get("description")
    ]
    assert silent == [] and len(own) > 30


@pytest.mark.parametrize(
    "path", ["/health/live", "/health/ready", "/info", "/collections", "/collections/none", "/docs", "/embed"]
)
def test_head_answers_like_get_without_a_body(client: TestClient, path: str) -> None:
    got, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    for name in ("Content-Type", "Content-Length", "Allow"):
        assert head.headers.get(name) == got.headers.get(name)
    assert head.headers["X-Request-ID"]


def test_the_documentation_needs_no_network(client: TestClient) -> None:
    assert files_folder() is not None, "fastapi-offline brings the files of Swagger UI"
    page = client.get("/docs")
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(links) == 3
    for link in links:
        assert link.startswith("/docs/")
        assert len(client.get(link).content) > 1000
    for strange in ("x.js", "..%2Fcore.py", "core.py", "redoc.standalone.js"):
        assert client.get(f"/docs/{strange}").status_code == 404
