"""The lists of plans and invoices."""

from collections.abc import Iterator

from shared import currency
from shared.api.billing import Invoice, InvoiceState, Plan
from shared.lists.columns import Column, Listing, Tone

_STATES = {
    InvoiceState.OPEN: ("To be paid", Tone.WARN),
    InvoiceState.LATE: ("Late", Tone.BAD),
    InvoiceState.PAID: ("Paid", Tone.GOOD),
    InvoiceState.VOID: ("Taken back", Tone.OFF),
    InvoiceState.REFUNDED: ("Refunded", Tone.OFF),
}


def state(invoice: Invoice) -> tuple[str, Tone]:
    return ("Credit note", Tone.OFF) if invoice.document.corrects else _STATES[invoice.state]


def fee(plan: Plan) -> str:
    """Return `29.00 USD a month`."""
    if plan.fee_minor is None:
        return "agreed"
    return "no fee" if not plan.fee_minor else f"{currency.written(plan.fee_minor, plan.currency)} a month"


def included(plan: Plan) -> str:
    return "unlimited" if plan.included_tokens is None else f"{plan.included_tokens:,}"


def beyond(plan: Plan) -> str:
    """Return what usage beyond the tokens needs."""
    if plan.overage_minor is None:
        return "billed each month"
    return "prepaid credits" if not plan.overage_minor else f"billed up to {currency.written(plan.overage_minor, plan.currency)}"


def plan_facts(plan: Plan) -> Iterator[str]:
    """Yield what a plan offers, such as `100,000 tokens a month`."""
    yield f"{included(plan)} tokens a month"
    yield f"Beyond them: {beyond(plan)}"
    yield from plan.limits


PLANS: Listing[Plan] = Listing(
    columns=(
        Column(title="Plan", show=lambda row: row.name),
        Column(title="Fee", show=fee),
        Column(title="Tokens a month", show=included, is_number=True),
        Column(title="Beyond", show=beyond, rank=3),
        Column(title="Limits", show=lambda row: row.limits, rank=4, wraps=True),
        Column(title="For sale", show=lambda row: "Yes" if row.for_sale else "No", rank=5),
    ),
    empty="No plans.",
)

INVOICES: Listing[Invoice] = Listing(
    columns=(
        Column(title="Invoice", show=lambda row: row.document.number, is_code=True),
        Column(title="State", show=lambda row: state(row)[0], tone=lambda row: state(row)[1]),
        Column(title="Total", show=lambda row: currency.written(row.document.total_minor, row.document.currency), is_number=True),
        Column(title="For", show=lambda row: ", ".join(line.text for line in row.document.lines), rank=2, wraps=True),
        Column(title="Customer", show=lambda row: row.document.customer.name, rank=4, wraps=True),
        Column(title="Date", show=lambda row: row.document.issued_at, rank=3, is_day=True),
        Column(title="Due", show=lambda row: row.document.due_at, rank=5, is_day=True),
        Column(title="Reference", show=lambda row: row.reference or None, rank=6, wraps=True),
    ),
    empty="No invoices yet.",
    is_over=lambda row: row.state not in {InvoiceState.OPEN, InvoiceState.LATE},
)
