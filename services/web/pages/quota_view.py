"""Describe the remaining quota and credits for the overview. Pure."""

from dataclasses import dataclass

from services.web.charts import usage_chart
from services.web.charts.usage_chart import NOTHING
from shared.api.gateway import NO_LIMIT, LimitState, NoticeKind, UserQuota
from shared.api.ledger import Account
from shared.limits import BY_NAME, words
from shared.lists import account as account_words

#: A meter warns at this percentage or less.
_LOW = 10
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_WHOSE = {"key": " (key)", "model": " (model)"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitView:
    """A limit and what remains of it."""

    id: str = ""
    label: str = ""
    #: Such as "960" and "1,000".
    left: str = ""
    limit: str = ""
    #: 0 to 100.
    percent: str = "0"
    #: The accessible name of the meter.
    meter_label: str = ""
    #: `bad` if little is left.
    tone: str = ""
    renewal: str = ""


@dataclass(frozen=True, slots=True)
class CreditsView:
    left: str = NOTHING
    detail: str = ""
    #: The tokens of a plan; empty without one.
    tokens: str = ""
    tokens_detail: str = ""


@dataclass(frozen=True, slots=True)
class NoticeView:
    """Why requests are or will be refused, and where to change that."""

    id: str = ""
    text: str = ""
    hint: str = ""
    #: Where people change it; empty for no page.
    href: str = ""
    label: str = ""


@dataclass(frozen=True, slots=True)
class HourlyQuotaView:
    """The hourly quota of another user, for administrators."""

    #: None for a tier without a limit.
    limit: int | None
    used: int
    left: int


def limits(quota: UserQuota) -> tuple[LimitView, ...]:
    """Return the limits; empty for a tier without limits."""
    return tuple(_line(state) for state in quota.limits)


def credits(account: Account | None) -> CreditsView:  # noqa: A001 - the field's word
    if account is None:
        return CreditsView()
    left = "unlimited" if account.free_micro is None else usage_chart.cost(account.free_micro)
    details = [f"{usage_chart.cost(-account.balance_micro)} owed"] if account.allowance and account.balance_micro < 0 else []
    if account.reserved_micro:
        details.append(f"{usage_chart.cost(account.reserved_micro)} reserved for running requests")
    if account.budget is not None:
        details.append(f"{usage_chart.cost(account.spent_micro)} of {account_words.budget_words(account.budget)} spent")
    tokens, allowance = ("", ""), account.allowance
    if allowance is not None:
        tokens = account_words.tokens_left(allowance), account_words.tokens_detail(allowance)
    return CreditsView(left, "; ".join(details), *tokens)


def notices(quota: UserQuota | None, *, sells: bool) -> tuple[NoticeView, ...]:
    """Return them, the most urgent first. ``sells``: this mesh has a page for plans and credits."""
    found = []
    for notice in quota.notices if quota else ():
        href, label = ("/settings", "Verify address") if notice.kind is NoticeKind.UNVERIFIED else ("/billing", "Billing")
        if notice.kind is NoticeKind.LIMIT or (href == "/billing" and not sells):
            href = label = ""
        found.append(NoticeView(notice.kind.value, _sentence(notice.message), _sentence(notice.hint), href, label))
    return tuple(found)


def _sentence(text: str) -> str:
    """Return a plain sentence, which the live page can replace."""
    return f"{text[:1].upper()}{text[1:]}.".replace("`", "") if text else ""


def hourly(answer: UserQuota) -> HourlyQuotaView:
    return HourlyQuotaView(
        limit=answer.limit_per_hour if answer.limit_per_hour < NO_LIMIT else None,
        used=answer.used_this_hour,
        left=max(0, answer.remaining),
    )


def _line(state: LimitState) -> LimitView:
    remaining = max(0, state.remaining)
    percent = min(100, 100 * remaining // state.limit) if state.limit else 0
    return LimitView(
        id=":".join(filter(None, (state.scope, state.kind, state.name))),
        label=words(state.kind).capitalize() + (f" ({state.name})" if state.name else _WHOSE.get(state.scope, "")),
        left=usage_chart.number(remaining),
        limit=usage_chart.number(state.limit),
        percent=str(percent),
        meter_label=f"{percent} % left",
        tone="bad" if percent <= _LOW else "",
        renewal=_renewal(state, remaining),
    )


def _renewal(state: LimitState, remaining: int) -> str:
    if remaining >= state.limit:
        return "Unused"
    if state.kind in BY_NAME and BY_NAME[state.kind].counter == "slots":
        return "Frees up when a request ends"
    seconds = max(1, round(state.resets_in_seconds))
    if seconds < _MINUTE:
        return f"Resets in {seconds} s"
    # A window is counted in buckets, so the last one can end a little later.
    if seconds <= _HOUR + _MINUTE:
        return f"Resets in {min(60, -(-seconds // _MINUTE))} min"
    return f"Resets in {-(-seconds // _HOUR)} h" if seconds <= 2 * _DAY else f"Resets in {-(-seconds // _DAY)} days"
