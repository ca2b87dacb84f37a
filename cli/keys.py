"""`aicli keys`: make, list and revoke API keys."""

from typing import TYPE_CHECKING

import click

from cli.surroundings import Surroundings

if TYPE_CHECKING:
    from shared.api.auth import ApiKey


@click.group()
def keys() -> None:
    """Make, list and revoke API keys."""


@keys.command()
@click.argument("name")
@click.option("--requests-per-hour", type=click.IntRange(1, 1_000_000_000), help="A limit tighter than the account's own.")
@click.option("--json", "as_json", is_flag=True, help='Print {"key": …, "id": …, "name": …}.')
@click.pass_obj
def create(here: Surroundings, /, name: str, requests_per_hour: int | None, *, as_json: bool) -> None:
    """Make a key called NAME and print it: now, and never again."""
    from cli import output
    from shared.api import auth

    made = here.ask(auth.generate_api_key, auth.GenerateApiKey(name=name, requests_per_hour=requests_per_hour))
    if as_json:
        output.show_json({"key": made.api_key, "id": str(made.key.id), "name": made.key.name})
        return
    click.echo(made.api_key)
    output.note(f"This is the only time that the key {made.key.name!r} is shown; keep it where secrets are kept.")


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
@click.pass_obj
def list_(here: Surroundings, /, *, as_json: bool) -> None:
    """List your keys. Their ids are in the output of --json."""
    from cli import output
    from cli.output import Column
    from shared.api import auth

    listed = here.ask(auth.list_api_keys, auth.ListApiKeys())
    columns: list[Column[ApiKey]] = [
        Column("NAME", lambda key: key.name),
        Column("KEY", lambda key: key.preview),
        Column("STATE", lambda key: "active" if key.is_active else "revoked", lambda key: "green" if key.is_active else "dim"),
        Column("PER HOUR", lambda key: "–" if key.requests_per_hour is None else str(key.requests_per_hour)),
        Column("AGE", lambda key: output.ago(key.created_at)),
        Column("LAST USED", lambda key: "–" if key.last_used_at is None else f"{output.ago(key.last_used_at)} ago"),
    ]
    output.show_rows(listed.keys, columns, as_json=as_json, empty="No keys yet: aicli keys create NAME")


@keys.command()
@click.argument("key", metavar="NAME_OR_ID")
@click.option("--json", "as_json", is_flag=True, help="Print the revoked key as an object.")
@click.pass_obj
def revoke(here: Surroundings, /, key: str, *, as_json: bool) -> None:
    """Revoke a key, by its name or its id. It stops working at once, for good."""
    from cli import output
    from shared import errors
    from shared.api import auth

    if key.startswith("aip_"):
        # A whole key on the command line is in the shell's history and in ps by now: revoking it is right, pasting it was not.
        raise errors.BadRequest("that is a key itself, which does not belong on a command line", hint="name it; see aicli keys list")
    gone = here.ask(auth.revoke_api_key, auth.RevokeApiKey(key))
    if as_json:
        output.show_json(output.plain(gone))
    else:
        click.echo(f"Revoked {output.printable(gone.name)} ({output.printable(gone.preview)}).")
