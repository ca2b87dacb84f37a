"""`aicli keys`: make, list and revoke API keys."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from cli import amounts
from cli.surroundings import Surroundings

if TYPE_CHECKING:
    from shared.api.auth import ApiKey, KeyLimits

#: What the columns of auth hold.
_LIMIT = click.IntRange(1, 2**31 - 1)


@click.group()
def keys() -> None:
    """Make, list and revoke API keys."""


@keys.command()
@click.argument("name")
@click.option("--requests-per-hour", type=_LIMIT, help="At most so many in any hour.")
@click.option("--requests-per-minute", type=_LIMIT, help="At most so many in a minute.")
@click.option("--tokens-per-minute", type=_LIMIT, help="Of prompts and answers together.")
@click.option("--concurrency", type=_LIMIT, help="Requests that run at once.")
@click.option(
    "--budget",
    "budget_micro",
    callback=amounts.reader(least_micro=1),
    metavar="CREDITS",
    help="What all its requests may cost, such as 2.5.",
)
@click.option("--json", "as_json", is_flag=True, help='Print {"key": …, "id": …, "name": …}.')
@click.pass_obj
def create(here: Surroundings, /, name: str, *, as_json: bool, **limits: int | None) -> None:
    """Make a key called NAME and print it: now, and never again.

    Limits of the key hold besides the account's: the tightest one counts.
    """
    import msgspec

    from cli import output
    from shared.api import auth

    wanted = auth.GenerateApiKey(name=name, limits=msgspec.structs.replace(auth.KeyLimits(), **limits))
    made = here.ask(auth.generate_api_key, wanted)
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
        Column("LIMITS", lambda key: output.names(_in_words(key.limits))),
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


def _in_words(limits: "KeyLimits") -> Iterator[str]:
    from cli import output
    from shared.amounts import written

    shown = {
        "{}/h": limits.requests_per_hour,
        "{}/min": limits.requests_per_minute,
        "{} tokens/min": limits.tokens_per_minute,
        "{} at once": limits.concurrency,
        "{}": None if limits.budget_micro is None else output.counted(written(limits.budget_micro), "credit"),
    }
    return (text.format(value) for text, value in shown.items() if value is not None)
