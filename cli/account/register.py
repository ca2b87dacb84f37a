"""`aicli register`, and how commands read a password: from a prompt or stdin, never from the command line."""

import sys

import click

from cli.cli_context import CliContext
from cli.output import printing


def password_from(stdin: bool, *, confirm: bool) -> str:
    """Read the password from the first line of stdin, or prompt for it. Raises click.UsageError if neither is possible."""
    if stdin:
        password = sys.stdin.readline().rstrip("\r\n")
        if not password:
            raise click.UsageError("the first line of stdin is empty; expected a password")
        return password
    return prompt_for("password", "--password-stdin", hidden=True, confirm=confirm)


def prompt_for(what: str, otherwise: str, *, hidden: bool = False, confirm: bool = False) -> str:
    """Prompt at the terminal. Without a terminal, say which option to use instead."""
    if not sys.stdin.isatty():
        raise click.UsageError(f"cannot prompt for the {what} without a terminal; use {otherwise}")
    answer: str = click.prompt(what.capitalize(), hide_input=hidden, confirmation_prompt=confirm, err=True)
    return answer


@click.command()
@click.argument("username", required=False)
@click.option("--email", metavar="ADDRESS", help="Email address of the account.")
@click.option("--invitation", metavar="CODE", help="Invitation code from your invitation email, if registration is closed.")
@click.option("--password-stdin", is_flag=True, help="Read the password from the first line of stdin.")
@click.option("--json", "as_json", is_flag=True, help="Print the account as a JSON object.")
@click.pass_obj
def register(
    here: CliContext, /, username: str | None, email: str | None, *, invitation: str | None, password_stdin: bool, as_json: bool
) -> None:
    """Create an account. Prompts for anything you leave out."""
    from shared.api import auth

    data = auth.UserData(
        username=username or prompt_for("username", "the argument USERNAME"),
        email=email or prompt_for("email address", "--email"),
        password=password_from(password_stdin, confirm=True),
    )
    user = here.call(auth.register_user, auth.RegisterUser(data, invitation=invitation), key_needed=False)
    if as_json:
        printing.show_json(printing.plain(user))
    else:
        click.echo(f"Account {printing.printable(user.username)} created. Next: aicli login {printing.printable(user.username)}")
