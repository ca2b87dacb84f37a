"""The form that gives credits to somebody, or to an organisation."""

from uuid import UUID

import msgspec

from services.web.visits import Visit
from shared import amounts, context, errors
from shared.api import ledger
from shared.types import MicroCredits, RequestId


class CreditsForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    amount: str = ""
    note: str = ""
    #: Made with the page: the same form twice, by a reload or a lost answer, is booked once.
    transfer: str = ""


NOTHING_TYPED = CreditsForm()


def new_transfer() -> str:
    return str(context.new_request_id())


async def book(visit: Visit, owner: UUID, form: CreditsForm) -> None:
    """Raises BadRequest, and what the gateway raises."""
    request = ledger.TopUp(str(owner), read_amount(form.amount), note=form.note.strip(), transfer_id=_read_transfer(form.transfer))
    await visit.call(ledger.top_up, request)


def read_amount(text: str) -> MicroCredits:
    """Raises BadRequest. Below zero takes back."""
    try:
        amount = amounts.read(text)
    except ValueError as error:
        raise errors.BadRequest(f"credits: {error}") from error
    if not amount:
        raise errors.BadRequest("credits: 0 changes nothing", hint="an amount below zero takes credits back")
    return amount


def _read_transfer(text: str) -> RequestId:
    try:
        return RequestId(UUID(text))
    except ValueError:
        raise errors.BadRequest("the form has lost its number", hint="open the page again and send the form from there") from None
