"""Send notices to a webhook, in Alertmanager's format (version 4), and by email. Addresses never appear in logs and health."""

import shlex
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

import msgspec

from features.alert_channels.settings import AlertChannelSettings
from services.metrics import webhook
from services.metrics.alerting.alerting_module import Channel
from services.metrics.alerting.notices import Notice
from services.metrics.alerting.rules import RANKS, Severity
from shared.mail import letters, mailer
from shared.mail.letters import Letter
from shared.mail.smtp_delivery import NotDeliveredError

_SECONDS: Final = 10.0
#: The shortest interval between two emails, in which less severe and resolved notices wait for others.
GATHER_SECONDS: Final = 180.0
#: In one email; the others are counted.
MAX_DESCRIBED: Final = 20
_MAX_LINE: Final = 300
_SUBJECT: Final = 120
_AT_ONCE: Final = (Severity.PAGE, Severity.CRITICAL)


def open_channels(settings: AlertChannelSettings) -> Iterator[Channel]:
    if settings.alert_webhook_url is not None:
        yield Webhook(settings.alert_webhook_url, settings.public_url)
    for number, address in enumerate(settings.alert_mail_to, start=1):
        sink = mailer.parse(settings.smtp_url, settings.mail_from)
        yield MailChannel(f"alert mail {number}" if number > 1 else "alert mail", sink, address, settings.public_url)


class Webhook:
    name = "alert webhook"

    def __init__(self, url: str, pages: str) -> None:
        """``pages`` is the URL of the web pages; empty if none is set."""
        self._url = url
        self._pages = pages.rstrip("/")

    def due_at(self, owed: Sequence[Notice]) -> float:
        return 0.0

    async def send(self, owed: Sequence[Notice], now: float) -> str:
        # An alert that was resolved and fires again is in both.
        for status in ("resolved", "firing"):
            chosen = [one for one in owed if (one.ended is None) == (status == "firing")]
            if chosen and (trouble := await webhook.post(self._url, msgspec.json.encode(self._message(status, chosen)), _SECONDS)):
                return trouble
        return ""

    def _message(self, status: str, chosen: Sequence[Notice]) -> dict[str, object]:
        source = f"{self._pages}/admin/alerts" if self._pages else ""
        return {
            "version": "4", "status": status, "receiver": "aimesh", "externalURL": self._pages, "groupKey": "aimesh", "truncatedAlerts": 0,
            "groupLabels": {}, "commonLabels": {}, "commonAnnotations": {}, "alerts": [_alert(status, one, source) for one in chosen],
        }  # fmt: skip


def _alert(status: str, one: Notice, source: str) -> dict[str, object]:
    """``fingerprint`` and ``startsAt`` tell a receiver that it has this alert already."""
    texts = {"summary": one.summary, "description": one.description, "runbook_url": one.runbook, "dashboard": one.board}
    return {
        "status": status,
        "labels": {**dict(one.labels), "alertname": one.name, "severity": one.severity},
        "annotations": texts,
        "startsAt": datetime.fromtimestamp(one.since, UTC),
        "endsAt": "0001-01-01T00:00:00Z" if one.ended is None else datetime.fromtimestamp(one.ended, UTC),
        "generatorURL": source,
        "fingerprint": one.id,
    }


class MailChannel:
    """Email to one address. Values from metrics become one short line without URLs, and never a header."""

    def __init__(self, name: str, sink: mailer.MailSink, to: str, pages: str) -> None:
        assert sink.server is not None, "the settings require SMTP_URL"
        self.name = name
        self._sink, self._server, self._to = sink, sink.server, to
        self._where = f"{pages.rstrip('/')}/admin/alerts" if pages else "`aicli alerts list`"
        self._sent_at = 0.0

    def due_at(self, owed: Sequence[Notice]) -> float:
        urgent = any(one.severity in _AT_ONCE and one.ended is None for one in owed)
        first = min(one.changed_at or 0.0 for one in owed)
        return max(first if urgent else first + GATHER_SECONDS, self._sent_at + GATHER_SECONDS)

    async def send(self, owed: Sequence[Notice], now: float) -> str:
        try:
            await mailer.deliver(self._sink, self._server, Letter(self._to, *write_mail(owed, self._where, now)))
        except NotDeliveredError as error:
            # A rejected address is tried with the next email.
            self._sent_at = now if error.for_good else self._sent_at
            return error.reason
        finally:
            mailer.raise_if_canceled()
        self._sent_at = now
        return ""


def write_mail(owed: Sequence[Notice], where: str, now: float) -> tuple[str, str]:
    """Return subject and text; the most severe first."""
    ordered = sorted(owed, key=lambda one: (one.ended is not None, RANKS[one.severity], one.since))
    firing = sum(one.ended is None for one in owed)
    counts = (f"{firing} firing" if firing else "", f"{len(owed) - firing} resolved" if firing < len(owed) else "")
    first = letters.one_line(ordered[0].summary, _SUBJECT)
    subject = f"{', '.join(filter(None, counts))}: {first}" if len(owed) > 1 or not firing else first
    return f"aimesh: {subject}", "\n".join(_lines(ordered, where, now)) + "\n"


def _lines(ordered: Sequence[Notice], where: str, now: float) -> Iterator[str]:
    yield f"Current alerts: {where}"
    yield f"As of {_time(now)}."
    for one in ordered[:MAX_DESCRIBED]:
        ended = "" if one.ended is None else f", resolved {_time(one.ended)}"
        yield f"\n{letters.one_line(one.summary, _MAX_LINE)}"
        yield f"  {one.severity}, since {_time(one.since)}{ended}"
        if one.ended is None:
            yield f"  {letters.one_line(one.description, 2 * _MAX_LINE)}"
            yield f"  runbook: {one.runbook}"
            yield f"  silence it for 2 hours: {_silencing(one)}"
    if len(ordered) > MAX_DESCRIBED:
        yield f"\nand {len(ordered) - MAX_DESCRIBED} more: {where}"


def _silencing(one: Notice) -> str:
    # Percent-encoding (RFC 3986 §2.1) keeps any value one word and prevents links.
    words = ",".join(f"{quote(label)}={quote(value)}" for label, value in one.labels)
    chosen = ["--label", words] if words and len(words) <= 2 * _MAX_LINE else []
    return shlex.join(["aicli", "alerts", "silence", one.name, "--for", "2h", *chosen])


def _time(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%d %B %Y, %H:%M} UTC"
