"""`aicli admin signing-keys`: the keys that sign access tokens."""

import click

from cli.surroundings import Surroundings


@click.group("signing-keys")
def signing_keys() -> None:
    """Change the keys that sign access tokens."""


@signing_keys.command()
@click.option("--at-once", is_flag=True, help="The present one has leaked: forget it now, and every access token with it.")
@click.option("--json", "as_json", is_flag=True, help="Print the public keys as a list.")
@click.pass_obj
def rotate(here: Surroundings, /, *, at_once: bool, as_json: bool) -> None:
    """Publish a new key. It signs after a quarter of an hour, when every part of the mesh knows it, and nobody is logged out."""
    from cli import output
    from shared.api import auth

    found = here.ask(auth.rotate_signing_keys, auth.RotateSigningKeys(at_once))
    if as_json:
        output.show_json(output.plain(found))
        return
    for key in found.keys:
        click.echo(key.kid)
    output.note(
        "Every access token has ended; who is logged in gets a new one by itself."
        if at_once
        else "The new key signs in a quarter of an hour."
    )
