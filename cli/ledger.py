"""`aicli admin ledger`: whether the books add up, and corrections."""

from typing import TYPE_CHECKING
from uuid import UUID

import click

from cli.exit_codes import ExitCode
from cli.surroundings import Surroundings

if TYPE_CHECKING:
    from shared.api.ledger import LedgerReport

#: More than the gateway gives itself.
_VERIFY_SECONDS, _FULL_VERIFY_SECONDS = 60, 1860


@click.group()
def ledger() -> None:
    """Check the books, and give back what a request cost."""


@ledger.command()
@click.option("--full", is_flag=True, help="Sum up every entry, and compare each closed day with its checkpoint. May take minutes.")
@click.option("--json", "as_json", is_flag=True, help="Print the sums and the findings as an object.")
@click.pass_context
def verify(context: click.Context, /, *, full: bool, as_json: bool) -> None:
    """Sum up the entries since the last signed checkpoint and compare. Exits with 1 if anything is wrong, and says what."""
    from cli import output
    from shared.api import ledger as books

    here = context.find_object(Surroundings)
    assert here is not None  # the group has put it there
    seconds = _FULL_VERIFY_SECONDS if full else _VERIFY_SECONDS
    report = here.run(lambda connection: connection.call(books.verify_ledger, books.VerifyLedger(full), deadline_seconds=seconds))
    wrong = _is_wrong(report)
    if as_json:
        output.show_json(output.plain(report))
    else:
        accounts, entries = output.counted(report.accounts, "account"), output.counted(report.entries, "entry", "entries")
        looked = f"{accounts}, {entries}, {output.counted(report.open_reservations, 'open reservation')}"
        closed = f" Until {report.closed_until.isoformat()} by signed checkpoints." if report.closed_until else ""
        click.echo(f"The books are {'WRONG' if wrong else 'right'}: {looked}.{closed}")
        for finding in report.findings:
            click.echo(f"  {output.printable(finding)}")
    if wrong:
        context.exit(ExitCode.FAILED)


def _is_wrong(report: "LedgerReport") -> bool:
    return bool(report.drift_micro or report.sum_micro or report.reserved_drift_micro or report.overdue or report.findings)


@ledger.command()
@click.argument("request_id", type=click.UUID)
@click.option("--note", default="", help="Why; kept with the entries.")
@click.option("--json", "as_json", is_flag=True, help="Print the account as an object; amounts are micro-credits.")
@click.pass_obj
def revert(here: Surroundings, /, request_id: UUID, *, note: str, as_json: bool) -> None:
    """Give back what the request of this id cost. Each request can be reverted once.

    The id is in the answer to the request (x-request-id) and in the logs.
    """
    from cli import amounts, output
    from shared.api import ledger as books
    from shared.types import RequestId

    account = here.ask(books.revert_request, books.RevertRequest(RequestId(request_id), note))
    if as_json:
        output.show_json(output.plain(account))
        return
    click.echo("Given back. The account now:")
    for line in amounts.account_lines(account):
        click.echo(line)
