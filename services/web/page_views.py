"""Define the data of templates that several pages share. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from shared import errors
from shared.api import accounts, gateway


@dataclass(frozen=True, slots=True, kw_only=True)
class Landing:
    #: None if the gateway did not respond.
    health: gateway.ServiceHealth | None
    address: str
    #: Whether registration is open.
    is_open: bool


@dataclass(frozen=True, slots=True)
class QuotaView:
    """The hourly quota for display."""

    #: None for a tier without a limit.
    limit: int | None
    used: int
    left: int
    resets_at: datetime
    resets_in_minutes: int

    @property
    def left_percent(self) -> int:
        return 100 * self.left // self.limit if self.limit else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmPage:
    #: The action to repeat, and the submitted fields.
    action: str
    fields: Mapping[str, str]
    problem: errors.AimeshError | None
    #: None if auth did not report how this user can confirm an action.
    account: accounts.OwnAccount | None

    @property
    def by_code(self) -> bool:
        return self.account is None or self.account.mfa_enabled

    @property
    def by_password(self) -> bool:
        """Return whether the password can confirm: not with a second factor."""
        return self.account is None or (self.account.has_password and not self.account.mfa_enabled)

    @property
    def provider(self) -> str | None:
        return None if self.account is None or self.account.mfa_enabled else self.account.oidc_name


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorPage:
    status: int
    message: str
    hint: str
    request_id: str


def quota(answer: gateway.UserQuota, now: datetime) -> QuotaView:
    seconds = (answer.resets_at - now).total_seconds()
    return QuotaView(
        limit=answer.limit_per_hour if answer.limit_per_hour < gateway.NO_LIMIT else None,
        used=answer.used_this_hour,
        left=max(0, answer.remaining),
        resets_at=answer.resets_at.astimezone(UTC),
        resets_in_minutes=max(0, -int(-seconds // 60)),
    )
