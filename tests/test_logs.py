"""Log lines: one JSON object each, whoever writes them; what a request's line says; never a text."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.telemetry import JsonLines
from tests.fakes import FakeModel, token_id
from tests.http_helpers import JSON, serving

ROOT = Path(__file__).parent.parent
FIELDS = {
    "time", "level", "logger", "message", "request_id", "method", "route", "status", "code", "texts",
    "tokens", "truncated", "lane", "queue_ms", "inference_ms", "total_ms", "bytes_in", "bytes_out",
}  # fmt: skip


def lines_of(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    found = [one for one in caplog.records if one.name == "trivec.requests"]
    return [json.loads(JsonLines().format(one)) for one in found]


def test_what_a_line_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    body = json.dumps({"texts": ["private " * 9, "x"], "max_length": 4}).encode()
    with serving(tmp_path) as client, caplog.at_level(logging.INFO, "trivec.requests"):
        answer = client.post("/embed", content=body, headers=JSON)
        client.post("/collections/default/documents", json=[{"text": "private"}, {"text": 5}])
        client.request("PRIVATE", "/private")
    embed, upsert, stranger = lines_of(caplog)
    assert set(embed) == FIELDS
    assert (embed["status"], embed["code"], embed["lane"]) == (200, None, "interactive")
    assert (embed["texts"], embed["tokens"], embed["truncated"]) == (2, 7, 1)
    assert (embed["bytes_in"], embed["bytes_out"]) == (len(body), answer.num_bytes_downloaded)
    assert (upsert["lane"], upsert["code"], upsert["texts"]) == ("bulk", None, 1)
    assert (stranger["method"], stranger["route"], stranger["code"]) == ("_OTHER", "unmatched", "not_found")
    assert "private" not in json.dumps([embed, upsert, stranger]).lower()


def test_a_refused_upload_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(tmp_path) as client, caplog.at_level(logging.INFO, "trivec.requests"):
        client.post("/collections/default/documents", json=[{"text": 5}])
    (line,) = lines_of(caplog)
    assert (line["status"], line["code"]) == (422, "invalid_request")


def test_a_failure_says_its_code(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = FakeModel(poison={token_id("arsenic")})
    with serving(tmp_path, model) as client, caplog.at_level(logging.INFO, "trivec"):
        client.post("/embed", json={"texts": "private arsenic"})
    (line,) = lines_of(caplog)
    assert (line["status"], line["code"]) == (500, "inference_failed")
    assert "private" not in caplog.text and "SECRET" not in caplog.text


def test_everybodys_lines_are_json_and_strangers_say_little() -> None:
    code = """
import logging
from app.telemetry import configure_logging
configure_logging("info")
logging.getLogger("trivec.main").info("ours\\nwhole")
logging.getLogger("uvicorn.error").info("unwanted")
logging.getLogger("uvicorn.error").warning("Invalid %s received.", "HTTP request")
try:
    raise ValueError("private words")
except ValueError as error:
    logging.getLogger("asyncio").error("Task exception\\nfuture: ValueError('private words')", exc_info=error)
logging.getLogger("library").error("")
logging.getLogger("trivec.main").debug("unwanted")
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in found.stderr.splitlines()]
    assert [(one["logger"], one["message"]) for one in lines] == [
        ("trivec.main", "ours\nwhole"),
        ("uvicorn.error", "Invalid HTTP request received."),
        ("asyncio", "Task exception"),
        ("library", ""),
    ]
    assert lines[2]["error"] == "ValueError"
    assert "private" not in found.stderr and found.stdout == ""
