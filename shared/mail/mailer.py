"""Who takes mails: over SMTP where there is a server for it, into the log where there is none."""

import asyncio
import contextlib
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from shared import errors
from shared.api.gateway import Check
from shared.mail import letters, mail_queue, smtp_url
from shared.mail.letters import Letter, MailSender
from shared.mail.mail_queue import MailQueue, WaitingMail
from shared.mail.smtp_delivery import Delivery, Envelope, NotDeliveredError
from shared.mail.smtp_url import MailServer, Security
from shared.node import lifecycle
from shared.telemetry import logs

#: For one mail, from the connection to the server's word that it has it.
DEADLINE_SECONDS = 20.0
#: What still waits when the service ends has this long to get out.
FAREWELL_SECONDS = 5.0

_log = logs.get(part="mail")


class Mailer(Protocol):
    async def send(self, to: str, subject: str, text: str) -> None:
        """Does not wait for the server, and does not fail where the mail does: that is logged and shown in ``check``. Raises
        BadRequest for an address that is none, or a subject of several lines."""
        ...

    def check(self) -> Check:
        """Always ok, because a service without mail still serves; the detail says what is wrong."""
        ...


@dataclass(frozen=True, slots=True)
class MailSink:
    """Where mails go, and in whose name."""

    #: None for the log.
    server: MailServer | None
    sender: MailSender
    trusted: ssl.SSLContext | None = None


def parse(url: str | None, mail_from: str) -> MailSink:
    """Reads the files that the URL names. Raises BadSettings, which names all mistakes of both settings."""
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
        raise errors.BadSettings("; ".join(mistakes), hint="say smtp://user:password@host:587 or smtps://…:465")
    return MailSink(server, sender, trusted)


@contextlib.asynccontextmanager
async def opened(post: MailSink) -> AsyncIterator[Mailer]:
    """At the end of the block what waits may still go out, for 5 s."""
    if post.server is None:
        yield Printed()
        return
    async with sending(post, post.server, mail_queue.PAUSES_SECONDS) as postman:
        yield postman
        await postman.finish(FAREWELL_SECONDS)


@contextlib.asynccontextmanager
async def sending(post: MailSink, server: MailServer, pauses_seconds: Sequence[float]) -> AsyncIterator["SmtpMailer"]:
    """For who has a mail server for certain, and their own patience with it. What waits at the end of the block is lost."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="smtp")
    try:
        async with lifecycle.background() as tasks:
            postman = SmtpMailer(post, server, thread, pauses_seconds)
            tasks.create_task(postman.run())
            yield postman
    finally:
        thread.shutdown(wait=False, cancel_futures=True)


class Printed:
    """For a stack without a mail server: who reads its log gets the mail."""

    async def send(self, to: str, subject: str, text: str) -> None:
        letter = Letter(to, subject, text)
        _log.info("mail, printed because SMTP_URL is not set", to=letter.to, subject=letter.subject, text=letter.text, _only_here=True)

    def check(self) -> Check:
        return Check("mail", ok=True, detail="printed to the log; set SMTP_URL to send it")


class SmtpMailer:
    """One mail at a time; ``run`` is the task that sends."""

    def __init__(
        self,
        post: MailSink,
        server: MailServer,
        thread: ThreadPoolExecutor,
        pauses_seconds: Sequence[float] = mail_queue.PAUSES_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._post = post
        self._server = server
        self._thread = thread
        self._clock = clock
        self._outbox = MailQueue(pauses_seconds)
        #: 1 while one is with the mail server.
        self._under_way = 0
        self._arrived = asyncio.Event()
        #: Nothing is due and nothing under way.
        self._idle = asyncio.Event()

    async def send(self, to: str, subject: str, text: str) -> None:
        if not self._outbox.put(Letter(to, subject, text), self._clock()):
            _log.error("mail lost: too many wait already", waiting=len(self._outbox), lost=self._outbox.lost)
            return
        self._idle.clear()
        self._arrived.set()

    @property
    def room(self) -> int:
        """So many more mails are taken; what is sent beyond them is lost."""
        return self._outbox.room

    @property
    def waiting(self) -> int:
        """With the one that is under way."""
        return len(self._outbox) + self._under_way

    @property
    def trouble(self) -> str:
        """Why the last attempt failed; empty when it did not."""
        return self._outbox.last_failure

    def check(self) -> Check:
        box = self._outbox
        if not box.last_failure and not box.lost:
            return Check("mail", ok=True)
        why = box.last_failure or "the last one was sent"
        return Check("mail", ok=True, detail=f"{len(box)} mails wait, {box.lost} are lost: {why}; check SMTP_URL and the mail server")

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            waiting = self._outbox.take_due(self._clock())
            if waiting is not None:
                self._under_way = 1
                await self._try(waiting)
                self._under_way = 0
                continue
            self._idle.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._outbox.seconds_to_wait(self._clock())):
                    await self._arrived.wait()
            self._arrived.clear()

    async def finish(self, seconds: float) -> None:
        """Until all that is due has been tried."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        if waiting := len(self._outbox):
            _log.error("mail lost: the service ends", waiting=waiting)

    async def _try(self, waiting: WaitingMail) -> None:
        try:
            await self._deliver(waiting.letter)
        except NotDeliveredError as error:
            again = self._outbox.failed(waiting, self._clock(), for_good=error.for_good, why=error.reason)
            _log.warning("mail not sent", reason=error.reason, tries=waiting.tries + 1, again=again)
        else:
            self._outbox.succeeded()
            _log.info("mail sent", subject=waiting.letter.subject)

    async def _deliver(self, letter: Letter) -> None:
        sender = self._post.sender
        body = letters.written(letter, sender, datetime.now(UTC), secrets.token_hex(16))
        delivery = Delivery(self._server, self._post.trusted, Envelope(sender.address, letter.to, sender.domain, body))
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await asyncio.get_running_loop().run_in_executor(self._thread, delivery.run)
        except TimeoutError as error:
            raise NotDeliveredError("the server is too slow", for_good=False) from error
        finally:
            # After its time or a cancellation the thread is freed by this; after its end it is nothing.
            delivery.cut()
