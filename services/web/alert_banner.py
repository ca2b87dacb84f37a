"""Build the banner that administrators see while severe alerts fire that nobody has silenced, and refresh it in the background.

Pages read the cached banner, so a slow or missing metrics service never delays them. The poller asks at most once every few seconds in
total, and only while an administrator uses the pages. It is the only owner of this cache in the process.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from services.web.mesh_calls import MeshCalls
from shared import errors
from shared.api import alerts
from shared.api.alerts import Alert
from shared.lists.alerts import tone
from shared.lists.columns import Tone
from shared.types import Credential

#: How many alerts are named; the rest are counted.
_NAMED = 3
#: The shortest interval between two requests, successful or not.
MIN_POLL_SECONDS = 5.0
#: How long a banner is shown without a newer one: three collection intervals of the metrics service.
REMEMBERED_SECONDS = 45.0
#: The deadline of a request. No page waits for it.
_ANSWER_SECONDS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertBanner:
    """One line of text; hidden while ``words`` is empty."""

    words: str = ""
    names: str = ""


NOTHING = AlertBanner()


def of(listed: Iterable[Alert]) -> AlertBanner:
    """Return the banner for these alerts, sorted by severity."""
    bad = [alert for alert in listed if tone(alert.severity) is Tone.BAD and alert.state == "firing"]
    left = [alert for alert in bad if not alert.silenced]
    if not left:
        return NOTHING
    # Show identical summaries of several nodes once.
    summaries = list(dict.fromkeys(alert.summary for alert in left))
    rest = len(summaries) - _NAMED
    names = ", ".join(summaries[:_NAMED]) + (f", and {rest} more" if rest > 0 else "")
    return AlertBanner(words=f"{len(left)} alert{'s' * (len(left) != 1)}:", names=names)


def values(banner: AlertBanner) -> dict[str, object]:
    """Return the values that live pages receive."""
    return {"banner": banner.words, "banner_names": banner.names}


class AlertPoller:
    """Caches the banner. ``want``, ``note`` and ``alert_banner`` never block; ``run`` is the background task."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._polled_at = float("-inf")
        self._seen_at = float("-inf")
        self._seen = NOTHING
        #: The credential of the administrator who asked last; dropped as soon as the request is sent.
        self._credential: Credential | None = None
        self._wanted = asyncio.Event()

    def banner(self) -> AlertBanner:
        """Return the cached banner; empty if it is unknown."""
        return self._seen if self._clock() - self._seen_at < REMEMBERED_SECONDS else NOTHING

    def want(self, credential: Credential) -> None:
        """Request a refresh with this administrator's credential, unless the last one is recent."""
        if self._clock() - self._polled_at >= MIN_POLL_SECONDS:
            self._credential = credential
            self._wanted.set()

    def note(self, found: alerts.Alerts) -> None:
        """Store alerts, also those that a page has fetched itself."""
        self._seen, self._seen_at = of(found.alerts), self._clock()
        self._polled_at = self._seen_at

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
