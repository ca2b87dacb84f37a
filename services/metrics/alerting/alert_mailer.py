"""Tells alerts by mail: one for what came together. ``mail_batching`` says when, ``mail_text`` what, and ``shared.mail`` gets it out.

Nobody's address stands in the log, or in the health.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from services.metrics.alerting import mail_text
from services.metrics.alerting.alert_state import AlertNotice
from services.metrics.alerting.mail_batching import MailBatch, MailBatching
from shared.api.gateway import Check
from shared.mail import mailer
from shared.mail.mailer import MailSink, SmtpMailer
from shared.telemetry import logs

#: A mail server that is away for three hours still gets them.
PAUSES_SECONDS: Final = (5.0, 30.0, 180.0, *(300.0,) * 36)
#: So soon it looks again whether the postman has room.
_NO_ROOM_SECONDS: Final = 30.0

_log = logs.get(part="alerts")


class AlertMailer:
    def __init__(self, post: MailSink, to: Sequence[str], pages: str, clock: Callable[[], float] = time.monotonic) -> None:
        """``post`` has a mail server; ``pages`` is where the web pages are."""
        assert post.server is not None, "the settings have seen to it"
        self._post = post
        self._server = post.server
        self._to = tuple(to)
        self._pages = pages
        self._clock = clock
        self._rounds = MailBatching()
        self._some = asyncio.Event()
        #: While ``run`` runs.
        self._postman: SmtpMailer | None = None

    def tell(self, news: AlertNotice) -> None:
        self._rounds.note(news, self._clock())
        self._some.set()

    async def run(self) -> None:
        """For ever. What still waits at its end is lost here; it counts as ``waiting``, and so is told again after a restart."""
        async with mailer.sending(self._post, self._server, PAUSES_SECONDS) as opened:
            self._postman = opened
            await self._keep_telling(opened)

    @property
    def waiting(self) -> int:
        return len(self._rounds) + (0 if self._postman is None else self._postman.waiting)

    def check(self) -> Check:
        if self._postman is None:
            return Check("alert mail", ok=True, needed=False)
        return Check("alert mail", ok=not self._postman.trouble, detail=self._postman.check().detail, needed=False)

    async def _keep_telling(self, opened: SmtpMailer) -> None:
        while True:
            has_room = opened.room >= len(self._to)
            if has_room and (due := self._rounds.take_due(self._clock())) is not None:
                await self._hand_over(due, opened)
                continue
            seconds = self._rounds.seconds_to_wait(self._clock())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds if has_room else _NO_ROOM_SECONDS):
                    await self._some.wait()
            self._some.clear()

    async def _hand_over(self, due: MailBatch, opened: SmtpMailer) -> None:
        """Does not wait for the mail server."""
        if due.pause_seconds is not None:
            _log.warning("alert mails pause: too many within an hour", seconds=round(due.pause_seconds))
        text = mail_text.written(due, self._pages, datetime.now(UTC))
        for address in self._to:
            await opened.send(address, text.subject, text.text)
