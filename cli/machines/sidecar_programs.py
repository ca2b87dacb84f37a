"""Runs one of the programs that come with Hyperswarm's sidecar in the foreground: until Ctrl-C or SIGTERM, or until it ends."""

import asyncio
import contextlib
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence

from cli import interrupts
from shared import errors

#: Less than a second on an idle machine. More than this and it hangs.
_READY_SECONDS = 60.0
#: It has sockets to close and nothing else.
_GRACE_SECONDS = 3.0


def run(command: Sequence[str], environment: Mapping[str, str], ready: Callable[[], None]) -> None:
    """Calls ``ready`` when the program says that it is. Raises Internal if it ends by itself, or never gets ready."""
    try:
        interrupts.run(_live(command, environment, ready), grace_seconds=2 * _GRACE_SECONDS)
    except KeyboardInterrupt:
        # That is how one ends it.
        return


async def _live(command: Sequence[str], environment: Mapping[str, str], ready: Callable[[], None]) -> None:
    # It ends when its standard input does, so also when we are killed; and Ctrl-C is for us.
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env=dict(environment), start_new_session=True)
    try:
        assert process.stdout is not None
        try:
            async with asyncio.timeout(_READY_SECONDS):
                line = await process.stdout.readline()
        except TimeoutError:
            raise errors.Internal(f"not ready after {_READY_SECONDS:.0f} s", hint="are the DHT nodes reachable by UDP?") from None
        if line:
            ready()
        status = await process.wait()
        raise errors.Internal(f"it ended with status {status}", hint="what it said of the reason is above")
    finally:
        await _end(process)


async def _end(process: Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_GRACE_SECONDS):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
