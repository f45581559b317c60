"""The command line's way to a collection: over HTTP to a running server, else to the same service in-process.

Either way the request is one of the HTTP contract: what the command line can do, a client can do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from app.index.owner import owner
from app.quiet import import_engine
from app.settings import Settings


class ClientError(Exception):
    """The service answered with an error, or did not answer."""


class ServiceClient:
    """A thin client of the native routes; every method raises ClientError."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def post(
        self, path: str, *, json: object = None, content: bytes | None = None, kind: str = "application/json"
    ) -> dict[str, Any]:
        """POST JSON or a body of another kind; a 422 that has per-document results is an answer too."""
        try:
            if content is None:
                reply = await self._http.post(path, json=json)
            else:
                reply = await self._http.post(path, content=content, headers={"Content-Type": kind})
        except httpx.HTTPError as error:
            raise ClientError(f"no answer from {self._http.base_url}: {error}") from error
        return answer_of(reply)

    async def wait_ready(self) -> None:
        """Wait until the model answers."""
        while True:
            try:
                reply = await self._http.get("/health/ready")
            except httpx.HTTPError as error:
                raise ClientError(f"no answer from {self._http.base_url}: {error}") from error
            if reply.status_code != 503:
                return
            await asyncio.sleep(0.1)


def answer_of(reply: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer; per-document results are one too. Raises ClientError."""
    try:
        body = reply.json()
    except ValueError as error:
        raise ClientError(f"{reply.url} does not speak like Trivec (status {reply.status_code})") from error
    if not isinstance(body, dict):
        raise ClientError(f"{reply.url} does not speak like Trivec (status {reply.status_code})")
    if reply.is_success or "results" in body:
        return body
    problem = body.get("error")
    if not isinstance(problem, dict):
        raise ClientError(f"{reply.url} does not speak like Trivec (status {reply.status_code})")
    where = f" ({problem['param']})" if problem.get("param") else ""
    raise ClientError(f"{problem.get('code', reply.status_code)}{where}: {problem.get('message', '')}")


@asynccontextmanager
async def connect(
    settings: Settings, url: str | None, *, timeout_s: float = 600.0
) -> AsyncIterator[ServiceClient]:
    """The service that holds the data folder: at `url`, at the address in its lock file, or started here."""
    held = settings.keys()
    keys = [key for key in held if not key.read_only] or list(held)
    headers = {"X-Request-Timeout": f"{timeout_s:g}"}
    if keys:
        headers["Authorization"] = f"Bearer {keys[0].secret.decode()}"
    if url is None and (holder := owner(settings.data_dir)) is not None:
        url = holder.url
    if url is not None:
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout_s) as http:
            client = ServiceClient(http)
            await client.wait_ready()
            yield client
        return
    from app.main import create_app  # a client of a running server does without the service's own modules

    import_engine(settings.engine)
    app = create_app(settings)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=transport, base_url="http://trivec", headers=headers, timeout=timeout_s
        ) as http,
    ):
        client = ServiceClient(http)
        await client.wait_ready()
        yield client
