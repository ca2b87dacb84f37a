"""RPC methods to change a password while logged in, or to reset it by mail."""

import asyncio
from dataclasses import dataclass

from services.auth import api_keys, audit_records, mail_texts, store
from services.auth.accounts import request_limits
from services.auth.accounts.account_store import AccountStore, SessionRevocation
from services.auth.accounts.request_limits import MailLimits
from services.auth.dependencies import AuthHandlers, Dependencies
from services.auth.sessions import identities
from services.auth.store import StoredAccount
from shared import context, errors
from shared.api import accounts
from shared.api.method import Nothing
from shared.mail.mailer import Mailer
from shared.rpc import RpcCall, serves
from shared.telemetry import logs
from shared.types import TenantId

RESET_SECONDS = 1800
#: Requests that wait to be processed; each takes a few milliseconds.
_MAX_WAITING = 200

_log = logs.get(part="auth")


@dataclass(frozen=True, slots=True)
class _ResetRequest:
    #: A user name or an address, which may not exist.
    name: str
    request: context.RequestContext | None


class PasswordChanges(AuthHandlers):
    """``run`` is the task that processes reset requests. They are answered before anything is looked up, so neither the answer nor its
    timing reveals whether an account exists."""

    def __init__(self, parts: Dependencies, rows: AccountStore, limits: MailLimits, mailer: Mailer) -> None:
        super().__init__(parts)
        self._rows = rows
        self._ends = SessionRevocation(parts.store, parts.sessions)
        self._limits = limits
        self._mailer = mailer
        self._requests: asyncio.Queue[_ResetRequest] = asyncio.Queue(_MAX_WAITING)

    @serves(accounts.change_password)
    async def change_password(self, request: accounts.ChangePassword, call: RpcCall) -> Nothing:
        caller = call.principal
        # Requires a login: a leaked key must not outlive its revocation by setting a password.
        session = await self._identities.session_of(call.credential)
        user = await self._identities.active_user(await self._store.find_user(caller.user_id))
        self._passwords.check(request.new_password, username=user.username, email=user.email)
        before = await self._rows.find_password_hash(user.id)
        if before is not None and await self._passwords.verify(request.new_password, before):
            raise errors.BadRequest.of("password", "it is your current one", hint="choose another")
        password_hash = await self._passwords.hash(request.new_password)
        async with self._ends.transaction(user.id, but=session.id) as transaction:
            await self._rows.set_password(transaction, user.id, password_hash)
            await self._trail.add(transaction, audit_records.done("password.change", caller, tenant=TenantId(user.id), target=user.id))
        _log.info("password changed", user_id=user.id)
        await self._mailer.send(user.email, *mail_texts.password_changed(user.username))
        return Nothing()

    @serves(accounts.request_password_reset)
    async def request_password_reset(self, request: accounts.RequestPasswordReset, call: RpcCall) -> Nothing:
        address = identities.client_address(request.client, call)
        await self._limits.charge_address(request_limits.requester_of(address or "", call.caller.node))
        try:
            self._requests.put_nowait(_ResetRequest(request.name.strip(), context.current.get()))
        except asyncio.QueueFull:
            raise errors.Overloaded(
                "too many password resets were requested at once", hint="try again in a minute", retry_after_seconds=60
            ) from None
        return Nothing()

    @serves(accounts.reset_password)
    async def reset_password(self, request: accounts.ResetPassword, call: RpcCall) -> Nothing:
        """Check the rules before the token is used up, so a password that is too short costs no second mail."""
        token_hash = api_keys.hash_token(request.token.strip())
        user_id = await self._rows.find_reset(token_hash)
        user = None if user_id is None else await self._store.find_user(user_id)
        if user is None or not user.is_active:
            raise self._token_expired()
        self._passwords.check(request.new_password, username=user.username, email=user.email)
        password_hash = await self._passwords.hash(request.new_password)
        async with self._ends.transaction(user.id) as transaction:
            if await self._rows.use_reset(transaction, token_hash) is None:
                raise self._token_expired()
            await store.verify_address(transaction, user.id, user.email)
            await self._rows.set_password(transaction, user.id, password_hash)
            await self._trail.add(transaction, audit_records.done_by("password.reset", user.id, target=user.id))
        # Unlock the account after too many failed logins.
        await self._guesses.reset(str(user.id))
        _log.info("password reset", user_id=user.id)
        await self._mailer.send(user.email, *mail_texts.password_changed(user.username))
        return Nothing()

    async def run(self) -> None:
        """Run until canceled. If a store is down, the request is lost and the user asks again."""
        while True:
            reset = await self._requests.get()
            context.current.set(reset.request)
            try:
                await self._process(reset.name)
            except errors.PeerError as error:
                _log.warning("no password reset mail sent", reason=error.message)
            finally:
                self._requests.task_done()

    async def settled(self) -> None:
        """Wait until all requests have been processed."""
        await self._requests.join()

    async def _process(self, name: str) -> None:
        account = await self._store.find_account(name)
        if account is None or not account.user.is_active:
            self._trail.note(audit_records.refused("password.ask_reset", None, "there is no such account, or it is closed"))
        elif not await self._limits.may_mail(account.user.id):
            self._trail.note(audit_records.refused("password.ask_reset", None, "too many mails for this account"))
        else:
            await self._mail(account)

    async def _mail(self, account: StoredAccount) -> None:
        user = account.user
        if account.password_hash is None:
            # A user who has left the provider's organization must not stay by means of a mail.
            await self._mailer.send(user.email, *mail_texts.reset_at_provider(user.username, self._settings.oidc_name))
            return
        token = api_keys.random_text()
        async with self._store.transaction() as transaction:
            await self._rows.put_reset(transaction, user.id, api_keys.hash_token(token), RESET_SECONDS)
            # Without an actor: only the token will prove that it was the user.
            await self._trail.add(transaction, audit_records.of_mesh("password.ask_reset", None, target=user.id))
        await self._mailer.send(user.email, *mail_texts.reset(user.username, self._settings.page("/reset"), token, RESET_SECONDS // 60))

    def _token_expired(self) -> errors.NotAuthenticated:
        self._identities.count_refusal("reset_over")
        return errors.NotAuthenticated(
            "this code is wrong, was used, or has expired", hint="request another one; only the newest mail counts"
        )
