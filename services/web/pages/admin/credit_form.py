"""Read the forms that add credits to a user or an organization, and set their budget."""

from uuid import UUID

import msgspec

from services.web.http import forms
from services.web.pages import key_view
from services.web.request_context import PageRequest
from shared import amounts, context, errors
from shared.api import auth, ledger, service_settings
from shared.types import MicroCredits, PlanName, RequestId, Tier


class CreditsForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    amount: str = ""
    note: str = ""
    #: The page creates this id, so that submitting the form twice books it once.
    transfer: str = ""


NOTHING_TYPED = CreditsForm()


class BudgetForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: Empty for none.
    budget: str = ""
    #: Empty: it is never renewed.
    every: str = ""


def budget_form(budget: auth.Budget | None) -> BudgetForm:
    return BudgetForm() if budget is None else BudgetForm(amounts.written(budget.micro), budget.every or "")


async def submit_budget(page_request: PageRequest, owner: UUID) -> None:
    """Read the form and set the budget. Raises BadRequest, and what ``submit`` raises."""
    form = await page_request.read_form(BudgetForm)
    micro = key_view.read_budget(form.budget)
    every = forms.read_choice(auth.Every, form.every, "every") if form.every and micro is not None else None
    budget = None if micro is None else auth.Budget(micro, every)
    await page_request.submit(auth.set_budget, auth.SetBudget(str(owner), budget))


async def find_tiers(page_request: PageRequest) -> tuple[PlanName, ...]:
    """Return the names of all plans, or of the built-in ones if the gateway did not respond."""
    found = await page_request.fetch(service_settings.list_tiers, service_settings.ListTiers())
    return tuple(Tier) if found is None else tuple(each.tier for each in found.tiers)


def new_transfer() -> str:
    return str(context.new_request_id())


async def submit_transfer(page_request: PageRequest, owner: UUID, form: CreditsForm) -> None:
    """Book the credits. Raises BadRequest, and what ``submit`` raises."""
    request = ledger.TopUp(str(owner), read_amount(form.amount), note=form.note.strip(), transfer_id=_read_transfer(form.transfer))
    await page_request.submit(ledger.top_up, request)


def read_amount(text: str) -> MicroCredits:
    """Parse the amount; negative amounts remove credits. Raises BadRequest."""
    try:
        amount = amounts.read(text)
    except ValueError as error:
        raise errors.BadRequest(f"credits: {error}", hint="enter a number such as 25 or 2.5") from error
    if not amount:
        raise errors.BadRequest("the amount is 0", hint="enter a positive amount to add credits, or a negative one to remove them")
    return amount


def _read_transfer(text: str) -> RequestId:
    try:
        return RequestId(UUID(text))
    except ValueError:
        raise errors.BadRequest("the form has no transfer ID", hint="reload the page and submit the form again") from None
