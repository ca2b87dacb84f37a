"""The backup agent, which prints the longest pause of its event loop when it ends: the other process of `tests.features.backup.bench`."""

import asyncio
import sys

from features.backup.stack.agent import backup_agent
from shared.node.lifecycle import background
from shared.processes import end
from tests import stopwatch


class _WatchedAgent(backup_agent.Agent):
    async def run(self, stop: asyncio.Event) -> None:
        async with background() as tasks:
            tasks.create_task(_watch(longest := [0.0]))
            await super().run(stop)
        print(1000 * longest[0], file=sys.stderr)


async def _watch(longest: list[float]) -> None:
    while True:
        start = stopwatch.now()
        await asyncio.sleep(0.005)
        longest[0] = max(longest[0], stopwatch.now() - start - 0.005)


if __name__ == "__main__":
    backup_agent.Agent = _WatchedAgent  # type: ignore[misc]
    end(backup_agent.main())
