"""`aicli admin credits`, `aicli admin budget` and `aicli admin ledger`: accounts and budgets, the ledger, and refunds."""

from typing import TYPE_CHECKING
from uuid import UUID

import click

from cli.cli_context import CliContext
from cli.option_values import NumberTakingCommand
from cli.output import credit_amounts, print_format, printing
from cli.output.exit_codes import ExitCode
from shared import api, errors
from shared.types import MicroCredits, RequestId, UserId

if TYPE_CHECKING:
    from cli.connection import CliConnection
    from shared.api.ledger import Account, TopUp


@click.command("credits", cls=NumberTakingCommand)
@click.argument("whose", metavar="ACCOUNT")
@click.argument("amount", callback=credit_amounts.reader(), required=False)
@click.option("--note", default="", help="Reason, stored with the entries.")
@click.option("--transfer-id", type=click.UUID, metavar="UUID", help="Makes retries safe: a transfer with the same ID is applied once.")
@print_format.output_options("Print the account as a JSON object; amounts in micro-credits.")
@click.pass_obj
def credits_(here: CliContext, /, whose: str, amount: MicroCredits | None, *, note: str, transfer_id: UUID | None, as_json: bool) -> None:
    """Show the credits of an account, or add AMOUNT to them. ACCOUNT is a username, email address, user ID or organization ID.

    \b
    aicli admin credits alice 100
    aicli admin credits alice -2.5 --note "typed twice"
    """
    from shared import context

    if amount == 0:
        raise click.UsageError("an AMOUNT of 0 changes nothing; leave it out to see the balance")
    if amount is None:
        if note or transfer_id:
            raise click.UsageError("--note and --transfer-id require an AMOUNT")
        account = here.run(lambda connection: _read(connection, whose))
    else:
        chosen = RequestId(transfer_id) if transfer_id else context.new_request_id()
        wanted = api.ledger.TopUp(whose, amount, note=note, transfer_id=chosen)
        account = here.run(lambda connection: _top_up(connection, wanted))
    printing.show_message(account, "\n".join(credit_amounts.account_lines(account)), as_json=as_json)


async def _read(connection: "CliConnection", whose: str) -> "Account":
    try:
        owner = UserId(UUID(whose))
    except ValueError:
        owner = (await connection.call(api.auth.get_user_called, api.auth.GetUserCalled(whose))).id
    return await connection.call(api.ledger.read_account, api.ledger.ReadAccount(owner))


async def _top_up(connection: "CliConnection", wanted: "TopUp") -> "Account":
    """Run the call. If its outcome is unknown, add to the error how to retry safely."""
    try:
        return await connection.call(api.ledger.top_up, wanted)
    except (errors.CallerError, errors.NotReachable):
        raise
    except errors.AimeshError as error:
        error.hint = f"to retry safely, run it again with --transfer-id {wanted.transfer_id}"
        raise


#: Longer than the gateway's own limit.
_VERIFY_SECONDS, _FULL_VERIFY_SECONDS = 60, 1860


@click.command("budget")
@click.argument("owner")
@click.argument("amount", callback=credit_amounts.reader(least_micro=1), required=False)
@click.option(
    "--every",
    type=click.Choice(["day", "week", "month"]),
    help="Renew the budget each UTC day, week or month.  [default: never]",
)
@click.option("--none", "removes", is_flag=True, help="Remove the budget.")
@print_format.output_options("Print the budget as a JSON object; amounts in micro-credits.")
@click.pass_obj
def budget(here: CliContext, /, owner: str, amount: MicroCredits | None, *, every: str | None, removes: bool, as_json: bool) -> None:
    """Limit what all requests of OWNER may cost. OWNER is a username, email address, user ID or organization ID.

    A budget that is never renewed counts what OWNER has spent before, too.

    \b
    aicli admin budget alice 20 --every month
    aicli admin budget alice --none
    """
    from shared.lists.account import budget_words

    if (amount is None) != removes or (removes and every is not None):
        raise click.UsageError("give an AMOUNT, or --none to remove the budget")
    wanted = None if amount is None else api.auth.Budget(amount, None if every is None else api.auth.Every(every))
    found = here.call(api.auth.set_budget, api.auth.SetBudget(owner, wanted))
    words = "no budget" if found.budget is None else budget_words(found.budget)
    printing.show_message(found, f"{printing.printable(found.name)}: {words}", as_json=as_json)


@click.group()
def ledger() -> None:
    """Verify the ledger and refund requests."""


@ledger.command()
@click.option("--full", is_flag=True, help="Verify every entry, and compare each closed day with its checkpoint. May take minutes.")
@print_format.output_options("Print the totals and findings as a JSON object.")
@click.pass_context
@click.pass_obj
def verify(here: CliContext, context: click.Context, /, *, full: bool, as_json: bool) -> None:
    """Verify the entries since the last signed checkpoint. Exits with 1 and lists the problems if anything is wrong."""
    seconds = _FULL_VERIFY_SECONDS if full else _VERIFY_SECONDS
    report = here.run(lambda connection: connection.call(api.ledger.verify_ledger, api.ledger.VerifyLedger(full), deadline_seconds=seconds))
    drifts = (report.drift_micro, report.sum_micro, report.reserved_drift_micro, report.drift_tokens)
    wrong = any(drifts) or bool(report.overdue or report.findings)
    if as_json:
        printing.show_json(printing.plain(report))
    else:
        accounts, entries = printing.counted(report.accounts, "account"), printing.counted(report.entries, "entry", "entries")
        checked = f"{accounts}, {entries}, {printing.counted(report.open_reservations, 'open reservation')}"
        closed = f" Days until {report.closed_until.isoformat()} are covered by signed checkpoints." if report.closed_until else ""
        click.echo(f"The ledger is {'WRONG' if wrong else 'OK'}: {checked}.{closed}")
        for finding in report.findings:
            click.echo(f"  {printing.printable(finding)}")
    if wrong:
        context.exit(ExitCode.FAILED)


@ledger.command()
@click.argument("request_id", type=click.UUID)
@click.option("--note", default="", help="Reason, stored with the entries.")
@print_format.output_options("Print the account as a JSON object; amounts in micro-credits.")
@click.pass_obj
def revert(here: CliContext, /, request_id: UUID, *, note: str, as_json: bool) -> None:
    """Refund the request with this ID. Each request can be refunded once.

    The ID is in the response (X-Request-ID header) and in the logs.
    """
    account = here.call(api.ledger.revert_request, api.ledger.RevertRequest(RequestId(request_id), note))
    lines = ["Refunded. The account now:", *credit_amounts.account_lines(account)]
    printing.show_message(account, "\n".join(lines), as_json=as_json)
