"""Fetch packages when a machine needs them. Only a checkout can: an image has no tools for it."""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from services.web import install_script
from shared.telemetry import logs

_log = logs.get(part="install")
_CHECKOUT = Path(__file__).parents[2]
_PROGRAM = "tools.packages.install_index"
FETCHING = "the mesh is fetching the packages for this machine now; run the line again in two minutes"
NEEDS_TICKET = (
    "the mesh has no packages for this machine yet, and fetches them for a line with a ticket: "
    "ask an administrator for one (aicli admin tickets create)"
)
FAILED = "the mesh could not fetch the packages for this machine, and tries again in ten minutes; the log of its web service says why"
#: 140 MB on a slow connection.
_FETCH_SECONDS = 1800.0
_PAUSE_SECONDS = 600.0


class PackageFetcher:
    """Fetches each target once, one at a time, however often machines ask. ``want`` never blocks; ``run`` is the background task."""

    def __init__(self, checkout: Path = _CHECKOUT) -> None:
        self._checkout = checkout
        self._waiting: asyncio.Queue[str] = asyncio.Queue(len(install_script.TARGETS))
        #: Target -> the answer for its machines.
        self._said: dict[str, str] = {}

    def want(self, target: str, *, has_ticket: bool) -> str | None:
        """Return what to tell the machine; None if these packages can't be fetched here."""
        if target not in install_script.TARGETS or not (self._checkout / f"{_PROGRAM.replace('.', '/')}.py").is_file():
            return None
        if target not in install_script.DEFAULT_TARGETS and not has_ticket:
            return NEEDS_TICKET
        if target not in self._said:
            self._said[target] = FETCHING
            self._waiting.put_nowait(target)
        return self._said[target]

    async def run(self, folder: Path) -> None:
        """Never returns."""
        while True:
            target = await self._waiting.get()
            if not await self._fetch(target, folder):
                self._said[target] = FAILED
                await asyncio.sleep(_PAUSE_SECONDS)
                del self._said[target]
            elif target.startswith("worker"):
                # In the background, because they take minutes, and other machines may want packages meanwhile.
                await self._fetch(target, folder, "--libraries", "--background")

    async def _fetch(self, target: str, folder: Path, *more: str) -> bool:
        """Run the program; its output goes to web's log."""
        command = (sys.executable, "-m", _PROGRAM, "--into", str(folder), "--target", target, *more)
        quiet = asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(*command, cwd=self._checkout, stdin=quiet, stdout=quiet, start_new_session=True)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_FETCH_SECONDS):
                    await process.wait()
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        _log.info("packages_fetched", target=target, status=process.returncode)
        return process.returncode == 0
