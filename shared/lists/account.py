"""What an account can spend, in words: tokens of its plan, and money."""

from collections.abc import Iterator
from datetime import UTC, datetime

from shared.amounts import grouped
from shared.api.auth import Budget
from shared.api.ledger import Account, Allowance


def tokens_left(allowance: Allowance) -> str:
    left = allowance.left
    return "unlimited" if left is None else f"{left:,}"


def tokens_detail(allowance: Allowance) -> str:
    """Return `3,000 of 100,000 used; renews 1 Apr 2026`."""
    used = f"{allowance.used:,} used" if allowance.included is None else f"{allowance.used:,} of {allowance.included:,} used"
    held = f", {allowance.held:,} held by running requests" if allowance.held else ""
    return f"{used}{held}; renews {day(allowance.renews_at)}"


def credits_left(account: Account) -> str:
    return "unlimited" if account.free_micro is None else grouped(account.free_micro)


def lines(account: Account) -> Iterator[tuple[str, str]]:
    """Yield what there is, as names and texts."""
    if account.allowance is not None:
        yield "tokens left", f"{tokens_left(account.allowance)}; {tokens_detail(account.allowance)}"
    yield "credits left", credits_left(account)
    if account.balance_micro:
        yield ("topped up" if account.balance_micro > 0 else "owed" if account.allowance else "spent"), grouped(abs(account.balance_micro))
    if account.reserved_micro:
        yield "held", f"{grouped(account.reserved_micro)} by running requests"
    if account.budget is not None:
        yield "budget", f"{grouped(account.spent_micro)} of {budget_words(account.budget)} spent"


def budget_words(budget: Budget) -> str:
    """Return `20 credits every month`."""
    amount = f"{grouped(budget.micro)} {'credit' if budget.micro == 1_000_000 else 'credits'}"
    return amount if budget.every is None else f"{amount} every {budget.every}"


def day(moment: datetime) -> str:
    moment = moment.astimezone(UTC)
    return f"{moment.day} {moment:%b %Y}"
