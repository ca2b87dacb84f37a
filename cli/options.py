"""Makes types of options from the contract, so that a command repeats no bounds. Nothing of the contract is loaded before a value is
read or the command's own help is printed."""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click
import msgspec

if TYPE_CHECKING:
    from msgspec import inspect

Command = TypeVar("Command", bound=Callable[..., object])
#: Help does not name such bounds, and the service refuses what is beyond them.
_UNTOLD = 2**31
#: Returns the request that the option goes into; a function, because the contract is loaded late.
Request = Callable[[], type[msgspec.Struct]]


class _Bounds:
    """The attributes of click's ranges, as a field of the contract has them."""

    clamp = False

    def __init__(self, request: Request, field: str, unit: int = 1) -> None:
        self._request = request
        self._field = field
        #: How many of the field's units one of the option's has.
        self._unit = unit

    @cached_property
    def _info(self) -> "inspect.IntType | inspect.FloatType":
        from shared.protocol import field_errors

        return cast("inspect.FloatType", field_errors.bounds_of(self._request(), self._field))

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


def whole_number(flag: str, request: Request, field: str, *, unit: int = 1, **settings: Any) -> Callable[[Command], Command]:
    """Add an option for this field of the request to a command. ``unit``: 3600 for hours if the field has seconds."""
    return click.option(flag, type=WholeNumber(request, field, unit), show_default="default" in settings, **settings)


def number(flag: str, request: Request, field: str, **settings: Any) -> Callable[[Command], Command]:
    """Add an option for this field of the request, or for one of its entries, to a command."""
    return click.option(flag, type=_Number(request, field), show_default="default" in settings, **settings)
