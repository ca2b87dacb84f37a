"""Emails that users may switch off: sign-ins from new browsers, and API keys that expire soon.

A notice is a row of auth's table notices before it is a mail. Every replica sends; each notice is taken by one of them, and again by any of
them if that one fails. A replica that dies between the mail and its note sends it twice.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

import msgspec

from services.auth import mail_texts
from services.auth.mail_texts import AccountMail
from services.auth.session_opening import CompleteLogin
from services.auth.store import AuthTables
from shared.mail import mailer
from shared.mail.letters import Letter
from shared.mail.mailer import Mailer, MailSink
from shared.mail.smtp_delivery import NotDeliveredError
from shared.node import lifecycle
from shared.stores.database import Transaction
from shared.telemetry import logs
from shared.types import UserId

#: How long before its end a key is announced.
EXPIRING_DAYS = 7
#: Of new accounts: registration signs in at once.
NEW_ACCOUNT_SECONDS = 600
#: Per user and hour, because a thief of a password could fill the mailbox by signing in.
MAX_SIGN_INS = 10
_EVERY_SECONDS = 30
#: Per round and replica; the next round sends the rest.
MAX_MAILS = 100
#: Keys per statement, and statements per round.
KEY_BATCH, _MAX_BATCHES = 500, 20
#: Until the second try, much longer than a delivery; doubles after each try. The last one is after 21 hours.
RETRY_SECONDS = 300.0
MAX_TRIES = 9

_log = logs.get(part="notices")


class NoticeKind(StrEnum):
    SIGN_IN = "sign_in"
    KEY_EXPIRES = "key_expires"


class SignIn(msgspec.Struct, frozen=True):
    at: datetime
    address: str
    agent: str


class ExpiringKey(msgspec.Struct, frozen=True):
    name: str
    preview: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class DueNotice:
    user_id: UserId
    kind: NoticeKind
    subject: str
    #: JSON, by kind.
    details: str
    #: Including the one to come.
    tries: int
    username: str
    email: str
    #: False if the account was closed or the user switched mails off since.
    is_wanted: bool


class NoticeStore(AuthTables):
    """Every method may raise Unavailable."""

    async def add_sign_in(self, transaction: Transaction, user_id: UserId, subject: str, sign_in: SignIn) -> None:
        details = msgspec.json.encode(sign_in).decode()
        await transaction.run("add_sign_in_notice", user_id, subject, details, NEW_ACCOUNT_SECONDS, MAX_SIGN_INS)

    async def add_expiring_keys(self) -> int:
        """Return how many keys were searched, at most KEY_BATCH. Each is searched once, by one replica."""
        return int(await self._db.value("add_key_notices", EXPIRING_DAYS, KEY_BATCH))

    async def take(self) -> DueNotice | None:
        """Return a notice that no other replica has. It is due again later, unless ``end`` is called."""
        # Not the kinds of a later release, whose replicas may run beside this one.
        row = await self._db.row("take_notice", RETRY_SECONDS, list(NoticeKind))
        if row is None:
            return None
        return DueNotice(
            UserId(row["user_id"]), NoticeKind(row["kind"]), row["subject"], row["details"], row["tries"], row["username"], row["email"],
            row["is_wanted"],
        )  # fmt: skip

    async def end(self, notice: DueNotice, *, is_sent: bool) -> None:
        await self._db.run("end_notice", notice.user_id, notice.kind, notice.subject, is_sent)


class Notices:
    """``run`` is the task that sends them."""

    def __init__(self, rows: NoticeStore, mails: Mailer, sink: MailSink, settings_page: str) -> None:
        self._rows = rows
        self._mails = mails
        self._sink = sink
        self._settings_page = settings_page

    async def note_login(self, transaction: Transaction, login: CompleteLogin) -> None:
        """Add a notice in the transaction of the login, so that none is lost."""
        if not login.is_new_browser:
            return
        client = login.session.client
        # A browser that gets no mark is new each time. There, its address and its own name for itself stand for it.
        subject = login.session.id if login.is_marked else hashlib.sha256(f"{client.address}\n{client.agent}".encode()).hexdigest()
        sign_in = SignIn(datetime.fromtimestamp(login.session.last_used_at, UTC), client.address, client.agent)
        await self._rows.add_sign_in(transaction, login.session.user_id, subject, sign_in)

    async def run(self) -> None:
        """Run until canceled."""
        await lifecycle.every(_EVERY_SECONDS, self.work)

    async def work(self) -> None:
        """Raises Unavailable; the next round does the rest."""
        for _ in range(_MAX_BATCHES):
            if await self._rows.add_expiring_keys() < KEY_BATCH:
                break
        for _ in range(MAX_MAILS):
            notice = await self._rows.take()
            if notice is None or not await self._send(notice):
                break

    async def _send(self, notice: DueNotice) -> bool:
        """Return False if the mail server has trouble, so that the next mail would only wait for it."""
        if not notice.is_wanted:
            await self._rows.end(notice, is_sent=False)
            return True
        try:
            await self._deliver(Letter(notice.email, *self._written(notice)))
        except NotDeliveredError as error:
            # Also if the server refuses for good: the reason may be its settings or ours.
            is_over = notice.tries >= MAX_TRIES
            _log.warning("notice not sent", kind=notice.kind, reason=error.reason, tries=notice.tries, again=not is_over)
            if is_over:
                await self._rows.end(notice, is_sent=False)
            return error.for_good
        await self._rows.end(notice, is_sent=True)
        _log.info("notice sent", kind=notice.kind, tries=notice.tries)
        return True

    async def _deliver(self, letter: Letter) -> None:
        if self._sink.server is None:
            await self._mails.send(letter.to, letter.subject, letter.text)
            return
        await mailer.deliver(self._sink, self._sink.server, letter)
        mailer.raise_if_canceled()

    def _written(self, notice: DueNotice) -> AccountMail:
        match notice.kind:
            case NoticeKind.SIGN_IN:
                seen = msgspec.json.decode(notice.details, type=SignIn)
                return mail_texts.new_sign_in(notice.username, seen.at, seen.address, seen.agent, self._settings_page)
            case NoticeKind.KEY_EXPIRES:
                key = msgspec.json.decode(notice.details, type=ExpiringKey)
                return mail_texts.key_expires(notice.username, key.name, key.preview, key.expires_at, self._settings_page)
