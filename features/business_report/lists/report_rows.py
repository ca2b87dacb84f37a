"""Turns a business report into rows with readable names, and computes figures from its sums. Pure."""

import json
from collections.abc import Mapping
from uuid import UUID

import msgspec

from shared import amounts
from shared.api.business import BusinessGrouping, BusinessReport, BusinessSum, GetBusinessReport, NewAccounts
from shared.types import MicroCredits, UserId

_OF_IDS = (BusinessGrouping.USER, BusinessGrouping.OWNER, BusinessGrouping.ORGANIZATION, BusinessGrouping.KEY)


class ReportLine(msgspec.Struct, frozen=True):
    #: None for requests without a model or a known worker, and for workers without owner or label.
    name: str | None
    sum: BusinessSum


def ids_in(report: BusinessReport, by: BusinessGrouping) -> tuple[UserId, ...]:
    """Return the users, organizations or keys whose names the rows need."""
    return tuple(UserId(UUID(row.name)) for row in report.rows if row.name) if by in _OF_IDS else ()


def lines(report: BusinessReport, query: GetBusinessReport, names: Mapping[str, str]) -> tuple[ReportLine, ...]:
    """Return the rows. ``names`` maps ids to names; an unknown id stays as it is."""
    whole_labels = query.by is BusinessGrouping.LABEL and query.label is None
    return tuple(ReportLine(_named(row.name, names, whole_labels=whole_labels), row.sum) for row in report.rows)


def _named(name: str | None, names: Mapping[str, str], *, whole_labels: bool) -> str | None:
    if name is None:
        return None
    if whole_labels:
        return " ".join(f"{key}={value}" for key, value in sorted(json.loads(name).items()))
    return names.get(name, name)


def from_balances(report: BusinessReport) -> MicroCredits:
    return MicroCredits(report.total.cost_micro - report.given_back_micro)


def each(micro: MicroCredits, number: int) -> MicroCredits | None:
    """Return the average, rounded to the nearest micro-credit; None if ``number`` is 0."""
    return MicroCredits((2 * micro + number) // (2 * number)) if number else None


def tokens_per_second(one: BusinessSum) -> float | None:
    return 1000 * one.made_tokens / one.made_ms if one.made_ms else None


def internal_share(one: BusinessSum) -> float | None:
    """Return the share of successful requests that our own machines or the cache answered; None without any."""
    return 1 - one.external / one.succeeded if one.succeeded else None


def reduction(one: BusinessSum) -> float | None:
    """Return the share of upstream money that our own machines avoided; None if there is none of either."""
    both = one.avoided_micro + one.upstream_micro
    return one.avoided_micro / both if both else None


def registered(new: NewAccounts) -> int:
    return sum(day.registrations for day in new.days)


def keys_made(new: NewAccounts) -> int:
    return sum(day.keys for day in new.days)


def head(by: BusinessGrouping) -> tuple[str, ...]:
    return (str(by), "requests", *BusinessSum.__struct_fields__, "cost_credits", "saved_credits")


def cells(line: ReportLine) -> tuple[str | int, ...]:
    """Return the row's exact values, in the order of ``head``."""
    one = line.sum
    numbers = tuple(getattr(one, name) for name in BusinessSum.__struct_fields__)
    return (line.name or "", one.requests, *numbers, amounts.written(one.cost_micro), amounts.written(one.saved_micro))
