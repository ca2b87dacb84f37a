"""`aicli admin credits`: show and top up an account's credits."""

from typing import TYPE_CHECKING
from uuid import UUID

import click

from cli.cli_context import CliContext
from cli.output import credit_amounts, printing
from shared import errors

if TYPE_CHECKING:
    from cli.connection import CliConnection
    from shared.api.ledger import Account, TopUp
    from shared.types import MicroCredits


# Parse unknown options as arguments, so that -5 is an amount.
@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("whose", metavar="ACCOUNT")
@click.argument("amount", callback=credit_amounts.reader(), required=False)
@click.option("--note", default="", help="Reason, stored with the entries.")
@click.option("--transfer-id", type=click.UUID, metavar="UUID", help="Makes retries safe: a transfer with the same ID is applied once.")
@click.option("--json", "as_json", is_flag=True, help="Print the account as a JSON object; amounts in micro-credits.")
@click.pass_obj
def credits_(here: CliContext, /, whose: str, amount: "MicroCredits | None", *, note: str, transfer_id: UUID | None, as_json: bool) -> None:
    """Show the credits of an account, or add AMOUNT to them. ACCOUNT is a username, email address, user ID or organization ID.

    \b
    aicli admin credits alice 100
    aicli admin credits alice -2.5 --note "typed twice"
    """
    from shared import context
    from shared.api import ledger
    from shared.types import RequestId

    if amount == 0:
        raise click.UsageError("an AMOUNT of 0 changes nothing; leave it out to see the balance")
    if amount is None:
        if note or transfer_id:
            raise click.UsageError("--note and --transfer-id require an AMOUNT")
        account = here.run(lambda connection: _read(connection, whose))
    else:
        chosen = RequestId(transfer_id) if transfer_id else context.new_request_id()
        wanted = ledger.TopUp(whose, amount, note=note, transfer_id=chosen)
        account = here.run(lambda connection: _top_up(connection, wanted))
    if as_json:
        printing.show_json(printing.plain(account))
        return
    for line in credit_amounts.account_lines(account):
        click.echo(line)


async def _read(connection: "CliConnection", whose: str) -> "Account":
    from shared.api import auth, ledger
    from shared.types import UserId

    try:
        owner = UserId(UUID(whose))
    except ValueError:
        owner = (await connection.call(auth.get_user_called, auth.GetUserCalled(whose))).id
    return await connection.call(ledger.read_account, ledger.ReadAccount(owner))


async def _top_up(connection: "CliConnection", wanted: "TopUp") -> "Account":
    """Run the call. If its outcome is unknown, add to the error how to retry safely."""
    from shared.api import ledger

    try:
        return await connection.call(ledger.top_up, wanted)
    except (errors.CallerError, errors.NotReachable):
        raise
    except errors.AimeshError as error:
        error.hint = f"to retry safely, run it again with --transfer-id {wanted.transfer_id}"
        raise
