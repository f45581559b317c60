"""docs/clients.md and the pins of the client libraries; `tests/clients` runs the snippets themselves."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from app.error_formats import FORMATS, OPENAI_CODES
from app.errors import TABLE
from tests.http_helpers import serving

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")


def test_the_document_names_every_foreign_route(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        paths = client.get("/openapi.json").json()["paths"]
    foreign = {
        f"{method.upper()} {path.replace('{model}', '{id}')}"
        for path, operations in paths.items()
        for method in operations
        if path.split("/")[1] in FORMATS and path.split("/")[1] in ("v1", "v2")
    }
    named = set(re.findall(r"`((?:GET|POST) /v[12]/[\w/{}]+)`", DOCUMENT))
    assert foreign == named and len(foreign) == 7


def test_the_document_names_codes_that_exist() -> None:
    (table,) = re.findall(r"\| situation \|.*?\n\n", DOCUMENT, re.DOTALL)
    known = {row.code for row in TABLE.values()} | set(OPENAI_CODES.values()) | {"not_found"}
    named = {code for line in table.splitlines()[2:] for code in re.findall(r"`(\w+_\w+|draining)`", line)}
    assert named and named <= known


def test_every_client_is_pinned_and_torch_is_not_among_them() -> None:
    pins = (ROOT / "constraints-clients.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    pinned = set(re.findall(r"^([\w-]+)==", pins, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {
        re.split(r"[<>=]", one)[0].replace("_", "-") for one in project["optional-dependencies"]["clients"]
    }
    assert wanted <= pinned
    assert not pinned & {"torch", "tensorflow"}
