"""Emails that users may switch off: sign-ins from new browsers, API keys that expire soon, plans, budgets, payments and features.

A notice is a row of auth's table notices before it is a mail. Every replica sends; each notice is taken by one of them, and again by any of
them if that one fails. A replica that dies between the mail and its note sends it twice.
"""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from services.auth import features, mail_texts
from services.auth.accounts.notice_store import (
    KEY_BATCH,
    KEY_DAYS,
    AboutAccount,
    DueNotice,
    ExpiringKey,
    NoticeKind,
    NoticeStore,
    PlanChanged,
    SignIn,
)
from services.auth.mail_texts import AccountMail
from services.auth.session_opening import CompleteLogin
from shared.api.notices import LimitUsed, PaymentLate
from shared.background.item_kinds import ItemKind
from shared.background.items import BackgroundItems
from shared.mail import mailer
from shared.mail.letters import Letter
from shared.mail.mailer import Mailer, MailSink
from shared.mail.smtp_delivery import NotDeliveredError
from shared.node import lifecycle
from shared.stores.transactions import Transaction
from shared.telemetry import logs

_EVERY_SECONDS = 30
#: Per round and replica; the next round sends the rest.
MAX_MAILS = 100
#: Statements per round.
_MAX_BATCHES = 20
MAX_TRIES = 9

_log = logs.get(part="notices")


class Notices:
    """``run`` is the task that sends them."""

    def __init__(self, rows: NoticeStore, mails: Mailer, sink: MailSink, page: Callable[[str], str], items: BackgroundItems) -> None:
        """``page`` returns the address of a page of web; empty if no public URL is set."""
        self._rows = rows
        self._mails = mails
        self._sink = sink
        self._page = page
        self._items = items

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
        for kind in KEY_DAYS:
            for _ in range(_MAX_BATCHES):
                if await self._rows.add_expiring_keys(kind) < KEY_BATCH:
                    break
        for _ in range(MAX_MAILS):
            notice = await self._rows.take()
            if notice is None or not await self._try(notice):
                break

    async def _try(self, notice: DueNotice) -> bool:
        """Return False if the mail server has trouble, so that the next mail would only wait for it."""
        has_trouble = False

        async def send() -> None:
            nonlocal has_trouble
            has_trouble = not await self._send(notice)

        is_done = await self._items.attempt(ItemKind.ACCOUNT_NOTICE, f"{notice.kind}/{notice.user_id}", send())
        if not is_done and notice.tries >= MAX_TRIES:
            await self._rows.end(notice, is_sent=False)
        return not has_trouble

    async def _send(self, notice: DueNotice) -> bool:
        """Return as ``_try``."""
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
        settings = self._page("/settings")
        match notice.kind:
            case NoticeKind.SIGN_IN:
                seen = msgspec.json.decode(notice.details, type=SignIn)
                return mail_texts.new_sign_in(notice.username, seen.at, seen.address, seen.agent, settings)
            case NoticeKind.KEY_EXPIRES | NoticeKind.KEY_ENDS:
                key = msgspec.json.decode(notice.details, type=ExpiringKey)
                return mail_texts.key_expires(notice.username, key.name, key.preview, key.expires_at, settings)
            case _:
                about = msgspec.json.decode(notice.details, type=AboutAccount)
                if (mail := features.find_mail(about.fact)) is not None:
                    text = mail.write(about.fact)
                    return mail_texts.about_account(notice.username, about.organization, text, self._page(mail.page), settings)
                page = self._page("/api-keys" if about.key else "/billing")
                return mail_texts.about_account(notice.username, about.organization, _said(about), page, settings)


def _said(about: AboutAccount) -> AccountMail:
    match about.fact:
        case PlanChanged() as plan:
            return mail_texts.plan_changed(plan.before, plan.after)
        case PaymentLate() as payment:
            return mail_texts.payment_late(payment.invoice, payment.due_at, is_last=payment.is_last)
        case LimitUsed() as limit:
            return mail_texts.limit_used(limit, about.key, about.currency)
    raise TypeError(f"there is no mail for {type(about.fact).__name__}")
