"""`trivec mcp`: a Trivec server's collections as tools for agents, over the Model Context Protocol.

It is a client of the HTTP contract and holds neither model nor index. Standard output carries the protocol
alone. Needs the official SDK, `pip install 'trivec[mcp]'`; what the tools are is `app.agents`' affair.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import anyio
import httpx
import uvicorn
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    ToolAnnotations,
    jsonrpc_message_adapter,
)
from mcp_types import Tool as Described
from pydantic import ValidationError
from starlette.requests import Request

from app.agents.arguments import Answer, schema_of
from app.agents.remote import Remote
from app.agents.tools import TOOLS, Tool, ToolError
from app.client import ClientError
from app.settings import Settings

INSTRUCTIONS = """Trivec searches documents by meaning, by words and by exact phrasing at once, in many
languages. Documents live in collections; `default` is used where none is named. Search first; a hit's
`text` may be cut, get_document reads the rest. Metadata filters narrow a search down."""

Context = ServerRequestContext[Remote, Request]


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen for agents over HTTP."""

    host: str
    port: int


def serve_stdio(settings: Settings, url: str | None, *, read_only: bool) -> None:
    """Speak to one agent over standard input and output until it closes them."""
    server = make_server(settings, url, read_only=read_only, own_key=True)
    # Nothing is lost here, and the thread that waits for a line would keep Ctrl-C waiting too.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.stdin.isatty():
        _say("trivec: an agent's program is expected to speak MCP here; Ctrl-C ends")

    async def run() -> None:
        async with stdio_server() as (incoming, outgoing), anyio.create_task_group() as tasks:
            send, receive = anyio.create_memory_object_stream[SessionMessage | Exception](0)

            async def mend() -> None:
                async with send:
                    async for message in incoming:
                        await send.send(_mended(message))

            tasks.start_soon(mend)
            await server.run(receive, outgoing, server.create_initialization_options())

    try:
        anyio.run(run)
    except* BrokenPipeError:
        _say("trivec: the agent is gone")


def _mended(message: SessionMessage | Exception) -> SessionMessage | Exception:
    """A message that could not be read for half a surrogate pair, with U+FFFD in its place.

    JavaScript hosts write such halves where they cut a text, and the SDK would leave the call unanswered.
    """
    if not isinstance(message, ValidationError):
        return message
    line = message.errors(include_url=False)[0]["input"]
    try:
        whole = json.dumps(json.loads(line), ensure_ascii=False)
        text = whole.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return SessionMessage(jsonrpc_message_adapter.validate_json(text, by_name=False))
    except (TypeError, ValueError, RecursionError):
        return message


def serve_http(settings: Settings, url: str | None, address: Address, *, read_only: bool) -> None:
    """Speak to any number of agents over streamable HTTP at `/mcp`, until SIGTERM or SIGINT.

    Each agent has the rights of the API key that it sends itself: whoever reaches the port gets no other.
    """
    server = make_server(settings, url, read_only=read_only, own_key=False)
    app = server.streamable_http_app(stateless_http=True, json_response=True, host=address.host)
    config = uvicorn.Config(app, host=address.host, port=address.port, log_config=None, access_log=False)
    _Announcing(config).run()


class _Announcing(uvicorn.Server):
    """Says where it listens: port 0 is known only once it does."""

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.servers:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            _say(f"Trivec's MCP server listens on http://{shown}:{port}/mcp")


def make_server(settings: Settings, url: str | None, *, read_only: bool, own_key: bool) -> Server[Remote]:
    """The protocol's side of the tools; with `own_key` a caller that sends no key has that of the settings.

    Raises ValueError where the settings' key file cannot be used.
    """
    offered = {tool.name: tool for tool in TOOLS if not (read_only and tool.writes)}
    key = _key(settings, read_only=read_only) if own_key else None

    @asynccontextmanager
    async def lifespan(_: Server[Remote]) -> AsyncIterator[Remote]:
        async with httpx.AsyncClient() as http:
            remote = Remote(http, settings.data_dir, url, key)
            try:
                remote.address()
            except ClientError as error:
                _say(f"trivec: {error}; until then every tool answers so")
            yield remote

    async def list_tools(context: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=[_described(tool) for tool in offered.values()])

    async def call_tool(context: Context, params: CallToolRequestParams) -> CallToolResult:
        remote = context.lifespan_context
        if not own_key:
            sent = context.request.headers.get("authorization") if context.request is not None else None
            remote = remote.of_caller(sent)
        tool = offered.get(params.name)
        if tool is None:
            return _failed(_not_offered(params.name, read_only=read_only))
        try:
            return _succeeded(await tool.run(remote, params.arguments or {}))
        except (ToolError, ClientError) as error:
            return _failed(str(error))
        except (KeyError, TypeError, ValidationError):
            return _failed("what answered is no Trivec server, or one of another version")

    return Server(
        "trivec",
        version=_version(),
        title="Trivec",
        instructions=INSTRUCTIONS,
        lifespan=lifespan,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def _key(settings: Settings, *, read_only: bool) -> str | None:
    """The header with the key that may do what is offered and no more, where there is one."""
    keys = sorted(settings.keys(), key=lambda key: key.read_only is not read_only)
    return f"Bearer {keys[0].secret.decode()}" if keys else None


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _version() -> str:
    try:
        return version("trivec")
    except PackageNotFoundError:
        return ""


def _described(tool: Tool) -> Described:
    return Described(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=schema_of(tool.arguments, "validation"),
        output_schema=schema_of(tool.answer, "serialization"),
        annotations=ToolAnnotations(
            read_only_hint=not tool.writes,
            destructive_hint=tool.destroys,
            idempotent_hint=not tool.writes,
            open_world_hint=False,
        ),
    )


def _not_offered(name: str, *, read_only: bool) -> str:
    if read_only and any(tool.name == name for tool in TOOLS):
        return f"{name} is not offered: this server only reads (--read-only)"
    return "there is no such tool"


def _succeeded(answer: Answer) -> CallToolResult:
    fields = answer.model_dump(mode="json", exclude_none=True)
    # Hosts that know no structured answers show the text.
    text = json.dumps(fields, ensure_ascii=False)
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=fields)


def _failed(message: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=message)], is_error=True)
