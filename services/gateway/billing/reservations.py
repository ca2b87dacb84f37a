"""Defines the ledger's reservations. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec

from services.gateway.billing.prices import Price
from services.gateway.facts.request_record import RouteUse
from services.gateway.facts.upstream_prices import TargetHold
from shared.api.auth import Budget
from shared.types import KeyId, MicroCredits, ModelName, NodeId, RequestId, TenantId


class Spending(msgspec.Struct, frozen=True):
    """What an account's plan and budgets let it spend. The default: everything is recorded, and nothing is included or refused."""

    #: The tokens of a period; None: as many as are used.
    included_tokens: int | None = 0
    #: How far the balance may fall below zero; None: as far as it does.
    overage_micro: MicroCredits | None = None
    has_plan: bool = False
    #: See ``TierPlan``.
    withholds_tokens: bool = False
    key_budget: Budget | None = None
    owner_budget: Budget | None = None


NO_PLAN = Spending()


class CostBounds(msgspec.Struct, frozen=True, kw_only=True):
    """The maximum size of a request."""

    #: For each model that may serve it.
    prompt_tokens: Mapping[ModelName, int]
    #: For each answer.
    max_tokens: int
    answers: int
    seconds: float
    #: The name whose price applies to all models; None: each has its own.
    priced_as: ModelName | None = None
    #: What it may cost upstream, at targets with a ceiling.
    holds: tuple[TargetHold, ...] = ()
    #: At the price of batches.
    is_batch: bool = False
    #: Of a line of a job, and the price that its job keeps for all models; None: today's.
    job: UUID | None = None
    kept_price: int | None = None


class HeldCredits(msgspec.Struct, frozen=True):
    """What is reserved for a request."""

    request_id: RequestId
    #: For each model that may serve the request.
    prices: Mapping[ModelName, Price]
    #: For each answer.
    max_tokens: int
    #: The credits covered fewer tokens than requested.
    clamped: bool
    #: What the plan covers at most, in tokens of the allowance.
    plan_tokens: int = 0
    #: Targets that would exceed their ceiling.
    over_ceiling: frozenset[str] = frozenset()
    #: For each of these models: the compute seconds that it covers, and for how many more the next token is charged; without a measurement,
    #: a deadline and none.
    seconds: Mapping[ModelName, float] = {}
    token_seconds: Mapping[ModelName, float] = {}


class ReservationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a request asks the ledger to reserve."""

    request_id: RequestId
    owner: TenantId
    key_id: KeyId | None
    model: ModelName
    price: Price
    #: How many tokens of the plan a token uses at most, of the models that may serve it; 0 if the plan doesn't cover one of them.
    allowance_weight: int
    #: Upper bounds.
    prompt_tokens: int
    max_tokens: int
    seconds: float
    #: A grant of fewer tokens is useless.
    least_tokens: int
    answers: int
    spending: Spending
    #: See ``CostBounds``.
    holds: tuple[TargetHold, ...] = ()
    job: UUID | None = None


class GrantedReservation(msgspec.Struct, frozen=True):
    #: For each answer.
    max_tokens: int
    #: See ``HeldCredits``.
    plan_tokens: int = 0
    #: The request already had this reservation.
    is_repeated: bool = False
    #: Targets that would exceed their ceiling.
    over_ceiling: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class InsufficientCredits:
    """Nothing was reserved."""

    #: Below zero: what the account owes beyond its plan.
    room_micro: int
    limited_by: Literal["account", "owner", "key", "debt"] = "account"


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldExtension:
    """How much a running request asks the ledger to hold in all."""

    request_id: RequestId
    owner: TenantId
    #: For each answer.
    max_tokens: int
    #: A smaller raise is useless.
    least_more: int
    answers: int
    price: Price
    spending: Spending
    #: What it may cost upstream in all; None without a ceiling.
    target: TargetHold | None = None


@dataclass(frozen=True, slots=True)
class ExtendedHold:
    #: For each answer: what it already held if nothing more is granted; None if the request is not open.
    max_tokens: int | None
    plan_tokens: int = 0
    #: The target would exceed its ceiling. The credits are held nevertheless.
    is_over_ceiling: bool = False


@dataclass(frozen=True, slots=True)
class OpenReservation:
    """A reservation whose gateway has been silent for too long."""

    request_id: RequestId
    owner: TenantId
    key_id: KeyId | None
    model: ModelName
    price_id: int
    prompt_tokens: int
    completion_tokens: int
    created_at: datetime
    #: See ``HeldCredits``.
    held_tokens: int = 0
    #: In order of their claims; the last one runs it.
    workers: tuple[NodeId, ...] = ()
    #: Answer tokens that the caller had when the last worker claimed it.
    delivered_before: int = 0
    #: When the last worker claimed it.
    claimed_at: datetime | None = None
    #: The route of the last claim; ``model`` and ``price_id`` belong to its target, too.
    route: RouteUse | None = None
    #: See ``Claim``.
    provider: str | None = None
    #: It pays the price of batches.
    is_batch: bool = False


class WorkerClaim(msgspec.Struct, frozen=True):
    """A worker that is about to run a request."""

    request_id: RequestId
    worker: NodeId
    #: Answer tokens that the caller has from earlier workers.
    delivered_before: int
    #: The next three describe the target that serves it.
    model: ModelName
    price_id: int
    route: RouteUse | None
    provider: str | None = None
    #: It pays the price of batches.
    is_batch: bool = False
