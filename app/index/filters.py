"""The filter grammar, MongoDB-like: parsed here, answered for a whole collection by `facts.py`.

`{"lang": "en", "year": {"$gte": 2020}, "$or": [{"tags": {"$in": ["a"]}}, {"$not": {"draft": true}}]}`

A condition holds where ANY value at its path fulfils it: a list gives each of its elements, a list of
objects the fields of each. `$ne`, `$nin` and `$not` are plain negations, so they hold where the field is
absent. null equals null and absent. Types never mix: true is not 1, "1" is not 1; 1 and 1.0 are equal.
Strings compare by code point. `$not` with a list holds where none of the list does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from app.index.errors import FilterError, clipped

MAX_DEPTH = 32
"""Of a filter and of metadata: far beyond use, well within Python's own recursion."""
MAX_NODES = 1000
"""Conditions and listed values of one filter."""

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class AnyOf:
    """The field equals one of the values: `$eq`, `$in`."""

    path: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """The field lies on one side of a number or a string: `$gt`, `$gte`, `$lt`, `$lte`."""

    path: str
    operator: str
    bound: str | int | float


@dataclass(frozen=True, slots=True)
class Exists:
    """The field is there, whatever it holds."""

    path: str


@dataclass(frozen=True, slots=True)
class Every:
    """All parts hold; so do none at all."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Some:
    """At least one part holds."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: Filter


Filter = AnyOf | Range | Exists | Every | Some | Not

_RANGES = ("$gt", "$gte", "$lt", "$lte")
_OPERATORS = ("$eq", "$ne", "$in", "$nin", "$exists", "$not", *_RANGES)


def parse(source: object) -> Filter:
    """A filter as it came out of JSON; FilterError names the place and the operator that do not fit."""
    return _Parser().conditions(source, "", 1)


def matches(condition: Filter, metadata: Mapping[str, object]) -> bool:
    """Whether one document's metadata fulfils a filter, as `facts.select` would answer."""
    match condition:
        case AnyOf(path, values):
            found = list(_values_at(metadata, path))
            return (None in values and not found) or any(
                _equal(one, value) for one in found for value in values
            )
        case Range(path, operator, bound):
            return any(_compares(one, operator, bound) for one in _values_at(metadata, path))
        case Exists(path):
            return any(True for _ in _values_at(metadata, path))
        case Every(parts):
            return all(matches(part, metadata) for part in parts)
        case Some(parts):
            return any(matches(part, metadata) for part in parts)
        case Not(part):
            return not matches(part, metadata)


class _Parser:
    """Walks a filter and counts what it meets."""

    def __init__(self) -> None:
        self._nodes = 0

    def conditions(self, source: object, where: str, depth: int) -> Filter:
        """An object whose keys are paths or logical operators; all must hold."""
        if not isinstance(source, Mapping):
            raise FilterError(where, f"an object is expected, not {_type(source)}")
        self._deeper(where, depth)
        return _joined([self._entry(key, value, where, depth) for key, value in source.items()])

    def _entry(self, key: object, value: object, where: str, depth: int) -> Filter:
        if not isinstance(key, str):
            raise FilterError(where, f"a field's name is expected, not {_type(key)}")
        here = f"{where}.{key}" if where else key
        if key in ("$and", "$or"):
            parts = self._list(value, here, depth, key)
            return Every(parts) if key == "$and" else Some(parts)
        if key == "$not":
            if isinstance(value, Mapping):
                return Not(self.conditions(value, here, depth + 1))
            return Not(Some(self._list(value, here, depth, key)))
        if key.startswith("$"):
            raise FilterError(
                here, f"unknown operator {clipped(key)}; at this place $and, $or and $not are known", key
            )
        _check_text(key, here)
        if isinstance(value, Mapping):
            return self._operators(key, value, here, depth + 1)
        return AnyOf(key, (self._scalar(value, here, "$eq"),))

    def _list(self, value: object, where: str, depth: int, operator: str) -> tuple[Filter, ...]:
        if not isinstance(value, list | tuple) or not value:
            raise FilterError(
                where, f"{operator} takes a list of at least one filter, not {_type(value)}", operator
            )
        self._deeper(where, depth)
        return tuple(self.conditions(one, f"{where}[{place}]", depth + 1) for place, one in enumerate(value))

    def _operators(self, path: str, source: Mapping[object, object], where: str, depth: int) -> Filter:
        self._deeper(where, depth)
        if not source:
            raise FilterError(where, "an empty object; name an operator such as $eq")
        return _joined([self._operator(path, name, value, where, depth) for name, value in source.items()])

    def _operator(self, path: str, name: object, value: object, where: str, depth: int) -> Filter:
        if name not in _OPERATORS or not isinstance(name, str):
            known = ", ".join(_OPERATORS)
            hint = (
                ""
                if str(name).startswith("$")
                else f"; a nested field is spelt with a dot, as in {clipped(f'{path}.{name}')}"
            )
            raise FilterError(
                where, f"unknown operator {clipped(str(name))}; known are {known}{hint}", str(name)
            )
        here = f"{where}.{name}"
        if name == "$not":
            if not isinstance(value, Mapping):
                raise FilterError(here, f"$not takes an object of operators here, not {_type(value)}", name)
            return Not(self._operators(path, value, here, depth + 1))
        if name == "$exists":
            if not isinstance(value, bool):
                raise FilterError(here, f"$exists takes true or false, not {_type(value)}", name)
            self._count(here)
            return Exists(path) if value else Not(Exists(path))
        if name in ("$in", "$nin"):
            if not isinstance(value, list | tuple):
                raise FilterError(here, f"{name} takes a list, not {_type(value)}", name)
            self._count(here)
            among = AnyOf(path, tuple(self._scalar(one, here, name) for one in value))
            return among if name == "$in" else Not(among)
        scalar = self._scalar(value, here, name)
        if name in _RANGES:
            if scalar is None or isinstance(scalar, bool):
                raise FilterError(here, f"{name} takes a number or a string, not {_type(value)}", name)
            return Range(path, name, scalar)
        return AnyOf(path, (scalar,)) if name == "$eq" else Not(AnyOf(path, (scalar,)))

    def _scalar(self, value: object, where: str, operator: str) -> Scalar:
        self._count(where)
        if isinstance(value, str):
            _check_text(value, where)
        elif value is not None and not isinstance(value, bool | int | float):
            raise FilterError(
                where, f"{operator} takes strings, numbers, booleans or null, not {_type(value)}", operator
            )
        elif (reason := unfit_number(value)) is not None:
            raise FilterError(where, reason, operator)
        return value

    def _deeper(self, where: str, depth: int) -> None:
        self._count(where)
        if depth > MAX_DEPTH:
            raise FilterError(where, f"more than {MAX_DEPTH} levels deep")

    def _count(self, where: str) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise FilterError(where, f"more than {MAX_NODES} conditions and values")


def _joined(parts: list[Filter]) -> Filter:
    return parts[0] if len(parts) == 1 else Every(tuple(parts))


def _type(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    if isinstance(value, list | tuple) and not value:
        return "an empty list"
    return names.get(type(value), f"a {type(value).__name__}")


def _check_text(text: str, where: str) -> None:
    if not is_unicode(text):
        raise FilterError(repr(clipped(where)), "a lone surrogate is not a character")


def is_unicode(text: str) -> bool:
    """Whether a string can be written as UTF-8: a lone surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def unfit_number(value: object) -> str | None:
    """Why a number cannot be compared exactly, if so."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN and infinity are not JSON"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "an integer must fit in 64 bits; write it as a string"
    return None


def _values_at(node: object, path: str) -> Iterator[object]:
    """Every value at a dotted path of metadata, the list or object there included."""
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        here = (
            [value, *(one for one in value if not isinstance(one, list | tuple))]
            if _is_list(value)
            else [value]
        )
        if key == path:
            yield from here
        if path.startswith(f"{key}."):
            for one in here:
                yield from _values_at(one, path[len(key) + 1 :])


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def _equal(left: object, right: Scalar) -> bool:
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return (isinstance(left, list | tuple | Mapping) is False) and left == right


def _compares(value: object, operator: str, bound: str | int | float) -> bool:
    if isinstance(bound, str):
        return isinstance(value, str) and _ordered(value > bound, value == bound, operator)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return _ordered(value > bound, value == bound, operator)


def _ordered(greater: bool, equal: bool, operator: str) -> bool:
    return {"$gt": greater, "$gte": greater or equal, "$lt": not (greater or equal), "$lte": not greater}[
        operator
    ]
