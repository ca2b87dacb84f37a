"""`aicli register`, `aicli login` and `aicli logout`: an account, and an API key for this machine, saved in the profile.

The password and its session are discarded immediately. Only the key stays: `aicli keys list` shows it under the machine's name, and it can
be revoked from anywhere.
"""

import asyncio
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from cli.cli_context import CliContext
from cli.output import print_format, printing
from shared import api, errors, plan_names
from shared.types import Credential, UserRole

if TYPE_CHECKING:
    from cli.connection import CliConnection
    from cli.profile import Profile
    from shared.api.auth import CreatedApiKey, Credentials, LoginSession, User

_MAX_KEY_CHARACTERS = 1024


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
@print_format.output_options("Print the account as a JSON object.")
@click.pass_obj
def register(
    here: CliContext, /, username: str | None, email: str | None, *, invitation: str | None, password_stdin: bool, as_json: bool
) -> None:
    """Create an account. Prompts for anything you leave out."""
    data = api.auth.UserData(
        username=username or prompt_for("username", "the argument USERNAME"),
        email=email or prompt_for("email address", "--email"),
        password=password_from(password_stdin, confirm=True),
    )
    user = here.call(api.auth.register_user, api.auth.RegisterUser(data, invitation=invitation), key_needed=False)
    printing.show_message(
        user, f"Account {printing.printable(user.username)} created. Next: aicli login {printing.printable(user.username)}", as_json=as_json
    )


@click.command()
@print_format.output_options("Print the account as a JSON object.")
@click.pass_obj
def whoami(here: CliContext, /, *, as_json: bool) -> None:
    """Show the account of the key that aicli uses."""
    user = here.run(_read_owner)
    printing.show_message(user, f"{printing.printable(user.username)} ({user.role}, tier {plan_names.name_of(user.tier)})", as_json=as_json)


class _UrlOptions(TypedDict):
    """Options of a login at a URL."""

    url: str | None
    profile_name: str | None
    ca_file: str | None
    insecure: bool


@click.command()
@click.argument("names", metavar="[URL] [USERNAME|EMAIL]", nargs=-1)
@click.option("--url", metavar="URL", help="Use aicli over HTTPS at this address: creates a profile for it.")
@click.option("--profile", "profile_name", metavar="NAME", help="Name of the URL's profile. Default: its host.")
@click.option("--ca-file", type=click.Path(exists=True, dir_okay=False), help="CA of the URL's certificate, if it is private.")
@click.option("--insecure", is_flag=True, help="Allow http:// to another machine: anyone in between can read your key.")
@click.option("--password-stdin", is_flag=True, help="Read the password from the first line of stdin.")
@click.option("--api-key-stdin", is_flag=True, help="Read an existing API key from the first line of stdin, instead of a password.")
@click.option("--key-name", metavar="NAME", help="Name of the new key. Default: this machine's hostname.")
@print_format.output_options("Print the account as a JSON object.")
@click.pass_obj
def login(
    here: CliContext,
    /,
    names: tuple[str, ...],
    *,
    password_stdin: bool,
    api_key_stdin: bool,
    key_name: str | None,
    as_json: bool,
    **options: Unpack[_UrlOptions],
) -> None:
    """Sign in: create an API key for this machine and save it in the current profile, or in a new one for URL.

    The first time, an aicli that a mesh installed needs no URL. Without a name, it prints a link, and you approve the login in a browser on
    any machine. With a name, it asks for the password.

    \b
    aicli login https://ai.example.org
    aicli login https://ai.example.org alice
    """
    from cli import profile
    from cli.account import profiles

    if names and names[0].startswith(("https://", "http://")):
        options["url"], *rest = names
        names = tuple(rest)
    if len(names) > 1:
        raise click.UsageError(f"unexpected argument {names[1]!r}")
    path, before = profiles.find_target(here, **options)
    if api_key_stdin:
        key, saved = api_key_from_stdin(), "the key"
        user = here.run_with(replace(before, api_key=key), _read_owner)
    else:
        user, made = _sign_in(here, before, names[0] if names else None, key_name, from_stdin=password_stdin)
        key, saved = made.api_key, f"the key {printing.printable(made.key.name)!r}"
    kept = _keep_other_account(path, before, user.username)
    profile.write(path, replace(before, api_key=key, username=user.username))
    if before.url is not None:
        profiles.make_usable(here, path)
    if as_json:
        printing.show_json(printing.plain(user))
        return
    click.echo(f"Logged in as {printing.printable(user.username)}; {saved} is in {path}.")
    if kept:
        printing.note(f"{before.username} was logged in before; AICLI_PROFILE={kept} still uses {before.username}.")
    if here.environment.get("AICLI_API_KEY"):
        printing.note("AICLI_API_KEY is set and overrides the profile's key.")


def api_key_from_stdin() -> "Credential":
    """Raises click.UsageError if the first line of stdin is no API key."""
    from shared.identity import credentials

    key = sys.stdin.readline(_MAX_KEY_CHARACTERS).strip()
    if not credentials.looks_like_api_key(key):
        raise click.UsageError("stdin has no valid API key: it may be incomplete")
    return Credential(key)


async def _read_owner(connection: "CliConnection") -> "User":
    return (await connection.call(api.accounts.get_account, api.accounts.GetAccount())).user


def _sign_in(
    here: CliContext, before: "Profile", name: str | None, key_name: str | None, *, from_stdin: bool
) -> "tuple[User, CreatedApiKey]":
    import platform

    from cli.account import device_login

    title = key_name or platform.node() or "aicli"
    credentials = _credentials(name, from_stdin=from_stdin) if name or from_stdin else None

    async def work(connection: "CliConnection") -> "tuple[User, CreatedApiKey]":
        if credentials is None:
            session = await device_login.sign_in(connection, before, title, here.environment)
        else:
            session = await connection.call(api.auth.login_user, api.auth.LoginUser(credentials))
        return await _exchange(connection, await _finish(connection, session), title, before.api_key)

    return here.run_with(before, work)


def _credentials(name: str | None, *, from_stdin: bool) -> "Credentials":
    name = name or prompt_for("username or email address", "the argument USERNAME")
    by_email = "@" in name
    return api.auth.Credentials(
        password=password_from(from_stdin, confirm=False), username=None if by_email else name, email=name if by_email else None
    )


async def _exchange(
    connection: "CliConnection", session: "LoginSession", title: str, old: "Credential | None"
) -> "tuple[User, CreatedApiKey]":
    """Create a key with a session, and close the session."""
    token = session.access_token
    # An administrator uses this machine to administer, which needs a key of kind adm. Other users cannot create one.
    kind = api.auth.KeyKind.ADMIN if session.user.role is UserRole.ADMIN else api.auth.KeyKind.LIVE
    try:
        made = await connection.call(
            api.auth.generate_api_key, api.auth.GenerateApiKey(name=title, kind=kind, all_rights=True), credential=token
        )
        if old is not None:
            # The new key replaces the old one in the profile. Revoke the old key, or it would stay valid unnoticed.
            await revoke(connection, old, by=token)
    finally:
        await connection.call(api.auth.logout_user, api.auth.LogoutUser(session.session_token), credential=token)
    return session.user, made


async def _finish(connection: "CliConnection", session: "LoginSession") -> "LoginSession":
    """Answer the second factor, if there is one. Raises SecondFactorNeeded if only the web can do it."""
    if session.step is api.auth.Step.SET_UP_MFA:
        raise errors.SecondFactorNeeded(
            "administrators need a second factor, and this account has none",
            hint="run `aicli login` without a name: the browser sets it up on the way",
        )
    if session.step is api.auth.Step.DONE:
        return session
    code = await asyncio.to_thread(prompt_for, "code of your authenticator app, or a recovery code", "a terminal to type it")
    return await connection.call(api.auth.confirm_login, api.auth.ConfirmLogin(code.strip()), credential=session.access_token)


async def revoke(connection: "CliConnection", key: "Credential", *, by: "Credential") -> bool:
    """Return False if the key is not listed: lists show a key's newest secret, and the previous one works for a while after a rotation."""
    listed = await connection.call(api.auth.list_api_keys, api.auth.ListApiKeys(), credential=by)
    own = [entry for entry in listed.keys if entry.is_active and _is_shown_as(key, entry.preview)]
    for entry in own:
        await connection.call(api.auth.revoke_api_key, api.auth.RevokeApiKey(str(entry.id)), credential=by)
    return bool(own)


def _is_shown_as(key: "Credential", preview: str) -> bool:
    """Return whether a preview, the first 12 and the last 4 characters of a key, can be this key's."""
    return len(key) > 16 and preview.startswith(key[:12]) and preview.endswith(key[-4:])


def _keep_other_account(path: Path, before: "Profile", username: str) -> Path | None:
    """Keep the previous account's profile, above all the admin's that `make up` created."""
    from cli import profile

    if before.api_key is None or not before.username or before.username == username:
        return None
    safe = "".join(char if char.isalnum() or char in "-_" else "_" for char in before.username)
    kept = path.with_name(f"{path.stem}.{safe}.toml")
    profile.write(kept, before)
    return kept


@click.command()
@click.pass_obj
def logout(here: CliContext) -> None:
    """Log out: revoke this machine's key and remove it from the profile."""
    from cli import profile

    place = profile.find(here.environment, here.folder)
    if place.path is None:
        raise errors.BadSettings("AIMESH_URL is set, so there is no profile to log out of", hint="unset AIMESH_URL and AIMESH_API_KEY")
    before = profile.read(place.path)
    key = before.api_key
    if key is None:
        raise errors.NotAuthenticated("you are not logged in: this profile has no key")

    async def work(connection: "CliConnection") -> bool:
        return await revoke(connection, key, by=key)

    is_over = True
    # If the key was revoked elsewhere, it only has to be removed here.
    with suppress(errors.NotAuthenticated):
        is_over = here.run(work)
    profile.write(place.path, replace(before, api_key=None, username=None))
    if is_over:
        click.echo("Logged out; the key is revoked.")
    else:
        click.echo("Logged out. The key was rotated elsewhere: this profile's old secret keeps working until the overlap ends.")
