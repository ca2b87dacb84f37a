"""`aicli profile`: list, choose and remove profiles; and the profile that `aicli login URL` creates."""

import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import click
import msgspec

from cli import installation, profile, value_completion
from cli.cli_context import CliContext
from cli.output import printing, watching
from cli.output.printing import TableColumn
from cli.profile import Profile
from shared import errors

#: Written by `aicli mesh connect` beside the profile, under its name.
_BESIDE = (".nk", ".nk.new", ".mesh")


class ProfileRow(msgspec.Struct, frozen=True):
    name: str
    #: A URL, or the name of a mesh; empty if the profile cannot be read.
    connects_to: str
    username: str | None
    is_default: bool


def find_target(
    here: CliContext, *, url: str | None, profile_name: str | None, ca_file: str | None, insecure: bool
) -> tuple[Path, Profile]:
    """Return the file and the profile to sign in with: of the URL, which need not exist, or the current one; at first, of the mesh that
    installed this aicli.

    Raises BadSettings and click.UsageError.
    """
    place = None if url else profile.look(here.environment, here.folder)
    if url is None and place is None:
        installed = installation.find(Path(sys.prefix))
        if installed is None or not installed.mesh:
            raise profile.none_found()
        url, ca_file = installed.mesh, ca_file or (str(installed.ca_file) if installed.ca_file else None)
    if place is not None and place.path is not None:
        if profile_name or ca_file or insecure:
            raise click.UsageError("--profile, --ca-file and --insecure need a URL: aicli login URL")
        return place.path, profile.read(place.path)
    ca_file = ca_file or here.environment.get("AIMESH_CA_FILE")
    url = url or here.environment["AIMESH_URL"].strip()
    new = profile.at_url(url, ca_file=Path(ca_file).resolve() if ca_file else None, insecure=insecure)
    chosen = profile_name or profile.chosen_name(here.environment) or re.sub(r"[^A-Za-z0-9._-]+", "-", urlsplit(url).netloc).strip("-._")
    path = profile.place_of(chosen, here.environment)
    if not path.exists():
        return path, new
    old = profile.read(path)
    if old.url is None:
        raise click.UsageError(f"the profile {chosen!r} is for a mesh; choose another name with --profile")
    # A key is only for the address that it was made for.
    return path, replace(new, api_key=old.api_key, username=old.username) if old.url == new.url else new


def make_usable(here: CliContext, path: Path) -> None:
    """Make a new profile the default if there is none, and say how to use it if another one comes first."""
    environment = {name: value for name, value in here.environment.items() if name != "AICLI_PROFILE"}
    if path.parent != profile.folder_of_user(environment):
        return
    if profile.default_name(environment) not in profile.names(environment):
        profile.set_default(path.stem, environment)
    used = profile.find(environment, here.folder)
    if used.path != path:
        printing.note(f"Commands in this folder use {used.why}. To use this profile: aicli --profile {path.stem} COMMAND")


@click.group("profile")
def profiles() -> None:
    """List, choose and remove profiles: the meshes and addresses that aicli can use."""


@profiles.command("list")
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def list_profiles(here: CliContext, /, *, as_json: bool) -> None:
    """List your profiles."""
    default = profile.default_name(here.environment)
    rows = [_row_of(name, here.environment, is_default=name == default) for name in profile.names(here.environment)]
    columns: list[TableColumn[ProfileRow]] = [
        TableColumn("PROFILE", lambda row: row.name),
        TableColumn("CONNECTS TO", lambda row: row.connects_to or "unreadable", wraps=True),
        TableColumn("ACCOUNT", lambda row: row.username or "–", rank=2),
        TableColumn("DEFAULT", lambda row: "yes" if row.is_default else "", rank=3),
    ]
    printing.show_rows(rows, columns, as_json=as_json, empty="No profiles. Create one: aicli login https://HOST")


def _row_of(name: str, environment: Mapping[str, str], *, is_default: bool) -> ProfileRow:
    try:
        found = profile.read(profile.place_of(name, environment))
    except errors.BadSettings:
        return ProfileRow(name, "", None, is_default)
    return ProfileRow(name, found.url or f"mesh {found.mesh}", found.username, is_default)


@profiles.command()
@click.argument("name", shell_complete=value_completion.profiles)
@click.pass_obj
def use(here: CliContext, /, name: str) -> None:
    """Make NAME the default profile."""
    path = _existing(name, here.environment)
    profile.set_default(name, here.environment)
    click.echo(f"The default profile is now {name!r}.")
    make_usable(here, path)


@profiles.command()
@click.argument("name", shell_complete=value_completion.profiles)
@click.pass_obj
def remove(here: CliContext, /, name: str) -> None:
    """Delete the profile NAME and its key files from this machine."""
    path = _existing(name, here.environment)
    account = _row_of(name, here.environment, is_default=False).username
    for place in (path, *map(path.with_suffix, _BESIDE)):
        place.unlink(missing_ok=True)
    click.echo(f"Removed the profile {name!r}.")
    if account:
        printing.note(f"Its API key is still valid. {account} can revoke it: aicli keys revoke")


def _existing(name: str, environment: Mapping[str, str]) -> Path:
    path = profile.place_of(name, environment)
    if not path.is_file():
        known = ", ".join(profile.names(environment)) or "none"
        raise errors.BadSettings(f"there is no profile {name!r}", hint=f"your profiles: {known}")
    return path
