"""A request's route and method as labels: names of ours, never what a client wrote, so that there are few."""

from __future__ import annotations

from typing import Any

from starlette.routing import Mount
from starlette.types import Scope

UNMATCHED = "unmatched"
"""Requests of no route, and those that were refused before one was looked for."""
OTHER_METHOD = "_OTHER"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def method_label(method: str) -> str:
    """The method, or one word for all that are no usual ones."""
    return method if method in METHODS else OTHER_METHOD


def route_label(scope: Scope, application: Any) -> str:
    """The template of the route that took the request, e.g. `/collections/{name}`, prefixes among it.

    `application` is the one that was called: a mounted one leaves itself in the scope.
    """
    prefix = _mounted(scope, application)
    # FastAPI: what the route is with the prefix of its router; Starlette: the route as it was declared.
    context = (scope.get("fastapi") or {}).get("effective_route_context")
    path = getattr(context, "path", None) or getattr(scope.get("route"), "path", None)
    if isinstance(path, str):
        return prefix + path
    if prefix:
        return prefix
    plain = {getattr(route, "path", None) for route in getattr(application, "routes", ())}
    asked = scope["path"]
    return asked if asked in plain and "{" not in asked else UNMATCHED


def _mounted(scope: Scope, application: Any) -> str:
    """The path of the mounted application that took the request; empty where there is none."""
    below = str(scope.get("root_path", "")).removeprefix(str(scope.get("app_root_path", "")))
    mounts = {one.path for one in getattr(application, "routes", ()) if isinstance(one, Mount)}
    return below if below in mounts else ""
