"""What is on its way to the OTLP endpoint: sent in batches, tried again, and let go when there is too much."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from shared import errors
from shared.telemetry import logs

T = TypeVar("T")

#: About 20 MB of spans; at 1,000 a second an endpoint may be away for 20 s.
MAX_WAITING: Final = 20_000
BATCH: Final = 512
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 10.0
#: Where the endpoint itself says when; one that says later is asked all the same.
_LONGEST_ASKED_SECONDS: Final = 60.0

#: Raises Unavailable where it may be tried again, and BadRequest where these will never be taken.
Send = Callable[[Sequence[T]], Awaitable[None]]

_log = logs.get(part="otlp")


class Outbox(Generic[T]):
    """Of one kind of thing, such as spans."""

    def __init__(self, send: Send[T], lost: Callable[[int], object]) -> None:
        """``lost`` counts those that nobody will see."""
        self._send = send
        self._lost = lost
        self._waiting: deque[T] = deque()
        self._some = asyncio.Event()
        #: Why the last batch was not taken; empty when it was.
        self.trouble = ""

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, some: Sequence[T]) -> None:
        self._waiting.extend(some)
        too_many = len(self._waiting) - MAX_WAITING
        if too_many > 0:
            for _ in range(too_many):
                self._waiting.popleft()
            self._lost(too_many)
        if some:
            self._some.set()

    async def run(self) -> None:
        """For ever: send what waits."""
        pause_seconds = _FIRST_PAUSE_SECONDS
        while True:
            await self._some.wait()
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            if not batch:
                self._some.clear()
                continue
            try:
                await self._send(batch)
            except errors.Unavailable as error:
                self._say(error)
                self._waiting.extendleft(reversed(batch))
                self.put(())
                await asyncio.sleep(max(pause_seconds, min(error.retry_after_seconds or 0.0, _LONGEST_ASKED_SECONDS)))
                pause_seconds = min(pause_seconds * 2, _LONGEST_PAUSE_SECONDS)
            except errors.AimeshError as error:
                self._say(error)
                self._lost(len(batch))
            else:
                if self.trouble:
                    _log.info("the OTLP endpoint takes what is sent again")
                self.trouble, pause_seconds = "", _FIRST_PAUSE_SECONDS

    def _say(self, error: errors.AimeshError) -> None:
        if error.message != self.trouble:
            _log.warning("the OTLP endpoint takes nothing", why=error.message)
        self.trouble = error.message
