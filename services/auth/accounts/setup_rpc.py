"""RPC methods of the administrators' setup checklist. Its state is in PostgreSQL, so it is the same at every replica."""

from services.auth import audit_records, mail_texts
from services.auth.accounts.request_limits import HourlyLimits
from services.auth.dependencies import AuthHandlers, Dependencies
from services.auth.mfa.factor_store import FactorStore
from shared import errors
from shared.api import service_settings as api
from shared.api.method import Nothing
from shared.mail import letters, mailer
from shared.mail.letters import Letter
from shared.mail.mailer import MailSink
from shared.mail.smtp_delivery import NotDeliveredError
from shared.rpc import RpcCall, serves
from shared.stores.cache import Cache
from shared.types import TenantId

#: Per administrator and hour.
MAX_TEST_MAILS = 10
#: Shorter than the page waits.
TEST_SECONDS = 10.0
_MAX_ANSWER = 300


class SetupRpc(AuthHandlers):
    def __init__(self, parts: Dependencies, sink: MailSink, cache: Cache) -> None:
        super().__init__(parts)
        self._factors = FactorStore(parts.store)
        self._sink = sink
        self._limits = HourlyLimits(cache, "test_mails")

    @serves(api.get_setup)
    async def get_setup(self, request: api.GetSetup, call: RpcCall) -> api.SetupFacts:
        async with self._store.transaction() as transaction:
            row = await transaction.row("find_setup", call.principal.user_id)
        assert row is not None  # the migration inserted it
        is_open = self._settings.open_registration
        return api.SetupFacts(
            has_second_factor=(await self._factors.find(call.principal.user_id)).is_enabled,
            is_dismissed=row["is_dismissed"],
            public_url=self._settings.public_url,
            has_mail_server=self._sink.server is not None,
            mail_tested_at=row["mail_tested_at"],
            open_registration=is_open,
            is_registration_confirmed=row["confirmed_registration"] is is_open,
            colleagues=row["colleagues"],
            invitations=row["invitations"],
        )

    @serves(api.dismiss_setup)
    async def dismiss_setup(self, request: api.DismissSetup, call: RpcCall) -> Nothing:
        async with self._store.bound(TenantId(call.principal.user_id)) as transaction:
            await transaction.run("dismiss_setup", call.principal.user_id, request.is_dismissed)
        return Nothing()

    @serves(api.confirm_registration)
    async def confirm_registration(self, request: api.ConfirmRegistration, call: RpcCall) -> Nothing:
        is_open = self._settings.open_registration
        if request.is_open is not is_open:
            now = "open" if is_open else "closed"
            raise errors.BadRequest(f"registration is {now}", hint="to change it, set OPEN_REGISTRATION and restart auth")
        async with self._store.transaction() as transaction:
            await transaction.run("confirm_registration", is_open)
            act = audit_records.of_mesh("registration.confirm", call.principal, after="open" if is_open else "closed")
            await self._trail.add(transaction, act)
        return Nothing()

    @serves(api.send_test_mail)
    async def send_test_mail(self, request: api.SendTestMail, call: RpcCall) -> api.MailTestResult:
        caller = call.principal
        hint = f"{MAX_TEST_MAILS} per hour are allowed; try again later"
        await self._limits.charge(str(caller.user_id), MAX_TEST_MAILS, "you sent too many test emails", hint=hint)
        if self._sink.server is None:
            return api.MailTestResult(False, "No mail server is configured. Set SMTP_URL.")
        user = await self._store.get_user(caller.user_id)
        try:
            letter = Letter(user.email, *mail_texts.test_mail(user.username))
            answer = await mailer.deliver(self._sink, self._sink.server, letter, deadline_seconds=TEST_SECONDS)
        except NotDeliveredError as error:
            answer = f"{error.reason}: {error.answer}" if error.answer else error.reason
            return api.MailTestResult(False, letters.one_line(answer, _MAX_ANSWER))
        async with self._store.transaction() as transaction:
            await transaction.run("note_tested_mail")
            await self._trail.add(transaction, audit_records.of_mesh("mail.test", caller))
        return api.MailTestResult(True, letters.one_line(answer, _MAX_ANSWER))
