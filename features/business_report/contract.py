"""gateway: monthly statements of node owners."""

import msgspec

from shared.api.method import PEOPLE, Body, Method
from shared.types import MicroCredits


class GetOwnerStatements(Body, frozen=True):
    """Of all owners for an administrator, else of the caller."""

    #: UTC, such as 2026-11.
    month: str


class OwnerStatement(Body, frozen=True, omit_defaults=False, kw_only=True):
    #: A username, or an id without one; None for nodes without an owner and answers without a node.
    owner: str | None
    requests: int
    prompt_tokens: int
    completion_tokens: int
    #: What answers of the owner's nodes took from balances, before refunds, and its share of all; None if that is nothing, and for owners.
    earned_micro: MicroCredits
    earned_share: float | None
    #: None if nothing was measured; counter, power or watts.
    kwh: float | None
    measured_by: tuple[str, ...]
    #: In credits; None without a KWH_PRICE.
    energy_cost: float | None

    def without_share(self) -> "OwnerStatement":
        return msgspec.structs.replace(self, earned_share=None)


class OwnerStatements(Body, frozen=True, omit_defaults=False):
    month: str
    rows: tuple[OwnerStatement, ...]
    #: Why the energy is unknown; empty if it is known.
    missing: str


get_owner_statements = Method("gateway.getOwnerStatements", GetOwnerStatements, OwnerStatements, callers=PEOPLE)
