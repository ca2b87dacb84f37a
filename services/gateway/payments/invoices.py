"""Writes invoices. Pure."""

from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from uuid import UUID

from services.gateway.facts.plan_offers import Seller
from shared.api.billing import Invoice, InvoiceDocument, InvoiceLine, InvoicePurpose, InvoiceState, Party

#: For ids of orders that the gateway makes up: the same cause has the same order.
ORDERS = UUID("7f1d3a52-6b0e-4f3c-9a60-0d5c1e5a8b11")
DUE_DAYS = 14
#: Days after the due date on which an unpaid invoice is mentioned. After the last one, its plan ends.
REMINDER_DAYS = (0, 3, 7)


def number(series: str, count: int) -> str:
    return f"{series}-{count:06d}"


def write(
    number: str,
    seller: Seller,
    customer: Party,
    lines: tuple[InvoiceLine, ...],
    *,
    purpose: InvoicePurpose,
    now: datetime,
    corrects: InvoiceDocument | None = None,
) -> InvoiceDocument:
    """Return the document. Prices are without tax, which is rounded once, on the sum."""
    net = sum(line.amount_minor for line in lines)
    tax = int((net * seller.tax_percent / 100).quantize(Decimal(1), ROUND_HALF_UP))
    tax_name, percent = seller.tax_name, f"{seller.tax_percent:f}"
    if corrects is not None:
        # What it takes back, also if the settings have changed since.
        tax, tax_name, percent = -corrects.tax_minor, corrects.tax_name, corrects.tax_percent
    return InvoiceDocument(
        number=number,
        issued_at=now,
        due_at=now + timedelta(days=DUE_DAYS),
        seller=seller.party,
        customer=customer,
        currency=seller.currency if corrects is None else corrects.currency,
        lines=lines,
        net_minor=net,
        tax_name=tax_name,
        tax_percent=percent,
        tax_minor=tax,
        total_minor=net + tax,
        purpose=purpose,
        corrects=None if corrects is None else corrects.number,
    )


def take_back(number: str, seller: Seller, invoice: InvoiceDocument, now: datetime) -> InvoiceDocument:
    lines = tuple(InvoiceLine(line.text, -line.amount_minor) for line in invoice.lines)
    return write(number, seller, invoice.customer, lines, purpose=InvoicePurpose.CREDIT_NOTE, now=now, corrects=invoice)


def is_open(invoice: Invoice) -> bool:
    return invoice.state in {InvoiceState.OPEN, InvoiceState.LATE}
