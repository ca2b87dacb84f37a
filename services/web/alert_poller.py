"""Poll the alerts in the background for the banner on admin pages.

Pages read the cached banner, so a slow or missing metrics service never delays them. The poller asks at most once every few seconds in
total, and only while an administrator uses the pages. It is the only owner of this cache in the process.
"""

import asyncio
from collections.abc import Callable

from services.web import alert_banner
from services.web.alert_banner import AlertBanner
from services.web.mesh_calls import MeshCalls
from shared import errors
from shared.api import alerts
from shared.types import Credential

#: The shortest interval between two requests, successful or not.
MIN_POLL_SECONDS = 5.0
#: How long a banner is shown without a newer one: three collection intervals of the metrics service.
REMEMBERED_SECONDS = 45.0
#: The deadline of a request. No page waits for it.
_ANSWER_SECONDS = 3.0


class AlertPoller:
    """Caches the banner. ``want``, ``note`` and ``alert_banner`` never block; ``run`` is the background task."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._polled_at = float("-inf")
        self._seen_at = float("-inf")
        self._seen = alert_banner.NOTHING
        #: The credential of the administrator who asked last; dropped as soon as the request is sent.
        self._credential: Credential | None = None
        self._wanted = asyncio.Event()

    def banner(self) -> AlertBanner:
        """Return the cached banner; empty if it is unknown."""
        return self._seen if self._clock() - self._seen_at < REMEMBERED_SECONDS else alert_banner.NOTHING

    def want(self, credential: Credential) -> None:
        """Request a refresh with this administrator's credential, unless the last one is recent."""
        if self._clock() - self._polled_at >= MIN_POLL_SECONDS:
            self._credential = credential
            self._wanted.set()

    def note(self, found: alerts.Alerts) -> None:
        """Store alerts that a page has fetched itself."""
        self._seen, self._seen_at = alert_banner.of(found.alerts), self._clock()

    async def run(self, caller: MeshCalls) -> None:
        """Poll on demand, one request at a time. Never returns."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            credential, self._credential = self._credential, None
            self._polled_at = self._clock()
            try:
                self.note(
                    await caller.call(alerts.list_alerts, alerts.ListAlerts(), deadline_seconds=_ANSWER_SECONDS, credential=credential)
                )
            except errors.AimeshError:
                # Keep the cached banner until it expires. The health page reports that metrics is down.
                continue
