"""Describes how a request ended, for the log and the ledger. Pure."""

import re
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

import msgspec

from services.gateway.facts.bad_field import BadField
from services.gateway.facts.guard_counts import GuardCount
from services.gateway.facts.upstream_prices import TargetSpending
from shared import errors
from shared.api.generation import Usage
from shared.types import KeyId, MicroCredits, ModelName, Moment, RequestId, RequestStatus, TenantId, UserId

#: What metrics call a kind of request: its method, the same for all APIs, and its operation, as in OpenTelemetry.
RequestLabels = tuple[str, str]

_NOTHING = MicroCredits(0)
#: The field at the start of a worker's error, if OpenAI's APIs have it under the same name.
_FIELD = re.compile(r"(dimensions|input|logit_bias|messages|tools)\b[^ :]*")
#: The part of it that is none of the caller's own names.
_KNOWN_FIELD = re.compile(r"\w+(\[\d+\])?")
#: The column's size.
_FIELD_CHARACTERS = 100
_HAS_ROW = "_has_request_row"


class ReservationState(StrEnum):
    #: The delivered tokens are billed.
    SETTLED = "settled"
    #: Nothing was delivered or billed.
    RELEASED = "released"
    #: The gateway died and the outcome is unknown; nothing is billed.
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class RouteUse:
    """How a route served a request."""

    route: str
    version: int
    #: The target that was drawn; None if the route has no shares.
    variant: str | None
    #: The target that served it, or was tried last.
    target: str
    #: Whether it says something about a rollout: it could have been drawn for either target.
    is_compared: bool = False


class RequestRow(msgspec.Struct, frozen=True, kw_only=True):
    """The final record of one request; see ``AdmissionRecord`` for fields without a comment."""

    id: RequestId
    user_id: UserId
    #: None if the caller used an access token.
    api_key_id: KeyId | None
    #: None if the request was refused before its prompt was read.
    prompt_hash: str | None
    #: The served model; None if no model was found.
    model_used: ModelName | None
    response_time_ms: int
    prompt_tokens: int
    completion_tokens: int
    status: RequestStatus
    error_code: str | None
    #: The path of the field that it was refused for, never the value.
    error_field: str | None = None
    #: The fields of its body that had no effect.
    ignored_fields: str | None = None
    #: Start of the request.
    created_at: Moment
    #: By its reservation's price, without what the plan covers; 0 for a cached answer. The ledger charges at most what was reserved.
    cost_micro: MicroCredits = _NOTHING
    #: The tokens of the plan that it used.
    covered_tokens: int = 0
    cached: bool = False
    #: Outcome of its reservation, if there is one.
    reservation: ReservationState = ReservationState.RELEASED
    #: The organization that it was made for; None for the user's own requests.
    team_id: TenantId | None = None
    #: Owner of the last worker; None if there is none.
    worker_owner: str | None = None
    #: Sorted labels of the last worker.
    worker_labels: tuple[tuple[str, str], ...] = ()
    begins_conversation: bool = False
    #: What a cached answer would have cost.
    saved_micro: MicroCredits = _NOTHING
    route: RouteUse | None = None
    provider: str | None = None
    attempts: int = 0
    #: What it has cost upstream, and what an answer of our own machines would have cost where its route compares it.
    spending: tuple[TargetSpending, ...] = ()
    avoided_micro: MicroCredits = _NOTHING
    #: None if no text came.
    first_token_ms: int | None = None
    #: Whether the target that was drawn for it has failed; None if that isn't known, or the caller's doing.
    variant_failed: bool | None = None
    is_counted_late: bool = False
    #: The plan of the account when the request began.
    plan: str | None = None
    guard: tuple[GuardCount, ...] = ()
    #: Of whose lines it is one.
    job_id: UUID | None = None
    #: It ran behind live requests.
    is_batch: bool = False

    @property
    def upstream_micro(self) -> MicroCredits:
        return MicroCredits(sum(one.micro for one in self.spending))

    @property
    def tenant_id(self) -> TenantId:
        """Return the tenant that pays."""
        return TenantId(self.user_id) if self.team_id is None else self.team_id

    @property
    def tokens_used(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class RowsRefused(errors.Unavailable):
    """PostgreSQL refused these rows with an error, which the message contains."""


def route_columns(used: RouteUse | None) -> tuple[str | None, int | None, str | None, str | None]:
    return (None, None, None, None) if used is None else (used.route, used.version, used.variant, used.target)


def status_of(error: errors.AimeshError) -> RequestStatus:
    match error:
        case errors.Limited():
            return RequestStatus.LIMITED
        case errors.DeadlineExceeded():
            return RequestStatus.TIMEOUT
        case errors.Cancelled():
            return RequestStatus.CANCELLED
        case errors.Poison():
            # It crashed workers: operators must see it among the errors.
            return RequestStatus.ERROR
        case errors.CallerError():
            return RequestStatus.REJECTED
        case _:
            return RequestStatus.ERROR


def reservation_of(status: RequestStatus, usage: Usage) -> ReservationState:
    delivered = status is RequestStatus.SUCCESS or usage.completion_tokens > 0
    return ReservationState.SETTLED if delivered else ReservationState.RELEASED


def error_code_of(status: RequestStatus, failure: errors.AimeshError | None) -> str:
    """Return the code for the row of a request that has not succeeded."""
    if failure is not None:
        # A newer peer may send any code; the column holds 64 characters and no NUL.
        return "".join(letter for letter in errors.code_of(failure)[:64] if letter.isprintable())
    return {RequestStatus.TIMEOUT: errors.DeadlineExceeded.code, RequestStatus.ERROR: errors.AimeshError.code}.get(
        status, errors.Cancelled.code
    )


def field_of(error: errors.AimeshError) -> str | None:
    """Return the path of the field that is wrong, as its caller may see it."""
    if isinstance(error, errors.BadRequest) and error.field:
        return error.field
    if isinstance(error, errors.UnknownModel):
        return "model"
    found = _FIELD.match(error.message) if isinstance(error, errors.BadRequest) else None
    return found[0] if found else None


def logged_field_of(error: errors.AimeshError) -> str | None:
    """Return the path for logs and rows, up to names that the caller chose: they may be text."""
    if isinstance(error, BadField):
        return error.known[:_FIELD_CHARACTERS] or None
    found = _KNOWN_FIELD.match(field_of(error) or "")
    return found[0] if found else None


def mark_row(error: errors.AimeshError) -> None:
    """Note that the request that fails with this error gets its row."""
    setattr(error, _HAS_ROW, True)


def has_row(error: errors.AimeshError) -> bool:
    return getattr(error, _HAS_ROW, False)
