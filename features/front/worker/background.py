"""Tells the owner of a machine which of its servers and models are new. Nothing is shared before its owner chooses it."""

import asyncio
from pathlib import Path

from features.front.rules import sharing
from features.front.rules.local_servers import PROGRAMS
from features.front.settings import FrontSettings
from services.inference.features import Site, WorkerTask
from shared import errors

_PAUSE_SECONDS = 60.0
#: Of the pauses: a server is asked for its models when it appears, and then only sometimes.
_PAUSES_BETWEEN_LOOKS = 5
_OPEN_SECONDS = 0.1


async def _run(site: Site) -> None:
    before: set[int] = set()
    waited = 0
    while (file := site.settings.of(FrontSettings).choice_file) is not None:
        ports = {port for port in {program.port for program in PROGRAMS} if await _is_open(port)}
        waited += 1
        if ports != before or (ports and waited >= _PAUSES_BETWEEN_LOOKS):
            await _look(site, file, ports)
            before, waited = ports, 0
        await asyncio.sleep(_PAUSE_SECONDS)


async def _look(site: Site, file: Path, ports: set[int]) -> None:
    from features.front.worker import look  # noqa: PLC0415 - 10 MB, which a machine without servers doesn't need

    try:
        kept = await asyncio.to_thread(sharing.read, file)
        new = sharing.find_new(await look.look_all(file.parent) if ports else (), kept)
    except errors.BadSettings as error:
        # The worker serves on; at its next start, aicli says it.
        site.watcher.inform("", (error.message,))
        return
    # A worker of the stack has no membership of its own.
    way, place = (sharing.BY_STACK, "make up") if site.settings.mesh_state_file is None else (sharing.BY_WORKER, "aicli worker status")
    site.watcher.inform(sharing.summarize_new(new, kept, place), tuple(sharing.describe_new(new, kept, way)))


async def _is_open(port: int) -> bool:
    try:
        async with asyncio.timeout(_OPEN_SECONDS):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


PART = WorkerTask(name="new servers", run=_run)
