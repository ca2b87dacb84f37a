"""Defines the ledger's reservations. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import msgspec

from services.gateway.billing.prices import Price
from services.gateway.facts.request_record import RouteUse
from services.gateway.facts.upstream_prices import TargetHold
from shared.types import KeyId, MicroCredits, ModelName, NodeId, RequestId, TenantId


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


class HeldCredits(msgspec.Struct, frozen=True):
    """What is reserved for a request."""

    request_id: RequestId
    #: For each model that may serve the request.
    prices: Mapping[ModelName, Price]
    #: For each answer.
    max_tokens: int
    #: The credits covered fewer tokens than requested.
    clamped: bool
    #: Targets that would exceed their ceiling.
    over_ceiling: frozenset[str] = frozenset()


class ReservationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a request asks the ledger to reserve."""

    request_id: RequestId
    owner: TenantId
    key_id: KeyId | None
    model: ModelName
    price_id: int
    #: Upper bound.
    prompt_tokens: int
    max_tokens: int
    #: A grant of fewer tokens is useless.
    least_tokens: int
    answers: int
    #: Cost that doesn't depend on the output.
    fixed_micro: MicroCredits
    micro_per_million: int
    #: None for no limit.
    monthly_micro: MicroCredits | None
    key_budget_micro: MicroCredits | None
    #: See ``CostBounds``.
    holds: tuple[TargetHold, ...] = ()


class GrantedReservation(msgspec.Struct, frozen=True):
    #: For each answer.
    max_tokens: int
    #: The request already had this reservation.
    is_repeated: bool = False
    #: Targets that would exceed their ceiling.
    over_ceiling: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class InsufficientCredits:
    """Nothing was reserved."""

    room_micro: int
    #: The key's budget is exhausted, rather than the account.
    of_key: bool


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
    micro_per_million: int
    #: As in ``ReservationRequest``.
    monthly_micro: MicroCredits | None
    key_budget_micro: MicroCredits | None
    #: What it may cost upstream in all; None without a ceiling.
    target: TargetHold | None = None


@dataclass(frozen=True, slots=True)
class ExtendedHold:
    #: For each answer: what it already held if nothing more is granted; None if the request is not open.
    max_tokens: int | None
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
