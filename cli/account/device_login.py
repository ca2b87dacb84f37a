"""Sign in without a password: print a code and a link, and wait until a person approves it in a browser (RFC 8628)."""

import asyncio
import time
from typing import TYPE_CHECKING

from cli.account import dashboard
from cli.output import printing
from shared import api, errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cli.connection import CliConnection
    from cli.profile import Profile
    from shared.api.auth import DeviceLogin, LoginSession

#: Between polls while the mesh does not answer.
_MAX_WAIT_SECONDS = 30.0


async def sign_in(connection: "CliConnection", profile: "Profile", machine: str, environment: "Mapping[str, str]") -> "LoginSession":
    """Raises DeviceLoginDenied and DeviceLoginExpired."""
    begun = await connection.call(api.auth.begin_device_login, api.auth.BeginDeviceLogin(machine[:100]))
    page = begun.verification_uri or profile.web_url.rstrip("/") + api.auth.DEVICE_PAGE
    link = begun.verification_uri_complete or f"{page}/{begun.user_code}"
    for line in (
        "Open this link in any browser:",
        f"  {link}",
        f"and approve the code {begun.user_code} within {begun.expires_in // 60} minutes.",
    ):
        printing.note(line)
    await asyncio.to_thread(dashboard.open_browser, link, environment)
    return await _wait(connection, begun)


async def _wait(connection: "CliConnection", begun: "DeviceLogin") -> "LoginSession":
    wait, until = float(begun.interval), time.monotonic() + begun.expires_in
    while time.monotonic() < until:
        await asyncio.sleep(wait)
        try:
            return await connection.call(api.auth.poll_device_login, api.auth.PollDeviceLogin(begun.device_code))
        except errors.AuthorizationPending as error:
            wait = begun.interval if error.retry_after_seconds is None else error.retry_after_seconds
        except errors.PeerError:
            wait = min(2 * wait, _MAX_WAIT_SECONDS)
    raise errors.DeviceLoginExpired("nobody approved the login in time", hint="run `aicli login` again")
