"""`aicli keys`: create, list, rename, rotate and revoke API keys, and scan for leaked ones."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
import msgspec

from cli import options, value_completion
from cli.cli_context import CliContext
from cli.output import credit_amounts, print_format, printing, watching
from shared import api, errors, limits
from shared.types import Credential, ModelName

if TYPE_CHECKING:
    from cli.connection import CliConnection
    from cli.output.printing import Json
    from shared.api.auth import ApiKey, GenerateApiKey

    OptionValue = int | str | bool | tuple[str, ...] | None


def _limit_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add an option for each limit."""
    for kind in reversed(limits.LIMITS):
        flag, words = f"--{kind.name.replace('_', '-')}", f"Maximum {kind.words}{kind.about}."
        command = options.whole_number(flag, lambda: api.auth.ApiKeyLimits, kind.name, help=words)(command)
    return command


@click.group()
def keys() -> None:
    """Create, list, rotate and revoke API keys, and scan for leaked ones."""


@keys.command()
@click.argument("name")
@_limit_options
@click.option(
    "--budget",
    "budget_micro",
    callback=credit_amounts.reader(least_micro=1),
    metavar="CREDITS",
    help="Budget in credits, such as 2.5.",
)
@click.option(
    "--every",
    "budget_every",
    type=click.Choice(["day", "week", "month"]),
    help="Renew the budget each UTC day, week or month.  [default: never]",
)
@click.option(
    "--kind", type=click.Choice(["live", "test", "adm"]), default="live", help="live: for applications. test: for CI. adm: admin rights."
)
@click.option(
    "--scope", "scopes", multiple=True, help="Allow only this scope, such as key:write. Can be repeated. Default: models and usage."
)
@click.option(
    "--all-rights", is_flag=True, help="Full access: everything you can do, now and later, including managing keys and the account."
)
@click.option("--model", "models", multiple=True, shell_complete=value_completion.models, help="Allow only this model. Can be repeated.")
@click.option(
    "--network", "networks", multiple=True, metavar="CIDR", help="Allow only this network, such as 192.0.2.0/24. Can be repeated."
)
@options.whole_number(
    "--days", lambda: api.auth.GenerateApiKey, "days", help="Lifetime in days; 0 means no expiry. Default: 90, or 30 for a test key."
)
@print_format.output_options('Print {"key": …, "id": …, "name": …}.')
@click.pass_obj
def create(here: CliContext, /, name: str, *, as_json: bool, **options: "OptionValue") -> None:
    """Create a key called NAME and print it. It is shown only once.

    By default, a key can use models and read usage; change this with --scope or --all-rights. A live key never has admin rights. Limits
    of the key apply in addition to the account's: the strictest limit wins.
    """
    made = here.call(api.auth.generate_api_key, _request(name, options))
    if as_json:
        printing.show_json({"key": made.api_key, "id": str(made.key.id), "name": made.key.name})
        return
    click.echo(made.api_key)
    printing.note(f"Save the key {made.key.name!r} now: it is not shown again.")
    printing.note(_expiry(made.key))


def _request(name: str, options: "dict[str, OptionValue]") -> "GenerateApiKey":
    values = cast("dict[str, Any]", options)
    kind = api.auth.KeyKind(values.pop("kind"))
    models = tuple(ModelName(model) for model in values.pop("models"))
    bounds = api.auth.KeyBounds(values.pop("scopes"), models, values.pop("networks"))
    days, all_rights = values.pop("days"), values.pop("all_rights")
    of_key = msgspec.structs.replace(api.auth.ApiKeyLimits(), **values)
    return api.auth.GenerateApiKey(name=name, limits=of_key, kind=kind, bounds=bounds, days=days, all_rights=all_rights)


def _expiry(key: "ApiKey") -> str:
    if key.expires_at is None:
        return "It never expires."
    return f"It expires {key.expires_at:%Y-%m-%d}. To replace it: aicli keys rotate"


@keys.command()
@click.argument("key", metavar="NAME_OR_ID", shell_complete=value_completion.keys)
@click.argument("name", metavar="NEW_NAME")
@click.pass_obj
def rename(here: CliContext, /, key: str, name: str) -> None:
    """Rename a key."""
    renamed = here.call(api.auth.rename_api_key, api.auth.RenameApiKey(_no_secret(key), name))
    click.echo(f"{printing.printable(renamed.preview)} is now called {printing.printable(renamed.name)}.")


@keys.command()
@click.argument("key", metavar="NAME_OR_ID", shell_complete=value_completion.keys)
@options.whole_number(
    "--overlap-hours",
    lambda: api.auth.RotateApiKey,
    "overlap_seconds",
    unit=3600,
    default=24,
    help="Hours that the old secret keeps working.",
)
@print_format.output_options('Print {"key": …, "id": …, "name": …}.')
@click.pass_obj
def rotate(here: CliContext, /, key: str, *, overlap_hours: int, as_json: bool) -> None:
    """Create a new secret for a key and print it. The old secret stops working after the overlap."""
    made = here.call(api.auth.rotate_api_key, api.auth.RotateApiKey(_no_secret(key), overlap_hours * 3600))
    if as_json:
        printing.show_json({"key": made.api_key, "id": str(made.key.id), "name": made.key.name})
        return
    click.echo(made.api_key)
    ends = "no longer works" if overlap_hours == 0 else f"keeps working for {overlap_hours} h"
    printing.note(f"Save the new secret of {made.key.name!r} now: it is not shown again. The old one {ends}.")


@keys.command()
@click.argument("places", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--revoke", "revokes", is_flag=True, help="Revoke every key found that still works, using the key itself.")
@print_format.output_options("Print a JSON list without the secrets.")
@click.pass_obj
def scan(here: CliContext, /, places: tuple[Path, ...], *, revokes: bool, as_json: bool) -> None:
    """Scan PLACES (files or folders, default: the current folder) for leaked keys, tickets and tokens.

    Exits with 1 if it finds any, for use in hooks and CI. Nothing is sent over the network unless you use --revoke.
    """
    from cli.account import leaked_keys

    found = [leak for place in places or (Path(),) for leak in leaked_keys.find(place)]
    ended = {leak.secret: _revoke_with_own_secret(here, leak.secret) for leak in found if revokes and leak.is_key}
    if as_json:
        rows: list[Json] = [
            {"path": str(leak.path), "line": leak.line, "kind": leak.kind, "key": leak.preview, "now": ended.get(leak.secret, "")}
            for leak in found
        ]
        printing.show_json(rows)
    else:
        for leak in found:
            state = f"  {ended[leak.secret]}" if leak.secret in ended else ""
            click.echo(f"{printing.printable(str(leak.path))}:{leak.line}: {leak.kind} {leak.preview}{state}")
        if found and not revokes:
            printing.note(
                "Anyone who can read these files can use them. Revoke each (aicli keys revoke, or scan --revoke), then create new ones."
            )
        elif not found:
            printing.note("Nothing found.")
    sys.exit(1 if found else 0)


def _revoke_with_own_secret(here: CliContext, secret: str) -> str:
    """Return what to print about a leaked key after trying to revoke it."""
    from cli.account import login

    key = Credential(secret)

    async def work(connection: "CliConnection") -> str:
        # A key that works and is not listed is the old secret of a rotated key.
        return (
            "revoked now" if await login.revoke(connection, key, by=key) else "STILL WORKS (old secret of a rotated key): aicli keys revoke"
        )

    try:
        return here.run(work, key_needed=False)
    except errors.NotAuthenticated:
        return "no longer works"
    except errors.NotAllowed:
        return "STILL WORKS and may not revoke itself: aicli keys revoke"


@keys.command("list")
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def list_(here: CliContext, /, *, as_json: bool) -> None:
    """List your API keys. Use -o wide to see their IDs."""
    from shared.lists.keys import list_keys

    listed = here.call(api.auth.list_api_keys, api.auth.ListApiKeys())
    printing.show_list(listed.keys, list_keys(datetime.now(UTC)), as_json=as_json, create="Create one: aicli keys create NAME")


@keys.command()
@click.argument("key", metavar="NAME_OR_ID", shell_complete=value_completion.keys)
@click.option("--with-made", is_flag=True, help="Also revoke keys created with this key, and keys created with those.")
@print_format.output_options("Print the revoked key as a JSON object.")
@click.pass_obj
def revoke(here: CliContext, /, key: str, *, with_made: bool, as_json: bool) -> None:
    """Revoke a key by name or ID. It stops working immediately and cannot be restored."""
    revoked = here.call(api.auth.revoke_api_key, api.auth.RevokeApiKey(_no_secret(key), with_made))
    if as_json:
        printing.show_json(printing.plain(revoked))
        return
    also = " and all keys it created" if with_made else ""
    click.echo(f"Revoked {printing.printable(revoked.name)} ({printing.printable(revoked.preview)}){also}.")
    if not with_made and (created := _made_by(here, revoked)):
        names = ", ".join(printing.printable(other.name) for other in created)
        printing.note(f"Keys it created still work: {names}. To revoke them too: aicli keys revoke --with-made {revoked.id}")


def _made_by(here: CliContext, key: "ApiKey") -> "list[ApiKey]":
    """Return the working keys that the key created; none if this credential may not list keys, as after revoking itself."""
    try:
        listed = here.call(api.auth.list_api_keys, api.auth.ListApiKeys())
    except errors.CallerError:
        return []
    return [other for other in listed.keys if other.made_by == key.id and other.is_active]


def _no_secret(key: str) -> str:
    if key.startswith("aip_"):
        # A key on the command line ends up in the shell's history and in `ps`.
        raise errors.BadRequest("this is the key itself; never put a key on a command line", hint="use its name or ID; see aicli keys list")
    return key
