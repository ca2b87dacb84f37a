"""Describes exported usage as CloudEvents 1.0, and compares sums of it. Pure."""

from collections.abc import Iterable, Mapping
from datetime import date
from operator import itemgetter
from typing import Literal, NamedTuple, TypeVar
from uuid import UUID

import msgspec

from shared.types import KeyId, MicroCredits, ModelName, Moment, TenantId

TYPE = "aimesh.usage"

_Key = TypeVar("_Key")


class UsageData(msgspec.Struct, frozen=True):
    model: ModelName | None
    #: None also for sums of a minute.
    key_id: KeyId | None
    #: 0 for a refund.
    requests: int
    tokens: int
    prompt_tokens: int
    completion_tokens: int
    covered_tokens: int
    #: Negative for a refund.
    cost_micro: MicroCredits
    #: All but the covered ones; of a refund, those of its request, negative.
    uncovered_tokens: int = 0
    #: flex: it ran behind live requests, at the price of batches.
    service_tier: Literal["default", "flex"] = "default"


#: Reads it from a row of the database.
data_columns = itemgetter(*UsageData.__struct_fields__)


class UsageEvent(msgspec.Struct, frozen=True):
    """A settled request, a refund, or what an account has used of a model in a minute."""

    #: Every attempt to send it has the same.
    id: UUID
    #: The account that pays, a user or organization.
    subject: TenantId
    #: The settlement.
    time: Moment
    data: UsageData
    #: The mesh.
    source: str
    type: str = TYPE
    specversion: str = "1.0"

    @property
    def account_day(self) -> tuple[TenantId, date]:
        return self.subject, self.time.date()

    @property
    def total(self) -> "UsageSum":
        return UsageSum(self.data.tokens, self.data.cost_micro)


class UsageSum(NamedTuple):
    tokens: int
    cost_micro: int


#: By account and day of settlement.
DaySums = dict[tuple[TenantId, date], UsageSum]


def sum_up(parts: Iterable[tuple[_Key, UsageSum]]) -> dict[_Key, UsageSum]:
    sums: dict[_Key, UsageSum] = {}
    for key, part in parts:
        before = sums.get(key)
        sums[key] = part if before is None else UsageSum(before.tokens + part.tokens, before.cost_micro + part.cost_micro)
    return sums


def difference(expected: Mapping[_Key, UsageSum], found: Mapping[_Key, UsageSum]) -> UsageSum:
    """Return the sum of the absolute differences."""
    none = UsageSum(0, 0)
    pairs = [(expected.get(key, none), found.get(key, none)) for key in expected.keys() | found.keys()]
    return UsageSum(sum(abs(a.tokens - b.tokens) for a, b in pairs), sum(abs(a.cost_micro - b.cost_micro) for a, b in pairs))
