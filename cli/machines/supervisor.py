"""Keeps the worker processes of a machine running."""

import asyncio
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from cli.output.exit_codes import ExitCode

#: Statuses of a worker that no restart helps: settings that can't work, and a node that was revoked.
_SETTINGS_STATUS, _REVOKED_STATUS = ExitCode.USAGE, ExitCode.REVOKED


def supervise(programs: Mapping[str, tuple[Sequence[str], Mapping[str, str]]]) -> int:
    """Run all of them until SIGTERM or Ctrl-C, or until the first one, which is the machine's own, was revoked. Return its exit status."""
    return asyncio.run(_supervise(programs))


async def _supervise(programs: Mapping[str, tuple[Sequence[str], Mapping[str, str]]]) -> int:
    from stack.process_keeper import ProcessKeeper, StopWanted
    from stack.servers.program import Program

    stopped, status = asyncio.Event(), 0
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)

    def note(name: str, ended: int) -> None:
        nonlocal status
        if name == first and ended in (_SETTINGS_STATUS, _REVOKED_STATUS):
            status = ended
            stopped.set()
        elif ended == _REVOKED_STATUS:
            keepers[name].order(StopWanted())

    first = next(iter(programs))
    async with asyncio.TaskGroup() as tasks:
        keepers = {
            name: ProcessKeeper(
                # Relative paths of the settings are the shell's.
                Program(
                    name=name, command=tuple(command), environment=dict(environment), stage=1, hopeless_status=_SETTINGS_STATUS,
                    folder=Path.cwd(),
                ),
                None, tasks, lambda child: None, note,
            )
            for name, (command, environment) in programs.items()
        }  # fmt: skip
        for keeper in keepers.values():
            tasks.create_task(keeper.run())
        await stopped.wait()
        for keeper in keepers.values():
            keeper.order(StopWanted())
    return status
