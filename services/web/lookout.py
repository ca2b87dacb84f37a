"""Keeps in mind what alerts there are, for the top of every page of an administrator: asked for beside the pages, never by one of them.

The only owner of that memory in this process. A page takes what is remembered, so that a metrics service that is slow or away costs none
of them anything; it is asked once in some seconds at most, however many people look at however many pages, and not at all without them.
"""

import asyncio
from collections.abc import Callable

from services.web import banner
from services.web.banner import Banner
from services.web.caller import Caller
from shared import errors
from shared.api import alerts
from shared.types import Credential

#: An answer is good for so long before anybody is asked again, whether there was one or not.
ASK_AGAIN_SECONDS = 5.0
#: And for so long it is shown while there is no newer one: three looks of the metrics service.
REMEMBERED_SECONDS = 45.0
#: Nobody waits for it, so this only bounds how long one question can keep the next from being asked.
_ANSWER_SECONDS = 3.0


class Lookout:
    """``want``, ``note`` and ``banner`` return at once; ``run`` is the task."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._asked_at = float("-inf")
        self._seen_at = float("-inf")
        self._seen = banner.NOTHING
        #: Of who looks at a page just now; nobody else's is kept, and none for longer than the question.
        self._credential: Credential | None = None
        self._wanted = asyncio.Event()

    def banner(self) -> Banner:
        """Nothing to say where it is not known."""
        return self._seen if self._clock() - self._seen_at < REMEMBERED_SECONDS else banner.NOTHING

    def want(self, credential: Credential) -> None:
        """An administrator looks at a page: soon it will be known again."""
        if self._clock() - self._asked_at >= ASK_AGAIN_SECONDS:
            self._credential = credential
            self._wanted.set()

    def note(self, found: alerts.Alerts) -> None:
        """Somebody has asked for a page of their own."""
        self._seen, self._seen_at = banner.of(found.alerts), self._clock()

    async def run(self, caller: Caller) -> None:
        """For ever: ask when somebody looks, one question at a time."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            credential, self._credential = self._credential, None
            self._asked_at = self._clock()
            try:
                self.note(
                    await caller.call(alerts.list_alerts, alerts.ListAlerts(), deadline_seconds=_ANSWER_SECONDS, credential=credential)
                )
            except errors.AimeshError:
                # What is known counts until it is too old; that the metrics service is away stands on the page of health.
                continue
