"""`trivec mcp` as agents meet it: the official client, a real process, a served app with the fake model."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

mcp = pytest.importorskip("mcp", reason="the extra `mcp` is not installed")

from app.agents.tools import TOOLS  # noqa: E402
from app.agents.words import in_words, word_at  # noqa: E402
from tests.server import FAKE, running_server  # noqa: E402

ROOT = Path(__file__).parent.parent
READING = ["search", "get_document", "list_collections"]
WRITING = ["index", "delete_documents"]
TOWER = "The Eiffel Tower in Paris was finished in 1889"
DOCUMENTS = [
    {"id": "tower", "text": TOWER, "metadata": {"lang": "en", "year": 1889, "none": None}},
    {"id": "dom", "text": "Der Kölner Dom wurde vollendet", "metadata": {"lang": "de", "year": 1880}},
    {"id": "长城/🧱?#%..", "text": "长城 是 防御 工程 🧱", "metadata": {"lang": "zh"}},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("data")
    with running_server(folder, FAKE):
        yield folder


@asynccontextmanager
async def agent(*options: object, mode: Any = "auto", **environment: str) -> AsyncIterator[Any]:
    """A connected client of the official SDK; `mode` is the protocol's generation."""
    command = mcp.StdioServerParameters(
        command=sys.executable,
        args=["-m", "app.cli", "mcp", *map(str, options)],
        env={"PYTHONPATH": str(ROOT), **environment},
        cwd=ROOT,
    )
    async with mcp.Client(command, mode=mode, read_timeout_seconds=60) as client:
        yield client


async def told(client: Any, tool: str, **arguments: object) -> dict[str, Any]:
    """A tool's answer; its text says the same for hosts that read nothing else."""
    found = await client.call_tool(tool, arguments)
    assert not found.is_error, found.content
    assert json.loads(found.content[0].text) == found.structured_content
    return dict(found.structured_content)


async def refused(client: Any, tool: str, **arguments: object) -> str:
    found = await client.call_tool(tool, arguments)
    assert found.is_error and len(found.content) == 1
    return str(found.content[0].text)


def run(options: tuple[object, ...], play: Callable[[Any], Awaitable[None]], **more: Any) -> None:
    async def played() -> None:
        async with agent(*options, **more) as client:
            await play(client)

    asyncio.run(played())


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_every_tool_from_storing_to_deleting(data: Path, mode: str) -> None:
    async def play(client: Any) -> None:
        assert client.server_info.name == "trivec" and "collections" in client.instructions
        assert [tool.name for tool in (await client.list_tools()).tools] == READING + WRITING
        name = f"all-{mode}"
        stored = await told(client, "index", documents=DOCUMENTS, collection=name, create_collection=True)
        assert stored == {
            "collection": name,
            "stored": [one["id"] for one in DOCUMENTS],
            "refused": [],
            "cut": [],
        }
        listed = (await told(client, "list_collections"))["collections"]
        assert {"name": name, "documents": 3} in [
            {key: one[key] for key in ("name", "documents")} for one in listed
        ]
        found = await told(client, "search", query="Eiffel Tower", collection=name, top_k=2)
        first = found["hits"][0]
        assert len(found["hits"]) == 2 and first["id"] == "tower"
        assert first["text"] == TOWER and first["text_is_cut"] is False
        assert first["metadata"] == DOCUMENTS[0]["metadata"] and "explanation" not in first
        assert set(first["scores"]) == {"dense", "sparse", "colbert"}
        read = await told(client, "get_document", id="长城/🧱?#%..", collection=name)
        assert read["text"] == "长城 是 防御 工程 🧱" and read["metadata"] == {"lang": "zh"}
        assert "next_offset" not in read
        gone = await told(client, "delete_documents", ids=["tower", "nobody"], collection=name)
        assert gone == {"collection": name, "deleted": 1}
        rest = await told(client, "search", query="Eiffel Tower", collection=name)
        assert [hit["id"] for hit in rest["hits"]] != [] and "tower" not in str(rest)
        filtered = {"lang": {"$in": ["de", "zh"]}}
        assert (await told(client, "delete_documents", filter=filtered, collection=name))["deleted"] == 2

    run(("--data-dir", data), play, mode=mode)


def test_searches_filter_choose_a_mode_cut_and_explain(data: Path) -> None:
    async def play(client: Any) -> None:
        await told(client, "index", documents=DOCUMENTS, collection="s", create_collection=True)

        async def ids(**arguments: object) -> list[str]:
            found = await told(client, "search", query="Eiffel Tower", collection="s", **arguments)
            return [hit["id"] for hit in found["hits"]]

        assert await ids(filter={"year": {"$lt": 1885}}) == ["dom"]
        assert await ids(filter='{"year": {"$lt": 1885}}', top_k="1") == ["dom"]  # as many agents write it
        assert await ids(mode="sparse") == ["tower"]
        cut = await told(client, "search", query="Eiffel Tower", collection="s", max_chars=10, explain=True)
        hit = cut["hits"][0]
        assert hit["text"] == TOWER[:10] and hit["text_is_cut"] is True
        assert "Shared words" in hit["explanation"] and "Tower 0." in hit["explanation"]
        assert "Eiffel ~ Eiffel 1.00" in hit["explanation"]
        assert "No word is shared" in cut["hits"][1]["explanation"]

    run(("--data-dir", data), play)


def test_long_texts_come_in_parts_and_long_metadata_only_whole(data: Path) -> None:
    text = "".join(chr(0x4E00 + place) for place in range(500)) + " word" * 600

    async def play(client: Any) -> None:
        long = {"id": "long", "text": text, "metadata": {"note": "ü" * 5000}}
        stored = await told(client, "index", documents=[long, "a plain text"], collection="default")
        assert stored["cut"] == ["long"] and len(stored["stored"]) == 2
        read, offset = "", 0
        while offset is not None:
            part = await told(client, "get_document", id="long", offset=offset, max_chars=999)
            assert part["total_chars"] == len(text) and len(part["text"]) <= 999
            read, offset = read + part["text"], part.get("next_offset")
        assert read == text and part["metadata"] == {"note": "ü" * 5000}
        hit = (await told(client, "search", query="word", top_k=1))["hits"][0]
        assert hit["text"] == text[:2000] and hit["text_is_cut"] and "metadata" not in hit
        assert (await told(client, "get_document", id="long", offset=10**6))["text"] == ""

    run(("--data-dir", data), play)


WRONG_CALLS: list[tuple[str, dict[str, object], str]] = [
    ("search", {}, "query: Field required"),
    ("search", {"query": ""}, "query: String should have at least 1 character"),
    ("search", {"query": 5}, "query: Input should be a valid string"),
    ("search", {"query": "a", "topk": 3}, "topk: there is no such argument; known are: query, collection"),
    ("search", {"query": "a", "top_k": 0}, "top_k: Input should be greater than or equal to 1"),
    ("search", {"query": "a", "top_k": 10**30}, "top_k: "),
    ("search", {"query": "a", "mode": "magic"}, "mode: Input should be 'hybrid', 'dense'"),
    ("search", {"query": "a", "filter": {"x": {"$near": 1}}}, "invalid_filter (filter.x"),
    ("search", {"query": "a", "filter": "{"}, "filter: Input should be a valid dictionary"),
    ("search", {"query": "a", "filter": {"x": 10**400}}, "invalid_filter (filter.x)"),
    ("search", {"query": "a", "collection": "nowhere"}, "collection_not_found"),
    ("search", {"query": "a", "collection": "../x"}, "collection: String should match"),
    ("get_document", {"id": "nobody"}, "document_not_found (id)"),
    ("get_document", {"id": ".."}, "document_not_found (id)"),
    ("get_document", {"id": ""}, "id: String should have at least 1"),
    ("get_document", {"id": "a", "max_chars": 0}, "max_chars: "),
    ("list_collections", {"all": True}, "all: there is no such argument; known are: none"),
    ("index", {"documents": []}, "documents: List should have at least 1 item"),
    ("index", {"documents": [{"text": "a", "url": "b"}]}, "documents.0.url: there is no such field"),
    ("index", {"documents": [{"id": "a"}, 5]}, "documents.0.text: Field required; documents.1: an object"),
    ("index", {"documents": ["a"] * 257}, "documents: List should have at most 256"),
    ("index", {"documents": [{"text": ""}]}, "nothing was stored: document 0: invalid_request (text)"),
    ("index", {"documents": [{"text": "a", "id": "ü" * 400}]}, "nothing was stored: document 0: "),
    ("index", {"documents": ["a"], "collection": "new"}, "`create_collection: true` makes it"),
    ("delete_documents", {}, "give either `ids` or `filter`"),
    ("delete_documents", {"ids": ["a"], "filter": {"a": 1}}, "give either `ids` or `filter`"),
    ("delete_documents", {"filter": {}}, "filter: Value should have at least 1 item"),
    ("delete_documents", {"ids": "tower"}, "ids: Input should be a valid list"),
    ("delete_documents", {"ids": []}, "ids: Value should have at least 1"),
    ("destroy", {}, "there is no such tool"),
]


def test_wrong_calls_are_told_what_is_wrong_and_break_nothing(data: Path) -> None:
    async def play(client: Any) -> None:
        await told(client, "index", documents=["so that default is there"])
        for tool, arguments, message in WRONG_CALLS:
            said = await refused(client, tool, **arguments)
            assert message in said, (tool, arguments, said)
        partly = await told(client, "index", documents=[{"text": "good", "id": "g"}, {"text": "", "id": "b"}])
        assert partly["stored"] == ["g"] and partly["refused"][0]["position"] == 1
        assert partly["refused"][0]["id"] == "b" and "invalid_request" in partly["refused"][0]["problem"]

    run(("--data-dir", data), play)


def test_schemas_are_whole_and_say_what_each_argument_is(data: Path) -> None:
    async def play(client: Any) -> None:
        for tool in (await client.list_tools()).tools:
            jsonschema.Draft202012Validator.check_schema(tool.input_schema)
            jsonschema.Draft202012Validator.check_schema(tool.output_schema)
            assert "$ref" not in json.dumps([tool.input_schema, tool.output_schema])
            assert len(tool.description) > 50
            for name, field in tool.input_schema["properties"].items():
                assert len(field.get("description", "")) > 15, (tool.name, name)
            assert tool.annotations.read_only_hint is (tool.name in READING)
            assert tool.annotations.destructive_hint is (tool.name in WRITING)
        search = next(tool for tool in (await client.list_tools()).tools if tool.name == "search")
        assert (
            '{"lang": "en", "year": {"$gte": 1990'
            in search.input_schema["properties"]["filter"]["description"]
        )

    run(("--data-dir", data), play)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_read_only_offers_no_tool_that_writes(data: Path, mode: str) -> None:
    async def play(client: Any) -> None:
        assert [tool.name for tool in (await client.list_tools()).tools] == READING
        for name in WRITING:
            assert "only reads (--read-only)" in await refused(client, name, documents=["x"], ids=["x"])
        await told(client, "list_collections")

    run(("--data-dir", data, "--read-only"), play, mode=mode)


def test_a_server_that_comes_late_or_goes_is_named_and_found_again(tmp_path: Path) -> None:
    async def play(client: Any) -> None:
        for tool in TOOLS:
            arguments = {"search": {"query": "a"}, "get_document": {"id": "a"}, "index": {"documents": ["a"]}}
            given: dict[str, Any] = arguments.get(tool.name, {"ids": ["a"]} if tool.writes else {})
            said = await refused(client, tool.name, **given)
            assert "no Trivec server is running" in said and "`trivec serve`" in said
        for _ in range(2):  # another port each time
            with running_server(tmp_path, FAKE):
                assert (await told(client, "index", documents=[{"id": "a", "text": "a"}]))["stored"] == ["a"]
            assert "no Trivec server is running" in await refused(client, "search", query="a")

    run(("--data-dir", tmp_path), play)


def test_an_address_is_used_as_given(data: Path, tmp_path: Path) -> None:
    async def works(client: Any) -> None:
        await told(client, "list_collections")

    async def fails(client: Any) -> None:
        said = await refused(client, "list_collections")
        assert "no Trivec server answers at http://127.0.0.1:9" in said and "`trivec serve`" in said

    url = json.loads((data / "trivec.lock").read_text())["url"]
    run(("--data-dir", tmp_path, "--url", f"{url}/"), works)
    run(("--data-dir", data, "--url", "http://127.0.0.1:9"), fails)


def test_the_key_of_the_settings_is_sent_and_no_stronger_one_than_needed(tmp_path: Path) -> None:
    keys = {"TRIVEC_API_KEYS": "weak:read,strong"}

    async def may_write(client: Any) -> None:
        assert (await told(client, "index", documents=["a"]))["refused"] == []

    async def may_read(client: Any) -> None:
        assert "read_only_key" in await refused(client, "index", documents=["a"])
        await told(client, "search", query="a")

    async def may_nothing(client: Any) -> None:
        assert "unauthorized" in await refused(client, "search", query="a")

    with running_server(tmp_path, FAKE, **keys):
        folder = ("--data-dir", tmp_path)
        run(folder, may_write, **keys)
        run(folder, may_read, TRIVEC_API_KEYS="weak:read")
        run(folder, may_nothing, TRIVEC_API_KEYS="other")
        run(folder, may_nothing)

        async def reads_with_the_weak_key(client: Any) -> None:
            # The strong key is wrong here, so an answer shows that the other one was sent.
            await told(client, "search", query="a")

        run((*folder, "--read-only"), reads_with_the_weak_key, TRIVEC_API_KEYS="wrong,weak:read")


def test_nothing_but_the_protocol_is_on_standard_output(data: Path) -> None:
    """Lines that are no messages, and half a surrogate pair as JavaScript hosts write it."""
    opening = {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "x", "version": "1"},
    }
    search = {"name": "search", "arguments": {"query": "HALF", "filter": {"x": "NAN"}}}
    lines = [
        "no JSON",
        "[1",
        json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": opening}),
        json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}),
        json.dumps({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": search}).replace(
            "HALF", "cut \\ud83d"
        ),
        json.dumps({"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": search}).replace(
            '"NAN"', "NaN"
        ),
        json.dumps({"jsonrpc": "2.0", "id": 4, "method": "tools/call", "params": {"name": "search"}}),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "mcp", "--data-dir", str(data)],
        cwd=ROOT,
        env={**os.environ, "TRIVEC_TYPO": "warned of on standard error"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    process.stdin.write("".join(line + "\n" for line in lines))
    process.stdin.flush()
    answers = {}
    while len(answers) < 4:
        message = json.loads(process.stdout.readline())
        answers[message["id"]] = message["result"]
    rest, warned = process.communicate()
    assert rest == "" and process.returncode == 0
    assert "TRIVEC_TYPO" in warned and "Traceback" not in warned
    assert not answers[2].get("isError"), answers[2]
    assert "JSON cannot hold" in answers[3]["content"][0]["text"]
    assert "query: Field required" in answers[4]["content"][0]["text"]


def test_over_http_each_agent_has_the_rights_of_the_key_it_sends(tmp_path: Path) -> None:
    keys = {"TRIVEC_API_KEYS": "weak:read,strong"}
    from mcp.client.streamable_http import streamable_http_client

    async def call(url: str, key: str | None, tool: str, **arguments: object) -> Any:
        from httpx2 import AsyncClient

        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with (
            AsyncClient(headers=headers, timeout=60) as http,
            mcp.Client(streamable_http_client(url, http_client=http), mode="legacy") as client,
        ):
            return await client.call_tool(tool, arguments)

    async def play(url: str) -> None:
        assert not (await call(url, "strong", "index", documents=["a"])).is_error
        assert "read_only_key" in (await call(url, "weak", "index", documents=["a"])).content[0].text
        assert not (await call(url, "weak", "search", query="a")).is_error
        assert "unauthorized" in (await call(url, None, "search", query="a")).content[0].text

    with running_server(tmp_path, FAKE, **keys):
        process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "mcp", "--http", "127.0.0.1:0", "--data-dir", str(tmp_path)],
            cwd=ROOT,
            env={**os.environ, **keys},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stderr is not None
            url = process.stderr.readline().split()[-1]
            asyncio.run(play(url))
            # A page of another site must not reach it through the browser of who runs it.
            foreign = httpx.post(url, json={}, headers={"Host": "evil.example"})
            assert foreign.status_code in (403, 421)
        finally:
            process.terminate()
            out, _ = process.communicate()
        assert out == ""


def test_the_configurations_of_the_guide_start_a_server(data: Path) -> None:
    """`trivec` is the script of an installation; here it is the same module of this checkout."""
    guide = (ROOT / "docs" / "rag.md").read_text(encoding="utf-8")
    blocks = [json.loads(one) for one in re.findall(r"```json\n(.*?)```", guide, re.DOTALL)]
    assert len(blocks) == 2
    url = json.loads((data / "trivec.lock").read_text())["url"]
    for block in blocks:
        (entry,) = block["mcpServers"].values()
        assert entry["command"] == "trivec" and entry["args"][0] == "mcp"
        options = [url if one.startswith("http://") else one for one in entry["args"][1:]]

        async def play(client: Any) -> None:
            await told(client, "list_collections")

        run(tuple(options), play, TRIVEC_DATA_DIR=str(data), **entry.get("env", {}))
    for tool in TOOLS:
        assert f"| `{tool.name}` |" in guide


def cli(*arguments: str, blocked: str = "") -> subprocess.CompletedProcess[str]:
    block = f"import sys; sys.modules[{blocked!r}] = None; " if blocked else "import sys; "
    code = f"{block}from app.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, "mcp", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def test_wrong_usage_is_one_line() -> None:
    for options, message, status in [
        (("--url", "localhost:8000"), "--url: an address such as", 2),
        (("--http", "here"), "--http: a port", 2),
        (("--http", "127.0.0.1:70000"), "--http: a port", 2),
        (("--api-keys-file", "/nowhere/keys"), "api_keys_file cannot be read", 1),
    ]:
        found = cli(*options)
        assert found.returncode == status and message in found.stderr and "Traceback" not in found.stderr
    for missing in ("mcp", "mcp_types"):
        found = cli(blocked=missing)
        assert found.returncode == 1 and found.stderr.count("\n") == 1
        assert "pip install 'trivec[mcp]'" in found.stderr


def test_a_word_is_found_around_its_token() -> None:
    text = "obra de Gaudí, 长城 हिन्दी x" + "y" * 40
    assert word_at(text, (7, 9)) == "Gaudí" == word_at(text, (11, 12))
    assert word_at(text, (15, 16)) == "长"
    assert word_at(text, (19, 20)) == "हिन्दी"
    assert word_at(text, (len(text) - 2, len(text))) == "yy"


def test_an_explanation_without_offsets_or_outputs_still_says_something() -> None:
    row = {"query_token": None, "query_offset": None, "document_token": None, "document_offset": None}
    matched = [{"token": "▁ud", "id": 1, "query_weight": 1.0, "document_weight": 0.5, "product": 0.5}]
    said = in_words("q", "t", {"matched_tokens": matched, "alignment": [{**row, "similarity": 0.5}]})
    assert said == "Shared words and their part of the sparse score: ud 0.50."
    assert in_words("q", "t", {"matched_tokens": [], "alignment": []}) == "No word is shared with the query."
