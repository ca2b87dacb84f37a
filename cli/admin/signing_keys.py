"""`aicli admin signing-keys`: manage the keys that sign access tokens."""

import click

from cli.cli_context import CliContext
from cli.output import printing


@click.group("signing-keys")
def signing_keys() -> None:
    """Manage the keys that sign access tokens."""


@signing_keys.command()
@click.option("--at-once", is_flag=True, help="Revoke the current key now (it leaked). All access tokens become invalid.")
@click.option("--json", "as_json", is_flag=True, help="Print the public keys as a JSON list.")
@click.pass_obj
def rotate(here: CliContext, /, *, at_once: bool, as_json: bool) -> None:
    """Publish a new signing key. It takes effect after 15 minutes, when every service knows it. Nobody is logged out."""
    from shared.api import auth

    found = here.call(auth.rotate_signing_keys, auth.RotateSigningKeys(at_once))
    if as_json:
        printing.show_json(printing.plain(found))
        return
    for key in found.keys:
        click.echo(key.kid)
    printing.note(
        "All access tokens are invalid now. Sessions get new ones automatically." if at_once else "The new key takes effect in 15 minutes."
    )
