"""Makes types of options from the contract, so that a command repeats no bounds. Nothing of the contract is loaded before a value is
read or the command's own help is printed."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import click
import msgspec
from msgspec import inspect

#: Help does not name such bounds, and the service refuses what is beyond them.
_UNTOLD = 2**31
#: Returns the request that the option goes into; a function, because the contract is loaded late.
Request = Callable[[], type[msgspec.Struct]]


class _Bounds:
    """The attributes of click's ranges, as a field of the contract has them."""

    clamp = False

    def __init__(self, request: Request, field: str, unit: int) -> None:
        self._request = request
        self._field = field
        #: How many of the field's units one of the option's has.
        self._unit = unit

    @cached_property
    def _info(self) -> inspect.IntType | inspect.FloatType:
        found = next(each.type for each in inspect.type_info(self._request()).fields if each.name == self._field)  # type: ignore[attr-defined]
        kinds = found.types if isinstance(found, inspect.UnionType) else (found,)
        return next(each for each in kinds if isinstance(each, inspect.IntType | inspect.FloatType))

    def _scaled(self, bound: float | None) -> Any:
        if bound is None or bound >= _UNTOLD:
            return None
        return bound if self._unit == 1 else bound // self._unit

    @cached_property
    def min(self) -> Any:
        return self._scaled(self._info.gt if self._info.ge is None else self._info.ge)

    @cached_property
    def max(self) -> Any:
        return self._scaled(self._info.lt if self._info.le is None else self._info.le)

    @cached_property
    def min_open(self) -> bool:
        return self._info.gt is not None

    @cached_property
    def max_open(self) -> bool:
        return self._info.lt is not None


class WholeNumber(_Bounds, click.IntRange):  # type: ignore[override]  # click sets them at once
    pass


class _Number(_Bounds, click.FloatRange):  # type: ignore[override]
    pass


def whole_number(request: Request, field: str, *, unit: int = 1) -> WholeNumber:
    """Return the type of an option for this field of the request. ``unit``: 3600 for hours if the field has seconds."""
    return WholeNumber(request, field, unit)


def number(request: Request, field: str) -> click.FloatRange:
    """Return the type of an option for this field of the request."""
    return _Number(request, field, 1)
