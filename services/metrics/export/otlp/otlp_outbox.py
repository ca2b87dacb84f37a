"""What is on its way to the OTLP endpoint: sent in batches, tried again, and let go when there is too much."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final, Generic, TypeVar

from services.metrics.export.otlp.partial_success import Rejection, Rejections
from shared import errors
from shared.telemetry import logs
from shared.timing.backoff import Backoff

T = TypeVar("T")

#: About 20 MB of spans; at 1,000 a second an endpoint may be away for 20 s.
MAX_WAITING: Final = 20_000
BATCH: Final = 512
_BACKOFF = Backoff(first_seconds=0.5, longest_seconds=10.0)
#: Where the endpoint itself says when; one that says later is asked all the same.
_LONGEST_ASKED_SECONDS: Final = 60.0

#: What of them was not taken, or None. Raises Unavailable where it may be tried again, and BadRequest where these will never be taken.
Send = Callable[[Sequence[T]], Awaitable[Rejection | None]]
#: Counts those that nobody will see.
Count = Callable[[int], object]

_log = logs.get(part="otlp")


class OtlpOutbox(Generic[T]):
    """Of one kind of thing, such as spans."""

    def __init__(self, what: str, send: Send[T], lost: Count, rejected: Count, clock: Callable[[], float] = time.monotonic) -> None:
        """``what`` they are, for people. Those are ``rejected`` that the endpoint left out of a batch that it took."""
        self._send = send
        self._lost = lost
        self._rejected = rejected
        self._clock = clock
        self._rejections = Rejections(what)
        self._waiting: deque[T] = deque()
        self._some = asyncio.Event()
        #: Why the last batch was not taken; empty when it was.
        self.trouble = ""

    def __len__(self) -> int:
        return len(self._waiting)

    def complaint(self) -> str:
        """What is wrong with the endpoint; empty when nothing is."""
        return self.trouble or self._rejections.complaint(self._clock())

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
        failures = 0
        while True:
            await self._some.wait()
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            if not batch:
                self._some.clear()
                continue
            try:
                rejection = await self._send(batch)
            except errors.Unavailable as error:
                self._say(error)
                self._waiting.extendleft(reversed(batch))
                self.put(())
                failures += 1
                await asyncio.sleep(max(_BACKOFF.pause(failures), min(error.retry_after_seconds or 0.0, _LONGEST_ASKED_SECONDS)))
            except errors.AimeshError as error:
                self._say(error)
                self._lost(len(batch))
            else:
                if self.trouble:
                    _log.info("the OTLP endpoint takes what is sent again")
                self.trouble, failures = "", 0
                self._note(rejection, len(batch))

    def _note(self, rejection: Rejection | None, sent: int) -> None:
        """They are not sent again: https://opentelemetry.io/docs/specs/otlp/#partial-success-1 forbids it."""
        now = self._clock()
        if rejection is None:
            if self._rejections.end(now):
                _log.info("the OTLP endpoint takes all again", what=self._rejections.what)
            return
        # Whoever rejects more than there was means all of it.
        rejection = replace(rejection, count=min(rejection.count, sent))
        if rejection.count:
            self._rejected(rejection.count)
        if self._rejections.note(rejection, now):
            event = "the OTLP endpoint took a part" if rejection.count else "the OTLP endpoint took all and has something to say"
            _log.warning(event, what=self._rejections.what, rejected=rejection.count, why=rejection.why)

    def _say(self, error: errors.AimeshError) -> None:
        if error.message != self.trouble:
            _log.warning("the OTLP endpoint takes nothing", why=error.message)
        self.trouble = error.message
