"""A business report as people and spreadsheets read it: rows under the names that people know, and what follows from the sums. Pure."""

import json
from collections.abc import Mapping
from uuid import UUID

import msgspec

from shared import amounts
from shared.api.business import BusinessGrouping, BusinessReport, BusinessSum, GetBusinessReport, NewAccounts
from shared.types import MicroCredits, UserId

#: Those whose rows are about users, by their ids.
_OF_USERS = (BusinessGrouping.USER, BusinessGrouping.OWNER)


class ReportLine(msgspec.Struct, frozen=True):
    """A row of the report."""

    #: None for what has no model, ran on no worker that is known, or on one without owner or label.
    name: str | None
    sum: BusinessSum


def ids_in(report: BusinessReport, by: BusinessGrouping) -> tuple[UserId, ...]:
    """Whose names the rows need."""
    return tuple(UserId(UUID(row.name)) for row in report.rows if row.name) if by in _OF_USERS else ()


def lines(report: BusinessReport, asked: GetBusinessReport, names: Mapping[str, str]) -> tuple[ReportLine, ...]:
    """``names`` by the ids; who is in none keeps the id."""
    whole_labels = asked.by is BusinessGrouping.LABEL and asked.label is None
    return tuple(ReportLine(_named(row.name, names, whole_labels=whole_labels), row.sum) for row in report.rows)


def _named(name: str | None, names: Mapping[str, str], *, whole_labels: bool) -> str | None:
    if name is None:
        return None
    if whole_labels:
        return " ".join(f"{key}={value}" for key, value in sorted(json.loads(name).items()))
    return names.get(name, name)


# --- what follows from the sums -------------------------------------------------------------------------------------------


def revenue(report: BusinessReport) -> MicroCredits:
    return MicroCredits(report.total.cost_micro - report.given_back_micro)


def each(micro: MicroCredits, number: int) -> MicroCredits | None:
    """Of so many, one: to the nearest micro-credit; None of none."""
    return MicroCredits((2 * micro + number) // (2 * number)) if number else None


def tokens_per_second(one: BusinessSum) -> float | None:
    """While an answer was made."""
    return 1000 * one.made_tokens / one.made_ms if one.made_ms else None


def registered(new: NewAccounts) -> int:
    return sum(day.registrations for day in new.days)


def keys_made(new: NewAccounts) -> int:
    return sum(day.keys for day in new.days)


# --- as a table -----------------------------------------------------------------------------------------------------------


def head(by: BusinessGrouping) -> tuple[str, ...]:
    return (str(by), "requests", *BusinessSum.__struct_fields__, "cost_credits", "saved_credits")


def cells(line: ReportLine) -> tuple[str | int, ...]:
    """Exact numbers, in the order of ``head``."""
    one = line.sum
    numbers = tuple(getattr(one, name) for name in BusinessSum.__struct_fields__)
    return (line.name or "", one.requests, *numbers, amounts.written(one.cost_micro), amounts.written(one.saved_micro))
