"""Tells whether this worker ends because its user has logged out: systemd then ends all services of a user who may not linger."""

import asyncio
from contextlib import suppress

LOGGED_OUT = "its user logged out"
_ASK_SECONDS = 5.0
#: systemd ends every process of a service that it finds, so also one that asks it a moment later.
_TRIES = 5


async def find_reason() -> str:
    """Return what to tell the mesh about the end of this process; empty if somebody stopped it, or the machine."""
    # Without a systemd of this user, as in a service of the machine, nothing answers.
    if await _state("--user") != "stopping":
        return ""
    return "" if await _state("--system") == "stopping" else LOGGED_OUT


async def _state(whose: str) -> str:
    """Return the state of the user's or the machine's systemd; empty if it doesn't answer."""
    for _ in range(_TRIES):
        if (state := await _ask(whose)) is not None:
            return state
    return ""


async def _ask(whose: str) -> str | None:
    """Return None if a signal ended the program that asks."""
    quiet, pipe = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            "systemctl", whose, "is-system-running", stdin=quiet, stdout=pipe, stderr=quiet, start_new_session=True
        )
    except OSError:
        return ""
    try:
        async with asyncio.timeout(_ASK_SECONDS):
            said, _ = await process.communicate()
    except TimeoutError:
        return ""
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return None if (process.returncode or 0) < 0 else said.decode(errors="replace").strip()
