"""`aicli guard`: try what guardrails do with personal data and secrets."""

from typing import IO, TYPE_CHECKING

import click

from cli import value_completion
from cli.account import policy
from cli.cli_context import CliContext
from cli.output import print_format, printing
from cli.output.printing import TableColumn
from shared import api, errors

if TYPE_CHECKING:
    from cli.connection import CliConnection
    from shared.api.configuration import GuardMatch, GuardTest


@click.group()
def guard() -> None:
    """Test the guardrails of a policy. See `aicli policy`."""


@guard.command()
@click.argument("file", type=click.File(encoding="utf-8"))
@click.option("--answer", "is_answer", is_flag=True, help="Use the rules for answers instead of those for prompts.")
@click.option("--organization", metavar="NAME_OR_ID", help="Use the policy of an organization.")
@click.option("--key", metavar="NAME_OR_ID", shell_complete=value_completion.keys, help="Use the policy of a key.")
@print_format.output_options("Print a JSON object: matches, shown, refused.")
@click.pass_obj
def test(here: CliContext, /, file: IO[str], *, is_answer: bool, organization: str | None, key: str | None, as_json: bool) -> None:
    """Show what guardrails find in FILE (`-` for stdin), and the resulting text. Default: your own policy."""
    from shared.lists.policies import KINDS

    try:
        text = file.read(api.configuration.MAX_GUARD_CHARACTERS + 1)
    except UnicodeDecodeError as error:
        raise errors.BadRequest("the file is not UTF-8 text", hint="convert it first") from error
    if len(text) > api.configuration.MAX_GUARD_CHARACTERS:
        raise errors.TooLarge(f"the file has more than {api.configuration.MAX_GUARD_CHARACTERS} characters", hint="test a part of it")

    async def work(connection: "CliConnection") -> "GuardTest":
        tenant = await policy.find_organization(connection, organization) if organization else None
        key_id = await policy.find_key(connection, key) if key else None
        return await connection.call(api.configuration.test_guard, api.configuration.GuardText(text, is_answer, tenant, key_id))

    found = here.run(work)
    if as_json:
        printing.show_json(printing.plain(found))
        return
    columns: list[TableColumn[GuardMatch]] = [
        TableColumn("LINE", lambda match: f"{match.line}:{match.column}"),
        TableColumn("FOUND", lambda match: match.name or KINDS[match.kind]),
        TableColumn("ACTION", lambda match: match.action.value),
        TableColumn("FROM", lambda match: match.level),
    ]
    printing.show_rows(found.matches, columns, as_json=False, empty="Nothing was found.")
    if found.refused and not is_answer:
        printing.note("The request would be refused.")
    elif any(match.action.value != "report" for match in found.matches):
        printing.note("The text would end before the first refused match:" if found.refused else "The resulting text:")
        click.echo(found.shown, nl=not found.shown.endswith("\n"))
