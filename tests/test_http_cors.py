"""Pages of other origins: none may call unless the settings name it, and then errors can be read too."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from app.settings import Settings
from tests.http_helpers import problem, serving
from tests.metrics_helpers import scraped
from tests.test_logs import lines_of

HOME, OTHER = "https://app.example.com", "https://evil.example"
PREFLIGHT = {
    "Origin": HOME,
    "Access-Control-Request-Method": "DELETE",
    "Access-Control-Request-Headers": "authorization,content-type,x-request-timeout",
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    origins = f"{HOME}, http://localhost:3000"
    with serving(tmp_path_factory.mktemp("data"), cors_origins=origins, api_keys="key") as client:
        client.headers["Authorization"] = "Bearer key"
        yield client


def cors(answer: object) -> set[str]:
    """The names of the headers that say something about origins."""
    return {name for name in answer.headers if name.startswith("access-control")}  # type: ignore[attr-defined]


def test_off_by_default(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        answer = client.post("/embed", json={"texts": "cat"}, headers={"Origin": HOME})
        assert (
            answer.status_code == 200 and not cors(answer) and "Origin" not in answer.headers.get("Vary", "")
        )
        refused = client.options("/embed", headers=PREFLIGHT)
        problem(refused, 405, "method_not_allowed")
        assert not cors(refused)


def test_a_preflight_needs_no_key(client: TestClient) -> None:
    answer = client.options("/collections/x", headers={**PREFLIGHT, "Authorization": ""})
    assert answer.status_code == 204 and not answer.content
    assert answer.headers["Access-Control-Allow-Origin"] == HOME
    assert "DELETE" in answer.headers["Access-Control-Allow-Methods"].split(", ")
    assert answer.headers["Access-Control-Allow-Headers"] == PREFLIGHT["Access-Control-Request-Headers"]
    assert int(answer.headers["Access-Control-Max-Age"]) > 0
    assert answer.headers["Vary"] == "Access-Control-Request-Headers, Origin"
    assert "Access-Control-Allow-Credentials" not in answer.headers
    plain = client.options("/embed", headers={"Origin": HOME, "Access-Control-Request-Method": "POST"})
    assert plain.status_code == 204 and "Access-Control-Allow-Headers" not in plain.headers


def test_answers_and_errors_can_be_read(client: TestClient) -> None:
    home = {"Origin": HOME}
    answers = [
        client.post("/embed", json={"texts": ["cat"] * 50}, headers={**home, "Accept-Encoding": "gzip"}),
        client.post("/embed", json={"text": "cat"}, headers=home),
        client.get("/info", headers={**home, "Authorization": "Bearer wrong"}),
        client.get("/nowhere", headers=home),
        client.options("/embed", headers=home),  # no preflight
        client.get("/info", headers={**home, "X-Request-Timeout": "none"}),
        client.post("/v1/embeddings", json={}, headers=home),
    ]
    assert [one.status_code for one in answers] == [200, 422, 401, 404, 405, 422, 400]
    for answer in answers:
        assert answer.headers["Access-Control-Allow-Origin"] == HOME
        assert "Access-Control-Allow-Credentials" not in answer.headers
        exposed = answer.headers["Access-Control-Expose-Headers"].split(", ")
        assert {"X-Request-ID", "Server-Timing", "Retry-After"} <= set(exposed)
        assert "Origin" in answer.headers["Vary"].split(", ")
    assert "Accept-Encoding" in answers[0].headers["Vary"]


def test_a_defect_can_be_read_too(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.routes.ops.JSONResponse", lambda *_: 1 / 0)
    answer = client.get("/info", headers={"Origin": HOME})
    monkeypatch.undo()
    assert answer.status_code == 500 and answer.headers["Access-Control-Allow-Origin"] == HOME


@pytest.mark.parametrize("origin", [OTHER, "null", HOME + ".evil.example", HOME + ":8443", HOME.upper(), ""])
def test_other_origins_get_nothing(client: TestClient, origin: str) -> None:
    answer = client.get("/info", headers={"Origin": origin})
    assert answer.status_code == 200 and not cors(answer) and "Origin" in answer.headers["Vary"]
    refused = client.options("/embed", headers={**PREFLIGHT, "Origin": origin})
    assert refused.status_code == 405 and not cors(refused)


def test_anyone(tmp_path: Path) -> None:
    with serving(tmp_path, cors_origins="*") as client:
        for answer in (
            client.get("/info", headers={"Origin": OTHER}),
            client.options("/embed", headers={**PREFLIGHT, "Origin": OTHER}),
        ):
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            assert "Access-Control-Allow-Credentials" not in answer.headers
        assert not cors(client.get("/info"))


@pytest.mark.parametrize("origin", ["http://localhost:3000", "https://[::1]:8443", "http://a-b.example:443"])
def test_origins_that_a_browser_sends(origin: str) -> None:
    assert Settings(cors_origins=origin).cors_origins == (origin,)


@pytest.mark.parametrize(
    "origin",
    [
        "app.example.com",
        "https://app.example.com/",
        "https://App.example.com",
        "https://*.example.com",
        "https://app.example.com:443",
        "http://app.example.com:80",
        "file://x",
        "null",
        "https://a.example\nhttps://b.example",
    ],
)
def test_origins_that_no_browser_sends(origin: str) -> None:
    with pytest.raises(ValidationError, match="origins"):
        Settings(cors_origins=origin)


def test_a_preflight_is_a_request_like_any_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(tmp_path, cors_origins=HOME, api_keys="key") as client:
        with caplog.at_level(logging.INFO, "trivec.requests"):
            answers = [
                client.options(path, headers={**PREFLIGHT, "X-Request-ID": f"ours-{path}"})
                for path in ("/embed", "/collections/private")
            ]
        found = scraped(client, Authorization="Bearer key")
    lines = lines_of(caplog)
    told = [(one["method"], one["route"], one["status"], one["code"]) for one in lines]
    assert told == [("OPTIONS", "unmatched", 204, None)] * 2  # nobody has looked for a route
    assert [one["request_id"] for one in lines] == ["ours-/embed", "ours-/collections/private"]
    assert [one.headers["X-Request-ID"] for one in answers] == [one["request_id"] for one in lines]
    assert "private" not in json.dumps([{**one, "request_id": ""} for one in lines])
    assert found("trivec_requests_total", method="OPTIONS", status="204") == 2
