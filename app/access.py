"""What stands before a handler: the API key, the readiness of the model, and a body that is JSON.

These run before FastAPI looks at the body, so that a stranger's thirty megabytes are never parsed.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Coroutine, Sequence
from email.message import Message
from functools import partial
from typing import Any, ClassVar

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response

from app.errors import InvalidRequest, ReadOnlyKey, Unauthorized
from app.guard import deadline_of
from app.inflate import plain_receive
from app.service import service_of
from app.settings import ApiKey
from app.wire import LARGE_BODY_BYTES, parse_json, unmarked

_ZERO = re.compile(r"q\s*=\s*0(?:\.0*)?")
REST_OF_PATH = "rest"
"""Name of the convertor for a path's last part, e.g. `{id:rest}`."""


class _RestOfPath(Convertor[str]):
    """All that is left of a path.

    Starlette's own `path` stops at a line feed, so that `DELETE .../victim%0A` deleted `victim`.
    """

    regex = r"(?s:.*)\Z"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor(REST_OF_PATH, _RestOfPath())


def check_key(keys: Sequence[ApiKey], authorization: str | None, *, writes: bool) -> None:
    """Raise Unauthorized or ReadOnlyKey unless the header has a key that may do this.

    Every key is compared, each in constant time, so that neither the place of a key nor a
    shared prefix shows in the time that a refusal takes.
    """
    if not keys:
        return
    scheme, _, token = (authorization or "").partition(" ")
    given = token.strip().encode("utf-8", "surrogatepass")
    if scheme.lower() != "bearer":
        given = b""
    matching = [key for key in keys if hmac.compare_digest(key.secret, given)]
    if not matching:
        raise Unauthorized("an API key is needed: send it as `Authorization: Bearer <key>`")
    if writes and all(key.read_only for key in matching):
        raise ReadOnlyKey("this API key may read but not write")


class ParsedRequest(Request):
    """A request whose body was parsed by `parse_json`, which is stricter than the standard library."""

    parsed: Any = None

    async def json(self) -> Any:
        """The body that `_Gated` has parsed."""
        return self.parsed


def _checked(body: bytes, validate: Callable[..., tuple[Any, Sequence[Any]]]) -> Any:
    """A large body as the model that the handler takes, which FastAPI then has nothing left to check of."""
    value, faults = validate(parse_json(unmarked(body)), loc=("body",))
    if faults:
        raise RequestValidationError(faults)
    return value


class _Gated(APIRoute):
    """A route that takes requests of holders of a key only, most of them once the model has answered."""

    writes: ClassVar[bool]
    needs_model: ClassVar[bool] = True

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler behind the checks."""
        handler = super().get_route_handler()
        body_field = self.body_field

        async def gated(request: Request) -> Response:
            service = service_of(request)
            check_key(service.keys, request.headers.get("authorization"), writes=self.writes)
            if self.needs_model:
                service.require_ready()
            deadline_of(request).writes = self.writes
            parsed = ParsedRequest(request.scope, plain_receive(request))
            if body_field is not None and (body := await parsed.body()):
                if media_type(request) != "application/json":
                    raise InvalidRequest("the body must be sent as application/json", param="Content-Type")
                if len(body) > LARGE_BODY_BYTES:
                    parsed.parsed = await service.on_the_wire(partial(_checked, body, body_field.validate))
                else:
                    parsed.parsed = parse_json(unmarked(body))
            return await handler(parsed)

        return gated


class ReadRoute(_Gated):
    """Open to every key."""

    writes = False


class WatchRoute(_Gated):
    """Open to every key, while the model loads and while the service shuts down too."""

    writes = False
    needs_model = False


class WriteRoute(_Gated):
    """Closed to read-only keys."""

    writes = True


def accepts(request: Request, *kinds: str) -> bool:
    """Whether `Accept` names one of these media types; `*/*` names none, `q=0` takes it back."""
    for one in request.headers.get("accept", "").lower().split(","):
        kind, *parameters = (part.strip() for part in one.split(";"))
        if kind in kinds and not any(_ZERO.fullmatch(parameter) for parameter in parameters):
            return True
    return False


def media_type(request: Request) -> str:
    """The body's media type without parameters, in lower case."""
    message = Message()
    message["content-type"] = request.headers.get("content-type", "application/octet-stream")
    return message.get_content_type()
