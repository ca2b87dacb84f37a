"""After the first start: check the first admin's key, and write the profile that `aicli` finds and a file with the password.

auth created the user and the key from ADMIN_PASSWORD_FILE and ADMIN_API_KEY_FILE. Everything here is idempotent: a key that works is kept.
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from cli import connection, profile
from cli.connection import CliConnection, Connect
from cli.profile import Profile
from shared import errors
from shared.api import auth, ledger
from shared.lists import prices
from shared.types import Credential
from stack import secret_files, stack_plan
from stack import stack_home as homes
from stack.settings import StackSettings
from stack.stack_home import StackHome

ADMIN = "admin"
#: The mesh has just started, and its nodes are still discovering each other.
_CALL_SECONDS = 20.0
_PAUSE_SECONDS = 0.5


async def ensure_profile(home: StackHome, settings: StackSettings, connect: Connect = connection.open_) -> Profile:
    """Ensure that the profile of this stack's client node has a working key. Raises AimeshError."""
    wanted = Profile(
        node_key_file=home.key("client"),
        mesh=settings.mesh,
        nats_url=stack_plan.nats_url(settings),
        nats_ca_file=settings.nats_ca_file,
        nats_cert_file=settings.nats_cert_file,
        nats_key_file=settings.nats_key_file,
        nats_creds_file=settings.nats_creds_file,
        web_url=stack_plan.public_url("web", settings),
        username=ADMIN,
    )
    present = _present(home)
    if present is not None:
        wanted = replace(wanted, api_key=present.api_key, username=present.username)
    async with connect(wanted) as mesh:
        if not await _works(mesh, wanted):
            wanted = await _with_first_key(mesh, home, wanted)
    if wanted != present:
        profile.write(home.profile, wanted)
    return wanted


def _present(home: StackHome) -> Profile | None:
    try:
        return profile.read(home.profile)
    except errors.BadSettings:
        return None


async def _works(mesh: CliConnection, wanted: Profile) -> bool:
    if wanted.api_key is None:
        return False
    deadline = time.monotonic() + _CALL_SECONDS
    while True:
        try:
            await mesh.call(auth.list_api_keys, auth.ListApiKeys(), credential=wanted.api_key, deadline_seconds=_CALL_SECONDS)
        except errors.NotAuthenticated:
            return False  # the database is new, or the key was revoked
        except errors.NotReachable:
            if time.monotonic() >= deadline:
                raise
            await asyncio.sleep(_PAUSE_SECONDS)
        else:
            return True


async def _with_first_key(mesh: CliConnection, home: StackHome, wanted: Profile) -> Profile:
    """Try the key that auth gave to the administrator it created."""
    wanted = replace(wanted, api_key=Credential(secret_files.read(home, "admin_key")), username=ADMIN)
    if not await _works(mesh, wanted):
        # `aicli login` needs a profile to save its key in.
        profile.write(home.profile, replace(wanted, api_key=None))
        raise errors.NotAuthenticated(
            f"everything is running, but {ADMIN}'s saved API key no longer works", hint="log in as an administrator: aicli login"
        )
    _write_page(home, wanted)
    return wanted


def _write_page(home: StackHome, wanted: Profile) -> None:
    text = (
        f"web:      {wanted.web_url}\n"
        f"user:     {ADMIN}\n"
        f"password: {secret_files.read(home, 'admin_password')}\n"
        f"API key:  {wanted.api_key}\n\n"
        "The first time you sign in on the web, set up an authenticator app.\n"
        "These were created at the first start. Keep this file private, or delete it: aicli doesn't need it.\n"
    )
    homes.write_private(page(home), text)


async def has_example_prices(home: StackHome, connect: Connect = connection.open_) -> bool:
    """Return whether no administrator has set prices; False without an answer."""
    with suppress(errors.AimeshError):
        async with connect(profile.read(home.profile)) as mesh:
            return prices.are_examples((await mesh.call(ledger.list_prices, ledger.ListPrices())).prices)
    return False


def page(home: StackHome) -> Path:
    return home.root / "admin.txt"  # has the first user's password and key
