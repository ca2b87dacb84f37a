"""Explains why a request is refused that its account can't pay. Pure."""

import msgspec

from services.gateway.billing.prices import MIN_TOKENS
from services.gateway.billing.reservations import InsufficientCredits, ReservationRequest
from shared import amounts, errors
from shared.api.gateway import NoticeKind
from shared.api.ledger import Account, Allowance

#: Running requests free what they don't use when they end, mostly within seconds.
_HELD_RETRY_SECONDS = 5.0
_BUDGETS = {"key": "this key's budget", "owner": "the budget of your account"}


class Refusal(msgspec.Struct, frozen=True):
    kind: NoticeKind
    what: str
    hint: str
    retry_after_seconds: float | None = None


def explain(
    answer: InsufficientCredits, request: ReservationRequest, allowance: Allowance | None = None, held_micro: int = 0, page: str = ""
) -> errors.BudgetExhausted:
    """``held_micro``: of what is too low, by running requests. ``page``: where people buy."""
    found = _refuse(answer, request, allowance, held_micro, page)
    if answer.limited_by == "debt":
        return errors.BudgetExhausted(found.what, hint=found.hint)
    left = f"{_credits(answer.room_micro)} left, this request needs at least {_credits(_least(request, allowance))}"
    return errors.BudgetExhausted(f"{found.what}: {left}", hint=found.hint, retry_after_seconds=found.retry_after_seconds)


def find(account: Account, request: ReservationRequest, page: str = "") -> Refusal | None:
    """Return why the ledger would refuse a request now; None if it wouldn't. It leaves out the budget of a key, as ``reserve`` does for
    logins."""
    balance, budget = account.balance_micro - account.reserved_micro, account.budget
    of_balance = None if account.overage_micro is None else balance + account.overage_micro
    of_owner = None if budget is None else budget.micro - account.spent_micro - account.reserved_micro
    if account.overage_micro is not None and account.balance_micro + account.overage_micro < 0:
        return _refuse(InsufficientCredits(account.balance_micro + account.overage_micro, "debt"), request, None, 0, page)
    if of_owner is not None and (of_balance is None or of_owner < of_balance):
        answer = InsufficientCredits(max(0, of_owner), "owner")
    elif of_balance is not None:
        answer = InsufficientCredits(max(0, of_balance))
    else:
        return None
    if answer.room_micro >= _least(request, account.allowance):
        return None
    return _refuse(answer, request, account.allowance, account.reserved_micro, page)


def _refuse(answer: InsufficientCredits, request: ReservationRequest, allowance: Allowance | None, held_micro: int, page: str) -> Refusal:
    kind = NoticeKind.CREDITS
    if answer.limited_by == "debt":
        what = f"credits were taken back, and your account owes {_credits(-answer.room_micro)} more than its plan allows"
        return Refusal(kind, what, f"add credits: {page or '`aicli billing top-up`'}; until then, you can read, export and pay")
    if answer.limited_by in _BUDGETS:
        budget = request.spending.key_budget if answer.limited_by == "key" else request.spending.owner_budget
        renewed = "" if budget is None or budget.every is None else f", or wait for the next {budget.every} (UTC)"
        what, hint = f"{_BUDGETS[answer.limited_by]} is too low", f"ask for a larger budget{renewed}"
    else:
        what, hint = "your credits are too low", "add credits, or ask an administrator for more; see `aicli usage`"
    if request.spending.withholds_tokens and answer.limited_by == "account" and not (allowance and allowance.included):
        kind, what = NoticeKind.UNVERIFIED, f"your plan's tokens are for verified email addresses, one account each, and {what}"
        hint = "verify your address in the settings or with `aicli billing verify`, or add credits"
    elif allowance is not None and allowance.included is not None and answer.limited_by == "account":
        renews = f"{allowance.renews_at:%Y-%m-%d}"
        state = f"has only {allowance.left:,} tokens left" if allowance.left else "has no tokens left"
        what = f"your plan {state} ({allowance.used:,} of {allowance.included:,} used; renews on {renews}), and {what}"
        hint = f"wait until {renews}, add credits, or choose a larger plan: {page or '`aicli billing`'}"
    is_held = answer.room_micro + held_micro >= _least(request, allowance)
    if is_held:
        held = _credits(held_micro)
        hint = f"your running requests hold {held} and free what they don't use when they end; retry then, or lower their max_tokens"
    return Refusal(kind, what, hint, _HELD_RETRY_SECONDS if is_held else None)


def _least(request: ReservationRequest, allowance: Allowance | None) -> int:
    """Return what the smallest useful answer costs."""
    completion = min(MIN_TOKENS, request.max_tokens) * request.answers
    left = None if allowance is None or request.allowance_weight == 0 else allowance.left
    covered = 0 if left is None else min(left // request.allowance_weight, request.prompt_tokens + completion)
    return request.price.cost(request.prompt_tokens, completion, request.seconds, covered)


def _credits(micro: int) -> str:
    return f"{amounts.written(micro)} credits"
