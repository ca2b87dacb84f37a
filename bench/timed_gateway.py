"""A gateway that writes every half second how long its event loop was held.

python -m bench.timed_gateway
"""

import asyncio
import os
import time
from pathlib import Path
from typing import NamedTuple

from services.gateway import __main__ as gateway
from services.gateway.service import GatewayService

FILE = "TIMED_GATEWAY_FILE"
_TICK_SECONDS = 0.005
_WRITE_SECONDS = 0.5


class Stall(NamedTuple):
    """The longest in half a second."""

    #: Seconds since 1970.
    at: float
    #: The loop's thread alone, on a processor.
    held_ms: float
    #: With its waits for a processor, as other programs run.
    late_ms: float


def read(file: Path, since: float) -> list[Stall]:
    found = [Stall(*map(float, line.split())) for line in file.read_text(encoding="ascii").splitlines()]
    return [stall for stall in found if stall.at >= since]


def main() -> None:
    start_tasks = GatewayService._start_tasks

    def start_more_tasks(self: GatewayService) -> None:
        start_tasks(self)
        self.parts.node.tasks.create_task(_measure(Path(os.environ[FILE])))

    setattr(GatewayService, "_start_tasks", start_more_tasks)  # noqa: B010 - mypy rejects an assignment
    gateway.main()


async def _measure(file: Path) -> None:
    held, late, written_at = 0.0, 0.0, time.monotonic()
    with file.open("a", encoding="ascii") as output:
        while True:
            began, spent = time.monotonic(), time.thread_time()
            await asyncio.sleep(_TICK_SECONDS)
            now = time.monotonic()
            held, late = max(held, time.thread_time() - spent), max(late, now - began - _TICK_SECONDS)
            if now - written_at >= _WRITE_SECONDS:
                print(f"{time.time():.3f} {1000 * held:.1f} {1000 * late:.1f}", file=output, flush=True)
                held, late, written_at = 0.0, 0.0, now


if __name__ == "__main__":
    main()
