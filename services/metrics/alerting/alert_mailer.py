"""Send alerts by email, in batches. ``alert_emails`` decides when and writes them, and ``shared.mail`` sends them.

Addresses never appear in the log or the health.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from services.metrics.alerting import alert_emails
from services.metrics.alerting.alert_emails import MailBatch, MailBatching
from services.metrics.alerting.alert_state import AlertNotice
from shared.api.gateway import Check
from shared.mail import mailer
from shared.mail.mailer import MailSink, SmtpMailer
from shared.telemetry import logs

#: Retry for three hours.
PAUSES_SECONDS: Final = (5.0, 30.0, 180.0, *(300.0,) * 36)
#: How often to check whether the mail queue has room.
_NO_ROOM_SECONDS: Final = 30.0

_log = logs.get(part="alerts")


class AlertMailer:
    def __init__(self, post: MailSink, to: Sequence[str], pages: str, clock: Callable[[], float] = time.monotonic) -> None:
        """``pages`` is the URL of the web pages."""
        assert post.server is not None, "MetricsSettings requires SMTP_URL"
        self._post = post
        self._server = post.server
        self._to = tuple(to)
        self._pages = pages
        self._clock = clock
        self._batching = MailBatching()
        self._has_waiting = asyncio.Event()
        self._smtp: SmtpMailer | None = None

    def notify(self, notice: AlertNotice) -> None:
        self._batching.note(notice, self._clock())
        self._has_waiting.set()

    async def run(self) -> None:
        """Send until cancelled. Unsent alerts count as ``waiting``, so the next leader sends them."""
        async with mailer.sending(self._post, self._server, PAUSES_SECONDS) as opened:
            self._smtp = opened
            await self._send_batches(opened)

    @property
    def waiting(self) -> int:
        return len(self._batching) + (0 if self._smtp is None else self._smtp.waiting)

    def check(self) -> Check:
        if self._smtp is None:
            return Check("alert mail", ok=True, needed=False)
        return Check("alert mail", ok=not self._smtp.trouble, detail=self._smtp.check().detail, needed=False)

    async def _send_batches(self, opened: SmtpMailer) -> None:
        while True:
            has_room = opened.room >= len(self._to)
            if has_room and (due := self._batching.take_due(self._clock())) is not None:
                await self._hand_over(due, opened)
                continue
            seconds = self._batching.seconds_to_wait(self._clock())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds if has_room else _NO_ROOM_SECONDS):
                    await self._has_waiting.wait()
            self._has_waiting.clear()

    async def _hand_over(self, due: MailBatch, opened: SmtpMailer) -> None:
        if due.pause_seconds is not None:
            _log.warning("alert emails paused: hourly limit reached", seconds=round(due.pause_seconds))
        text = alert_emails.written(due, self._pages, datetime.now(UTC))
        for address in self._to:
            await opened.send(address, text.subject, text.text)
