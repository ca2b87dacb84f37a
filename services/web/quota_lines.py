"""What somebody may still use, as texts: every limit as a meter, and the credits. Pure."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC

from services.web import usage_chart
from services.web.usage_chart import NOTHING
from shared.api.gateway import NO_LIMIT, LimitState, UserQuota
from shared.api.ledger import Account

#: Percent left, from which on a meter warns.
_LOW = 10
_MINUTE, _HOUR = 60, 3600
_KINDS = {
    "requests_per_hour": "Requests this hour",
    "requests_per_minute": "Requests this minute",
    "tokens_per_minute": "Tokens this minute",
    "concurrency": "Requests at once",
}
_WHOSE = {"key": " of this key", "model": " of one model"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitLine:
    """One limit, and how much of it is left."""

    id: str = ""
    label: str = ""
    #: Such as "960", of "1,000".
    left: str = ""
    limit: str = ""
    #: 0 to 100.
    percent: str = "0"
    #: What the drawing says to who cannot see it.
    said: str = ""
    #: bad where little is left.
    tone: str = ""
    #: When all of it is there again.
    renewal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditsLine:
    left: str = NOTHING
    detail: str = ""


def limits(quota: UserQuota) -> tuple[LimitLine, ...]:
    """None for a tier without any."""
    return tuple(_line(state) for state in _states(quota))


def plain(line: LimitLine) -> dict[str, str]:
    """For an event."""
    return asdict(line)


def credits(account: Account | None) -> CreditsLine:  # noqa: A001 - that is what they are
    if account is None:
        return CreditsLine()
    if account.monthly_micro is None:
        return CreditsLine(left="no bound")
    renews = account.renews_at.astimezone(UTC)
    held = f"{usage_chart.cost(account.reserved_micro)} held by running requests; " if account.reserved_micro else ""
    month = f"{usage_chart.exact(account.monthly_micro)} a month included, renewed on {renews.day} {renews:%b %Y}"
    return CreditsLine(left=usage_chart.cost(account.free_micro), detail=held + month)


def _states(quota: UserQuota) -> Iterable[LimitState]:
    if quota.limits or quota.limit_per_hour >= NO_LIMIT:
        return quota.limits
    # A gateway that does not list them says this one all the same.
    return (LimitState("user", "requests_per_hour", quota.limit_per_hour, quota.remaining, _HOUR if quota.used_this_hour else 0.0),)


def _line(state: LimitState) -> LimitLine:
    remaining = max(0, state.remaining)
    percent = min(100, 100 * remaining // state.limit) if state.limit else 0
    return LimitLine(
        id=":".join(filter(None, (state.scope, state.kind, state.name))),
        label=_KINDS.get(state.kind, state.kind.replace("_", " ").capitalize())
        + (f" of {state.name}" if state.name else _WHOSE.get(state.scope, "")),
        left=usage_chart.number(remaining),
        limit=usage_chart.number(state.limit),
        percent=str(percent),
        said=f"{percent} % left",
        tone="bad" if percent <= _LOW else "",
        renewal=_renewal(state, remaining),
    )


def _renewal(state: LimitState, remaining: int) -> str:
    if remaining >= state.limit:
        return "nothing used"
    if state.kind == "concurrency":
        return "free again when an answer ends"
    seconds = max(1, round(state.resets_in_seconds))
    if seconds < _MINUTE:
        return f"full again in {seconds} s"
    # The hour is counted by its minutes, so that the last one can end a little later.
    return f"full again in {min(60, -(-seconds // _MINUTE))} min"
