"""Tells alerts to a webhook, in the form of Alertmanager's (version 4), which chat and paging services take."""

import asyncio
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import httpx
import msgspec

from services.metrics.alerting.alert_state import ActiveAlert, AlertNotice
from shared.api.gateway import Check
from shared.telemetry import logs
from shared.timing.backoff import Backoff

_SECONDS: Final = 10.0
#: News that wait for a webhook that is away; beyond these the oldest go.
MAX_WAITING: Final = 100
_BACKOFF = Backoff(first_seconds=1.0, longest_seconds=60.0)

_log = logs.get(part="alerts")


class Webhook:
    def __init__(self, url: str, source: str) -> None:
        """``source`` is the address of the pages."""
        self._url = url
        self._source = source
        self._waiting: deque[bytes] = deque(maxlen=MAX_WAITING)
        self._some = asyncio.Event()
        #: Why the last news were not taken; empty when they were. Without the address, which may hold a secret.
        self.trouble = ""

    @property
    def waiting(self) -> int:
        """News that it has not taken yet."""
        return len(self._waiting)

    def check(self) -> Check:
        return Check("alert webhook", ok=not self.trouble, detail=self.trouble, needed=False)

    def tell(self, news: AlertNotice) -> None:
        for status, alarms in (("firing", news.began), ("resolved", news.ended)):
            if alarms:
                self._waiting.append(encode(status, alarms, self._source))
        self._some.set()

    async def run(self) -> None:
        """For ever: hand on what waits, in its order."""
        failures = 0
        async with httpx.AsyncClient(timeout=_SECONDS, trust_env=False) as client:
            while True:
                await self._some.wait()
                if not self._waiting:
                    self._some.clear()
                    continue
                self.trouble = await self._send(client, self._waiting[0])
                if self.trouble:
                    _log.warning("the webhook did not take an alert", why=self.trouble)
                    failures += 1
                    await asyncio.sleep(_BACKOFF.pause(failures))
                else:
                    self._waiting.popleft()
                    failures = 0

    async def _send(self, client: httpx.AsyncClient, body: bytes) -> str:
        """Why it was not taken; empty when it was."""
        try:
            answer = await client.post(self._url, content=body, headers={"content-type": "application/json"})
        except (httpx.HTTPError, OSError) as error:
            return f"it does not answer: {type(error).__name__}"
        return "" if answer.status_code < 300 else f"it answered {answer.status_code}"


def encode(status: str, alarms: Sequence[ActiveAlert], source: str) -> bytes:
    return msgspec.json.encode(
        {
            "version": "4",
            "status": status,
            "receiver": "aimesh",
            "externalURL": source,
            "groupKey": "aimesh",
            "truncatedAlerts": 0,
            "groupLabels": {},
            "commonLabels": {},
            "commonAnnotations": {},
            "alerts": [_alert(status, alarm, source) for alarm in alarms],
        }
    )


def _alert(status: str, alarm: ActiveAlert, source: str) -> dict[str, Any]:
    return {
        "status": status,
        "labels": {**dict(alarm.labels), "alertname": alarm.rule.name, "severity": str(alarm.rule.severity)},
        "annotations": {
            "summary": alarm.summary,
            "description": alarm.description,
            "runbook_url": alarm.rule.runbook,
            "dashboard": alarm.rule.board.value,
        },
        "startsAt": _moment(alarm.since),
        "endsAt": "0001-01-01T00:00:00Z" if alarm.ended is None else _moment(alarm.ended),
        "generatorURL": f"{source.rstrip('/')}/admin/alerts" if source else "",
        "fingerprint": alarm.id,
    }


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
