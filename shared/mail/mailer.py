"""Send mail: over SMTP, with a queue and retries, if a server is configured; otherwise into the log."""

import asyncio
import contextlib
import secrets
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from shared import errors
from shared.api.gateway import Check
from shared.background import tasks as background_tasks
from shared.mail import letters, smtp_delivery, smtp_url
from shared.mail.letters import Letter, MailSender
from shared.mail.smtp_delivery import Envelope, NotDeliveredError
from shared.mail.smtp_url import MailServer, Security
from shared.node import lifecycle
from shared.telemetry import logs
from shared.timing.bounded_waits import wait_until_set

#: About 2 kB each. A longer queue means that the mail server has been down for long.
MAX_WAITING = 100
#: After a temporary failure; a mail that still fails after the last pause is lost. Greylisting servers accept a mail after a minute or two.
PAUSES_SECONDS = (5.0, 30.0, 180.0)
#: For one mail, from connecting until the server has accepted it.
DEADLINE_SECONDS = 20.0
#: How long waiting mails may still be sent at shutdown.
SHUTDOWN_SECONDS = 5.0

_log = logs.get(part="mail")


@dataclass(frozen=True, slots=True)
class WaitingMail:
    letter: Letter
    due_at: float
    tries: int = 0


class MailQueue:
    """The bound of the outgoing mails, the next one, and retries. Pure; the caller brings the clock."""

    def __init__(self) -> None:
        self._waiting: list[WaitingMail] = []
        self.sent = 0
        self.lost = 0
        #: Why the last try failed; empty if it succeeded.
        self.last_failure = ""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def room(self) -> int:
        """How many more fit."""
        return max(0, MAX_WAITING - len(self._waiting))

    def put(self, letter: Letter, now: float) -> bool:
        """Return False if the queue is full, and the mail lost."""
        if not self.room:
            self.lost += 1
            return False
        self._waiting.append(WaitingMail(letter, now))
        return True

    def take_due(self, now: float) -> WaitingMail | None:
        """Remove and return the mail that is due for longest."""
        due = min(self._waiting, key=lambda waiting: waiting.due_at, default=None)
        if due is None or due.due_at > now:
            return None
        self._waiting.remove(due)
        return due

    def seconds_to_wait(self, now: float) -> float | None:
        """Return the time until the next one is due; None if the queue is empty."""
        return min((max(0.0, waiting.due_at - now) for waiting in self._waiting), default=None)

    def succeeded(self) -> None:
        self.sent += 1
        self.last_failure = ""

    def failed(self, tried: WaitingMail, now: float, *, for_good: bool, why: str) -> bool:
        """Return whether it will be retried."""
        self.last_failure = why
        if for_good or tried.tries >= len(PAUSES_SECONDS):
            self.lost += 1
            return False
        # May exceed the bound by the one mail that was being sent.
        self._waiting.append(WaitingMail(tried.letter, now + PAUSES_SECONDS[tried.tries], tried.tries + 1))
        return True


class Mailer(Protocol):
    async def send(self, to: str, subject: str, text: str) -> None:
        """Queue a mail. Failures are logged and shown by ``check``. Raises BadRequest for an invalid address or a multi-line subject."""
        ...

    def check(self) -> Check:
        """Always ok, because a service without mail still works; the detail says what is wrong."""
        ...


@dataclass(frozen=True, slots=True)
class MailSink:
    """Where mails go, and who sends them."""

    #: None for the log.
    server: MailServer | None
    sender: MailSender
    trusted: ssl.SSLContext | None = None


def parse(url: str | None, mail_from: str) -> MailSink:
    """Parse the settings and read the CA file. Raises BadSettings with all mistakes of both settings."""
    mistakes: list[str] = []
    server, trusted, sender = None, None, None
    try:
        server = None if url is None else smtp_url.parse(url)
        if server is not None and server.security is not Security.NONE:
            trusted = ssl.create_default_context(cafile=server.ca_file)
    except (ValueError, OSError) as error:
        mistakes.append(f"SMTP_URL cannot be used: {error}")
    try:
        sender = letters.parse_sender(mail_from)
    except ValueError as error:
        mistakes.append(f"MAIL_FROM cannot be used: {error}")
    if mistakes or sender is None:
        raise errors.BadSettings("; ".join(mistakes), hint="use smtp://user:password@host:587 or smtps://…:465")
    return MailSink(server, sender, trusted)


@contextlib.asynccontextmanager
async def opened(sink: MailSink) -> AsyncIterator[Mailer]:
    """At the end of the block, waiting mails get 5 s to be sent."""
    if sink.server is None:
        yield LogMailer()
        return
    async with lifecycle.background() as tasks:
        mailer = SmtpMailer(sink, sink.server)
        tasks.create_task(background_tasks.keep("mails", mailer.run))
        yield mailer
        await mailer.finish(SHUTDOWN_SECONDS)


class LogMailer:
    """For an installation without a mail server: the mails are in its log."""

    async def send(self, to: str, subject: str, text: str) -> None:
        letter = Letter(to, subject, text)
        _log.info("mail, printed because SMTP_URL is not set", to=letter.to, subject=letter.subject, text=letter.text, _only_here=True)

    def check(self) -> Check:
        return Check("mail", ok=True, detail="printed to the log; set SMTP_URL to send it")


class SmtpMailer:
    """Sends one mail at a time; ``run`` is the task that does it."""

    def __init__(self, sink: MailSink, server: MailServer) -> None:
        self._sink = sink
        self._server = server
        self._queue = MailQueue()
        self._arrived = asyncio.Event()
        #: Nothing is due and nothing is being sent.
        self._idle = asyncio.Event()

    async def send(self, to: str, subject: str, text: str) -> None:
        if not self._queue.put(Letter(to, subject, text), time.monotonic()):
            _log.error("mail lost: the queue is full", waiting=len(self._queue), lost=self._queue.lost)
            return
        self._idle.clear()
        self._arrived.set()

    def check(self) -> Check:
        queue = self._queue
        if not queue.last_failure and not queue.lost:
            return Check("mail", ok=True)
        why = queue.last_failure or "the last one was sent"
        return Check("mail", ok=True, detail=f"{len(queue)} mails waiting, {queue.lost} lost: {why}; check SMTP_URL and the mail server")

    async def run(self) -> None:
        """Run until canceled."""
        while True:
            waiting = self._queue.take_due(time.monotonic())
            if waiting is not None:
                await self._try(waiting)
                raise_if_canceled()
                continue
            self._idle.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._queue.seconds_to_wait(time.monotonic())):
                    await self._arrived.wait()
            self._arrived.clear()

    async def finish(self, seconds: float) -> None:
        """Wait until everything due has been tried."""
        await wait_until_set(self._idle, seconds)
        if waiting := len(self._queue):
            _log.error("mail lost: the service is shutting down", waiting=waiting)

    async def _try(self, waiting: WaitingMail) -> None:
        try:
            await deliver(self._sink, self._server, waiting.letter)
        except NotDeliveredError as error:
            again = self._queue.failed(waiting, time.monotonic(), for_good=error.for_good, why=error.reason)
            _log.warning("mail not sent", reason=error.reason, tries=waiting.tries + 1, again=again)
        else:
            self._queue.succeeded()
            _log.info("mail sent", subject=waiting.letter.subject)


async def deliver(sink: MailSink, server: MailServer, letter: Letter, *, deadline_seconds: float | None = None) -> str:
    """Hand a mail over now, without queue and retries. Return the server's answer. Raises NotDeliveredError."""
    sender = sink.sender
    body = letters.written(letter, sender, datetime.now(UTC), secrets.token_hex(16))
    try:
        async with asyncio.timeout(deadline_seconds or DEADLINE_SECONDS):
            return await smtp_delivery.deliver(server, sink.trusted, Envelope(sender.address, letter.to, sender.domain, body))
    except TimeoutError as error:
        raise NotDeliveredError("the server is too slow", for_good=False) from error


def raise_if_canceled() -> None:
    """Before Python 3.12 aiosmtplib loses a cancellation that arrives together with an answer, because it uses ``asyncio.wait_for``."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
