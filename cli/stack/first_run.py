"""After the first start: a key for the first admin, the profile that `aicli` finds by itself, and a page for people.

auth has created the user from its ADMIN_PASSWORD_FILE. All of it is idempotent: a key that still works is kept.
"""

import socket
from dataclasses import replace
from pathlib import Path

from cli import connection, profile
from cli.connection import Connect, Connection
from cli.profile import Profile
from cli.stack import home as homes
from cli.stack import plan, secret_files
from cli.stack.home import Home
from cli.stack.settings import StackSettings
from shared import errors
from shared.api import auth

ADMIN = "admin"
#: The mesh has just come up; its nodes still find each other.
_CALL_SECONDS = 20.0


async def ensure_profile(home: Home, settings: StackSettings, connect: Connect = connection.open_) -> Profile:
    """The profile of this stack's client node, with a key that works. Raises AimeshError."""
    wanted = Profile(
        node_key_file=home.key("client"),
        mesh=settings.mesh,
        nats_url=plan.nats_url(settings),
        nats_ca_file=settings.nats_ca_file,
        web_url=plan.public_url("web", settings),
        username=ADMIN,
    )
    present = _present(home)
    if present is not None:
        wanted = replace(wanted, api_key=present.api_key, username=present.username)
    async with connect(wanted) as mesh:
        if not await _works(mesh, wanted):
            wanted = await _with_new_key(mesh, home, wanted)
    if wanted != present:
        profile.write(home.profile, wanted)
    return wanted


def _present(home: Home) -> Profile | None:
    try:
        return profile.read(home.profile)
    except errors.BadSettings:
        return None


async def _works(mesh: Connection, wanted: Profile) -> bool:
    if wanted.api_key is None:
        return False
    try:
        await mesh.call(auth.list_api_keys, auth.ListApiKeys(), credential=wanted.api_key, deadline_seconds=_CALL_SECONDS)
    except errors.NotAuthenticated:
        return False  # the database is a new one, or the key was revoked
    return True


async def _with_new_key(mesh: Connection, home: Home, wanted: Profile) -> Profile:
    credentials = auth.Credentials(username=ADMIN, password=secret_files.read(home, "admin_password"))
    try:
        session = await mesh.call(auth.login_user, auth.LoginUser(credentials), deadline_seconds=_CALL_SECONDS)
    except errors.NotAuthenticated as error:
        # `aicli login` needs a profile to write its key into.
        profile.write(home.profile, replace(wanted, api_key=None))
        raise errors.NotAuthenticated(
            f"everything runs, but there is no working key, and the password in {home.secrets / 'admin_password'} is not that of {ADMIN}",
            hint="log in with the right one: aicli login",
        ) from error
    request = auth.GenerateApiKey(name=f"make up on {socket.gethostname()}")
    made = await mesh.call(auth.generate_api_key, request, credential=session.access_token, deadline_seconds=_CALL_SECONDS)
    _write_page(home, wanted, made.api_key)
    return replace(wanted, api_key=made.api_key, username=ADMIN)


def _write_page(home: Home, wanted: Profile, key: str) -> None:
    text = (
        f"web:      {wanted.web_url}\n"
        f"user:     {ADMIN}\n"
        f"password: {secret_files.read(home, 'admin_password')}\n"
        f"API key:  {key}\n\n"
        "As they were when the stack was first started. Keep this file to yourself, or delete it: aicli does not read it.\n"
    )
    homes.write_private(page(home), text)


def page(home: Home) -> Path:
    """The file with the first user's password and key."""
    return home.root / "admin.txt"
