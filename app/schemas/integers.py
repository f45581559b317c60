"""Integers of request bodies: 5.0 is one, as in JSON Schema; encoders that know only doubles write it so.

Not 5.5, not "5", not true. Nor a double from 2**53 on, which may be the neighbour of what was written; no
field takes so large a number.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeGuard

from pydantic import BeforeValidator, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import InitErrorDetails, PydanticCustomError

_EXACT_BELOW = 2**53


def _is_integer(value: Any) -> TypeGuard[float]:
    return isinstance(value, float) and value.is_integer()


def _is_exact(value: float) -> bool:
    return abs(value) < _EXACT_BELOW


def _too_large() -> PydanticCustomError:
    return PydanticCustomError(
        "too_large", "a number is too large: with a point or an exponent, an integer must be below 2^53"
    )


def _as_integer(value: Any) -> Any:
    if not _is_integer(value):
        return value
    if not _is_exact(value):
        raise _too_large()
    return int(value)


def _rewrite(items: list[Any]) -> None:
    """Write integers as such where they are, in lists within the list too: it may have a million."""
    for place, item in enumerate(items):
        if isinstance(item, list):
            _rewrite(item)
        elif _is_integer(item) and _is_exact(item):
            items[place] = int(item)


def _refused_integer(error: ValidationError) -> InitErrorDetails | None:
    """What was refused first, where it is an integer after all."""
    first = error.errors(include_url=False)[0]
    if first["type"] != "int_type" or not _is_integer(first["input"]):
        return None
    return InitErrorDetails(type=_too_large(), loc=first["loc"], input=first["input"])


def _then_rewritten(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Look at single items only where one was refused that is an integer after all."""
    try:
        return validate(value)
    except ValidationError as error:
        if not isinstance(value, list) or _refused_integer(error) is None:
            raise
    _rewrite(value)
    try:
        return validate(value)
    except ValidationError as error:
        if (refused := _refused_integer(error)) is None:
            raise
        raise ValidationError.from_exception_data(error.title, [refused]) from None


INTEGER = BeforeValidator(_as_integer)
"""Marks an `int`; after its bounds, so that they reach the OpenAPI document."""
INTEGERS_WITHIN = WrapValidator(_then_rewritten)
"""Marks a list of integers, or of lists of them, at no cost where they are written as such."""

Count = Annotated[int, Field(ge=1), INTEGER]
Kept = Annotated[int, Field(ge=2), INTEGER]
"""Tokens kept of a text, `<s>` and `</s>` among them."""
Length = Annotated[int, Field(ge=2, le=8192), INTEGER]
"""The same, refused where it is more than any model takes."""
