"""The columns of a list. A surface decides how they look, where the list stands, and what can be done with a row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Generic, TypeAlias, TypeVar

Row = TypeVar("Row")


class Tone(StrEnum):
    PLAIN = ""
    GOOD = "good"
    WARN = "warn"
    BAD = "bad"
    OFF = "off"


#: None and no names are a dash. Several names are apart, because a page isolates each from the text around it.
Shown: TypeAlias = str | int | datetime | tuple[str, ...] | None


def _plain(_row: object) -> Tone:
    return Tone.PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Column(Generic[Row]):
    title: str
    show: Callable[[Row], Shown]
    tone: Callable[[Row], Tone] = _plain
    #: 1 is always shown; of the others, a narrow terminal hides the highest first.
    rank: int = 1
    is_code: bool = False
    is_number: bool = False
    #: A name that people chose, or several: it may wrap.
    wraps: bool = False
    #: Goes below its row in a terminal that is too narrow.
    below: bool = False
    #: An id that commands take. Pages have links and buttons instead.
    for_commands: bool = False
    #: A table of a page shows the day of a time, and the rest in its title.
    is_day: bool = False
    #: Not in tables, except for `-o wide`.
    only_wide: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing(Generic[Row]):
    columns: tuple[Column[Row], ...]
    #: What it says without rows. A surface adds how to make the first one.
    empty: str
    #: Whether a row only stands for the past.
    is_over: Callable[[Row], bool] = lambda _row: False


def of_most(number: int, most: int | None) -> str:
    """Return 3 of 5, or 3 without a limit."""
    return f"{number:,}" if most is None else f"{number:,} of {most:,}"


def pairs(labels: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{key}={value}" for key, value in sorted(labels.items()))


def percent(share: float) -> str:
    return f"{share:g} %"
