"""The server behind the tools: looked for at each request, for it may start later, or move to another port.

It starts no server itself: an agent's host starts and ends what speaks to the agent as it likes, and a data
folder has one owner.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from app.client import ClientError, answer_of
from app.index.owner import owner

TIMEOUT_S = 300.0
"""For one request; large documents take a CPU a while."""
LOADING_PATIENCE_S = 30.0
"""How long a server that still loads its model is waited for."""
_PAUSE_S = 0.25


@dataclass(frozen=True, slots=True)
class Remote:
    """Requests to a Trivec server: to `url`, or to the one that holds the data folder at that moment."""

    http: httpx.AsyncClient
    data_dir: Path
    url: str | None
    authorization: str | None = None
    """The header that goes with each request."""

    def of_caller(self, authorization: str | None) -> Remote:
        """The same server with the rights of another caller."""
        return replace(self, authorization=authorization)

    async def request(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """The JSON object that the server answers. Raises ClientError in its words, or how to start it."""
        content = None if body is None else _encoded(body)
        patient_until = time.monotonic() + LOADING_PATIENCE_S
        while True:
            reply = await self._send(self.address(), method, path, content)
            if reply.status_code != 503 or time.monotonic() > patient_until or not _loads(reply):
                return answer_of(reply)
            await asyncio.sleep(_PAUSE_S)

    def address(self) -> str:
        """Where the server answers. Raises ClientError where no server holds the data folder."""
        if self.url is not None:
            return self.url
        holder = owner(self.data_dir)
        if holder is None:
            raise ClientError(
                f"no Trivec server is running on the data folder {self.data_dir}; start one there with "
                "`trivec serve`, or name one with `trivec mcp --url`"
            )
        if holder.url is None:
            raise ClientError(
                f"the data folder {self.data_dir} is in use by "
                f"{'another process' if holder.pid is None else f'process {holder.pid}'} that is no server, "
                "or not one yet; try again"
            )
        return holder.url

    async def _send(self, address: str, method: str, path: str, content: bytes | None) -> httpx.Response:
        headers = {"X-Request-Timeout": f"{TIMEOUT_S:g}"}
        if self.authorization is not None:
            headers["Authorization"] = self.authorization
        if content is not None:
            headers["Content-Type"] = "application/json"
        try:
            return await self.http.request(
                method, address.rstrip("/") + path, content=content, headers=headers, timeout=TIMEOUT_S + 10
            )
        except httpx.ConnectError as error:
            raise ClientError(
                f"no Trivec server answers at {address} ({error}); start one with `trivec serve`"
            ) from error
        except httpx.HTTPError as error:
            raise ClientError(
                f"{address} gave no answer ({type(error).__name__}); whether it did its work is not known"
            ) from error


def _encoded(body: object) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        raise ClientError("the arguments hold a number or a text that JSON cannot hold") from None


def _loads(reply: httpx.Response) -> bool:
    try:
        answer_of(reply)
    except ClientError as error:
        return str(error).startswith("not_ready")
    return False
