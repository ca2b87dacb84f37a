"""How one request ended, for the log and the ledger. Pure."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from shared.types import KeyId, MicroCredits, ModelName, RequestId, RequestStatus, TenantId, UserId

_NOTHING = MicroCredits(0)


class ReservationState(StrEnum):
    """How a reservation ends."""

    #: What was delivered is paid.
    SETTLED = "settled"
    #: Nothing was delivered.
    RELEASED = "released"
    #: Its gateway died, and nobody knows; nothing is paid.
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRow:
    """How one request ended."""

    id: RequestId
    user_id: UserId
    #: None for a request with an access token.
    api_key_id: KeyId | None
    #: None where it was refused before it had a prompt.
    prompt_hash: str | None
    #: After aliases; None where no worker was chosen.
    model_used: ModelName | None
    response_time_ms: int
    prompt_tokens: int
    completion_tokens: int
    status: RequestStatus
    #: None for success.
    error_code: str | None
    #: When it began.
    created_at: datetime
    #: What it cost, by the price of its reservation; the ledger takes no more than was held.
    cost_micro: MicroCredits = _NOTHING
    #: Answered from what was answered before.
    cached: bool = False
    #: What becomes of its reservation, where it has one.
    reservation: ReservationState = ReservationState.RELEASED
    #: The organisation that it was asked for; None for the user's own.
    team_id: TenantId | None = None
    #: Who answers for the worker that ran it last; None where there was none, or nobody does.
    worker_owner: str | None = None
    #: Its labels, in their order.
    worker_labels: tuple[tuple[str, str], ...] = ()
    #: No earlier answer is among its messages.
    begins_conversation: bool = False
    #: What it would have cost if it were not cached.
    saved_micro: MicroCredits = _NOTHING

    @property
    def tenant_id(self) -> TenantId:
        """Who pays and is shown it."""
        return TenantId(self.user_id) if self.team_id is None else self.team_id

    @property
    def tokens_used(self) -> int:
        return self.prompt_tokens + self.completion_tokens
