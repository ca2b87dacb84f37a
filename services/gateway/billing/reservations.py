"""What a request asks the ledger to hold, and what is said to that. Pure."""

from dataclasses import dataclass
from datetime import datetime

from shared.types import KeyId, MicroCredits, ModelName, NodeId, RequestId, TenantId


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationRequest:
    """What a request asks the ledger to hold."""

    request_id: RequestId
    owner: TenantId
    key_id: KeyId | None
    model: ModelName
    price_id: int
    #: An upper bound.
    prompt_tokens: int
    max_tokens: int
    #: Fewer are not worth a request.
    least_tokens: int
    answers: int
    #: What it costs whatever it says.
    fixed_micro: MicroCredits
    micro_per_million: int
    #: None is no bound.
    monthly_micro: MicroCredits | None
    key_budget_micro: MicroCredits | None


@dataclass(frozen=True, slots=True)
class GrantedReservation:
    #: Of each answer.
    max_tokens: int
    #: The request had its reservation already.
    is_repeated: bool = False


@dataclass(frozen=True, slots=True)
class InsufficientCredits:
    """Nothing was held."""

    room_micro: int
    #: It is the key's budget that does not reach, and not the account.
    of_key: bool


@dataclass(frozen=True, slots=True)
class OpenReservation:
    """One whose gateway has not been heard of for too long."""

    request_id: RequestId
    owner: TenantId
    key_id: KeyId | None
    model: ModelName
    price_id: int
    prompt_tokens: int
    completion_tokens: int
    created_at: datetime
    lease_until: datetime
    #: In the order of their claims; the last one runs it.
    workers: tuple[NodeId, ...] = ()
    #: Tokens of the answer that the caller had when the last of them claimed it.
    delivered_before: int = 0
    #: When the last of them claimed it.
    claimed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class WorkerClaim:
    """A worker is about to run a request."""

    request_id: RequestId
    worker: NodeId
    #: Tokens of the answer that the caller has from other workers.
    delivered_before: int
