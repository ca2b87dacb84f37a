"""`aicli billing`: your plan, prepaid credits and invoices; `aicli admin plans` and `aicli admin invoices`: those of all accounts."""

import sys
from typing import TYPE_CHECKING
from uuid import UUID

import click

from cli import options
from cli.cli_context import CliContext
from cli.output import credit_amounts, print_format, printing, watching
from shared import api
from shared.types import RequestId, TenantId

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cli.connection import CliConnection
    from shared.api.billing import Invoice, Order, ProviderPayment


@click.group(invoke_without_command=True)
@print_format.output_options("Print a JSON object; amounts in minor units, such as cents.")
@click.pass_context
@click.pass_obj
def billing(here: CliContext, context: click.Context, /, *, as_json: bool) -> None:
    """Show your plan and what it includes. Choose a plan, buy credits, read invoices."""
    if context.invoked_subcommand is not None:
        return
    from shared.lists.billing import beyond, fee

    found = here.call(api.billing.read_billing, api.billing.ReadBilling())
    lines = [f"plan          {found.plan.name}, {fee(found.plan)}; beyond its tokens: {beyond(found.plan)}"]
    if found.waits_for is not None:
        lines.append(f"next plan     {found.next_plan}, once the invoice {found.waits_for} is paid")
    elif found.next_plan is not None:
        lines.append(f"next plan     {found.next_plan}, at the end of the period")
    printing.show_message(found, "\n".join([*lines, *credit_amounts.account_lines(found.account)]), as_json=as_json)


@billing.command()
@watching.listing_options("Print a JSON list; amounts in minor units, such as cents.")
@click.pass_obj
def plans(here: CliContext, /, *, as_json: bool) -> None:
    """List the plans that you can choose."""
    from shared.lists.billing import PLANS

    printing.show_list(here.call(api.billing.list_plans, api.billing.ListPlans()).plans, PLANS, as_json=as_json)


@billing.group()
def plan() -> None:
    """Change your plan."""


@plan.command("set")
@click.argument("name")
@print_format.output_options("Print a JSON object.")
@click.pass_obj
def set_(here: CliContext, /, name: str, *, as_json: bool) -> None:
    """Change to the plan NAME. A larger plan begins when it is paid, a cheaper one at the end of the period."""
    _show_order(here.call(api.billing.set_plan, api.billing.SetPlan(name)), as_json=as_json)


@billing.command("top-up")
@click.argument("amount")
@click.option("--order-id", type=click.UUID, metavar="UUID", help="Makes retries safe: the same ID is the same order.")
@print_format.output_options("Print a JSON object.")
@click.pass_obj
def top_up(here: CliContext, /, amount: str, *, order_id: UUID | None, as_json: bool) -> None:
    """Buy prepaid credits for AMOUNT, such as 25 or 25.00."""
    from shared import context

    wanted = api.billing.OrderTopUp(amount, order_id=RequestId(order_id) if order_id else context.new_request_id())
    _show_order(here.call(api.billing.order_top_up, wanted), as_json=as_json)


@billing.command()
@print_format.output_options("Print a JSON object.")
@click.pass_obj
def portal(here: CliContext, /, *, as_json: bool) -> None:
    """Open the payment provider's page for cards and its invoices, to change or cancel your plan."""
    found = here.call(api.billing.open_portal, api.billing.OpenPortal())
    printing.show_message(found, f"Open: {printing.printable(found.url)}", as_json=as_json)


@billing.command()
@click.argument("code", required=False)
@print_format.output_options("Print a JSON object.")
@click.pass_obj
def verify(here: CliContext, /, code: str | None, *, as_json: bool) -> None:
    """Verify your email address with the CODE that you were emailed; without it, get the email again."""
    if code is None:
        printing.show_message(here.call(api.accounts.send_verification, api.accounts.SendVerification()), "Email sent.", as_json=as_json)
        return
    found = here.call(api.accounts.verify_address, api.accounts.VerifyAddress(code))
    text = "Verified." if found.has_free_tokens else "Verified. Another account with this address already has the tokens of a free plan."
    printing.show_message(found, text, as_json=as_json)


def _show_order(order: "Order", *, as_json: bool) -> None:
    text = "Done."
    if order.url is not None:
        text = f"Pay here: {printing.printable(order.url)}"
    elif order.invoice is not None:
        text = f"It takes effect when the invoice {order.invoice} is paid. Read it: aicli billing invoice {order.invoice}"
    printing.show_message(order, text, as_json=as_json)


@billing.command()
@watching.listing_options("Print a JSON list; amounts in minor units, such as cents.")
@click.pass_obj
def invoices(here: CliContext, /, *, as_json: bool) -> None:
    """List your invoices, newest first."""
    _list(here, api.billing.ListInvoices(), as_json=as_json)


def _list(here: CliContext, request: "api.billing.ListInvoices", *, as_json: bool) -> None:
    from shared.lists.billing import INVOICES

    printing.show_list(here.call(api.billing.list_invoices, request).invoices, INVOICES, as_json=as_json)


@billing.command()
@click.argument("number")
@print_format.output_options("Print the invoice as a JSON object.")
@click.pass_obj
def invoice(here: CliContext, /, number: str, *, as_json: bool) -> None:
    """Show an invoice."""
    found = here.call(api.billing.get_invoice, api.billing.GetInvoice(number))
    printing.show_message(found, "\n".join(_lines(found)), as_json=as_json)


def _lines(invoice: "Invoice") -> list[str]:
    from shared import currency
    from shared.lists.billing import state

    document = invoice.document

    def money(minor: int) -> str:
        return currency.written(minor, document.currency)

    rows = [(line.text, money(line.amount_minor)) for line in document.lines]
    if document.tax_name:
        rows += [("Net", money(document.net_minor)), (f"{document.tax_name} {document.tax_percent} %", money(document.tax_minor))]
    rows.append(("Total", money(document.total_minor)))
    width, right = max(len(text) for text, _ in rows), max(len(amount) for _, amount in rows)
    dates = f"{document.issued_at:%Y-%m-%d}, due {document.due_at:%Y-%m-%d}"
    parties = [party.name for party in (document.seller, document.customer) if party.name]
    head = [f"Invoice {document.number}: {state(invoice)[0].lower()}", dates, " to ".join(map(printing.printable, parties))]
    return [*head, "", *(f"{printing.printable(text):<{width}}  {amount:>{right}}" for text, amount in rows)]


@click.group("plans")
def admin_plans() -> None:
    """List all plans, and give accounts one."""


@admin_plans.command("list")
@watching.listing_options("Print a JSON list; amounts in minor units, such as cents.")
@click.pass_obj
def list_plans(here: CliContext, /, *, as_json: bool) -> None:
    """List all plans. Change them with `aicli admin config apply`."""
    from shared.lists.billing import PLANS

    printing.show_list(here.call(api.billing.list_plans, api.billing.ListPlans()).plans, PLANS, as_json=as_json)


@admin_plans.command("set")
@click.argument("whose", metavar="ACCOUNT")
@click.argument("name", metavar="PLAN")
@click.option("--reason", required=True, help="Recorded in the audit log.")
@print_format.output_options("Print a JSON object.")
@click.pass_obj
def give_plan(here: CliContext, /, whose: str, name: str, *, reason: str, as_json: bool) -> None:
    """Begin PLAN for an ACCOUNT now, without a first invoice. ACCOUNT is a username, email address, user ID or organization ID."""
    order = here.run(lambda connection: _give(connection, whose, name, reason))
    printing.show_message(order, f"{printing.printable(whose)} has the plan {printing.printable(name)} from now on.", as_json=as_json)


async def _give(connection: "CliConnection", whose: str, name: str, reason: str) -> "Order":
    return await connection.call(api.billing.set_plan, api.billing.SetPlan(name, await _owner(connection, whose), reason))


async def _owner(connection: "CliConnection", whose: str) -> TenantId:
    try:
        return TenantId(UUID(whose))
    except ValueError:
        return TenantId((await connection.call(api.auth.get_user_called, api.auth.GetUserCalled(whose))).id)


@click.group("billing")
def admin_billing() -> None:
    """Look after what was paid at Stripe or Paddle."""


@admin_billing.command()
@click.argument("payment_id", metavar="ID")
@click.option("--owner", "whose", metavar="ACCOUNT", help="Whose payment it is: a username, email address, user ID or organization ID.")
@click.option("--reason", default="", help="Recorded in the audit log.")
@print_format.output_options("Print the payment as a JSON object; amounts in minor units, such as cents.")
@click.pass_obj
def adopt(here: CliContext, /, payment_id: str, *, whose: str | None, reason: str, as_json: bool) -> None:
    """Show a payment that waits in `aicli admin deferred list`; with --owner, give them what was paid.

    ID is that at the provider. With Paddle, the customer's browser may have written what the payment claims: compare it with what you know
    of the customer.
    """
    found = here.run(lambda connection: _adopt(connection, payment_id, whose, reason))
    printing.show_message(found, "\n".join(_facts(found, whose)), as_json=as_json)


async def _adopt(connection: "CliConnection", payment_id: str, whose: str | None, reason: str) -> "ProviderPayment":
    owner = None if whose is None else await _owner(connection, whose)
    return await connection.call(api.billing.adopt_payment, api.billing.AdoptPayment(payment_id, owner, reason))


def _facts(found: "ProviderPayment", whose: str | None) -> "Iterator[str]":
    from shared import currency

    yield f"payment       {found.id}, {'paid' if found.is_paid else 'not paid'}"
    yield f"amount        {currency.written(found.amount_minor, found.currency)}"
    yield f"customer      {printing.printable(found.customer or '-')}"
    if found.subscription is not None:
        yield f"subscription  {printing.printable(found.subscription)}"
    for name, value in found.claimed.items():
        yield f"claims        {name} {printing.printable(value)}"
    if whose is not None:
        yield f"{printing.printable(whose)} has what was paid."


@click.group("invoices")
def admin_invoices() -> None:
    """List the invoices of all accounts, and mark them as paid or take them back."""


@admin_invoices.command("list")
@click.option("--open", "only_open", is_flag=True, help="Only invoices that are not paid.")
@click.option("--before", metavar="NUMBER", help="Only invoices older than this one: the last of the page before.")
@options.whole_number("--limit", lambda: api.billing.ListInvoices, "limit", default=50, help="Maximum number of rows.")
@watching.listing_options("Print a JSON list; amounts in minor units, such as cents.")
@click.pass_obj
def list_invoices(here: CliContext, /, *, only_open: bool, before: str | None, limit: int, as_json: bool) -> None:
    """List the invoices of all accounts, newest first."""
    _list(here, api.billing.ListInvoices(everyone=True, only_open=only_open, before=before, limit=limit), as_json=as_json)


@admin_invoices.command()
@click.argument("number")
@click.option("--reference", required=True, help="How it was paid, such as `wire 17`.")
@print_format.output_options("Print the invoice as a JSON object.")
@click.pass_obj
def pay(here: CliContext, /, number: str, *, reference: str, as_json: bool) -> None:
    """Mark an invoice as paid. Its plan begins, or its credits are added."""
    found = here.call(api.billing.pay_invoice, api.billing.PayInvoice(number, reference))
    printing.show_message(found, f"The invoice {found.document.number} is paid.", as_json=as_json)


@admin_invoices.command()
@click.argument("number")
@click.option("--reason", required=True, help="Stands on the credit note.")
@click.option("--refund", is_flag=True, help="It was paid: take back its credits, or end its plan. You return the money.")
@click.option("--lost", is_flag=True, help="A restored database lacks it: no invoice gets this number again, nor those before it.")
@click.option("--yes", is_flag=True, help="Don't ask for confirmation of --lost.")
@print_format.output_options("Print the invoice as a JSON object.")
@click.pass_obj
def void(here: CliContext, /, number: str, *, reason: str, refund: bool, lost: bool, yes: bool, as_json: bool) -> None:
    """Take an invoice back, with a credit note."""
    if lost and not yes:
        _confirm_lost(here, number)
    found = here.call(api.billing.void_invoice, api.billing.VoidInvoice(number, reason, refund, lost))
    number = found.document.number
    text = f"{number} and the lost numbers before it are void." if lost else f"A credit note takes the invoice {number} back."
    printing.show_message(found, text, as_json=as_json)


def _confirm_lost(here: CliContext, number: str) -> None:
    """Ask, because a mistyped number ends up to a hundred others, and nobody can undo it."""
    if not sys.stdin.isatty():
        raise click.UsageError("cannot ask for confirmation without a terminal; use --yes")
    newest = here.call(api.billing.list_invoices, api.billing.ListInvoices(everyone=True, limit=1)).invoices
    since = f" after {newest[0].document.number}, the newest invoice," if newest else ""
    click.confirm(f"Void all numbers{since} up to {printing.printable(number)}? This cannot be undone.", abort=True, err=True)
