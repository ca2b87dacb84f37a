"""Send alerts to a webhook, in Alertmanager's format (version 4), which chat and paging services accept."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import httpx
import msgspec

from services.metrics.alerting.alert_state import ActiveAlert, AlertNotice, moment_of
from shared.api.gateway import Check
from shared.telemetry import logs
from shared.timing.backoff import Backoff
from shared.transports.http_transport import HttpTransport

_SECONDS: Final = 10.0
#: Queued notices while the webhook is down; the oldest are dropped.
MAX_WAITING: Final = 100
_BACKOFF = Backoff(first_seconds=1.0, longest_seconds=60.0)

_log = logs.get(part="alerts")


class Webhook:
    def __init__(self, url: str, source: str) -> None:
        """``source`` is the URL of the web pages."""
        self._url = url
        self._source = source
        self._waiting: deque[bytes] = deque(maxlen=MAX_WAITING)
        self._has_waiting = asyncio.Event()
        #: Why the last notice failed; empty if it succeeded. Without the URL, which can contain a secret.
        self.trouble = ""

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def check(self) -> Check:
        return Check("alert webhook", ok=not self.trouble, detail=self.trouble, needed=False)

    def notify(self, notice: AlertNotice) -> None:
        for status, alerts in (("firing", notice.began), ("resolved", notice.ended)):
            if alerts:
                self._waiting.append(encode(status, alerts, self._source))
        self._has_waiting.set()

    async def run(self) -> None:
        failures = 0
        async with httpx.AsyncClient(transport=HttpTransport(trust_env=False), timeout=_SECONDS) as client:
            while True:
                await self._has_waiting.wait()
                if not self._waiting:
                    self._has_waiting.clear()
                    continue
                self.trouble = await self._send(client, self._waiting[0])
                if self.trouble:
                    _log.warning("the webhook rejected an alert", why=self.trouble)
                    failures += 1
                    await asyncio.sleep(_BACKOFF.pause(failures))
                else:
                    self._waiting.popleft()
                    failures = 0

    async def _send(self, client: httpx.AsyncClient, body: bytes) -> str:
        try:
            answer = await client.post(self._url, content=body, headers={"content-type": "application/json"})
        except (httpx.HTTPError, OSError) as error:
            return f"not responding: {type(error).__name__}"
        return "" if answer.status_code < 300 else f"returned {answer.status_code}"


def encode(status: str, alerts: Sequence[ActiveAlert], source: str) -> bytes:
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
            "alerts": [_alert(status, alert, source) for alert in alerts],
        }
    )


def _alert(status: str, alert: ActiveAlert, source: str) -> dict[str, Any]:
    return {
        "status": status,
        "labels": {**dict(alert.labels), "alertname": alert.rule.name, "severity": str(alert.rule.severity)},
        "annotations": {
            "summary": alert.summary,
            "description": alert.description,
            "runbook_url": alert.rule.runbook,
            "dashboard": alert.rule.board.value,
        },
        "startsAt": _moment(alert.since),
        "endsAt": "0001-01-01T00:00:00Z" if alert.ended is None else _moment(alert.ended),
        "generatorURL": f"{source.rstrip('/')}/admin/alerts" if source else "",
        "fingerprint": alert.id,
    }


def _moment(seconds: float) -> str:
    return moment_of(seconds).isoformat(timespec="milliseconds").replace("+00:00", "Z")
