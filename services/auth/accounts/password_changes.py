"""The RPC methods that set a password: by who is logged in, and by who forgot it and reads the account's mail."""

import asyncio
import hashlib
from dataclasses import dataclass

from services.auth import api_keys, audit_records, client_facing_roles, mail_texts
from services.auth.accounts.account_store import AccountStore
from services.auth.accounts.mail_limits import MailLimits
from services.auth.accounts.session_revocation import SessionRevocation
from services.auth.dependencies import Dependencies
from services.auth.sessions import hourly_limits
from services.auth.store import StoredAccount
from shared import context, errors
from shared.api import accounts
from shared.api.method import Nothing
from shared.mail.mailer import Mailer
from shared.rpc import RpcCall, serves
from shared.telemetry import logs
from shared.types import TenantId

RESET_SECONDS = 1800
#: Wishes that nobody has looked at yet; each takes a few milliseconds.
_MOST_WAITING = 200

_log = logs.get(part="auth")


@dataclass(frozen=True, slots=True)
class _Wish:
    #: A user name or an address, of somebody or of nobody.
    name: str
    request: context.RequestContext | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordChangeDependencies:
    """What setting a password needs besides what all handlers share."""

    rows: AccountStore
    ends: SessionRevocation
    limits: MailLimits
    postman: Mailer


class PasswordChanges:
    """Handlers, and ``run``, the task that looks at wishes for a new password. The answer to such a wish is given before anything is
    looked up, so that neither it nor its time can tell whether there is such an account."""

    def __init__(self, parts: Dependencies, needs: PasswordChangeDependencies) -> None:
        self._settings = parts.settings
        self._store = parts.store
        self._identities = parts.identities
        self._passwords = parts.passwords
        self._guesses = parts.guesses
        self._trail = parts.trail
        self._rows = needs.rows
        self._ends = needs.ends
        self._limits = needs.limits
        self._postman = needs.postman
        self._wishes: asyncio.Queue[_Wish] = asyncio.Queue(_MOST_WAITING)

    @serves(accounts.change_password)
    async def change_password(self, request: accounts.ChangePassword, call: RpcCall) -> Nothing:
        caller = call.principal
        # Only by a login: a key that leaked must not outlive its revocation as a password that somebody else knows.
        session = await self._identities.session_of(call.credential)
        user = await self._identities.active_user(await self._store.find_user(caller.user_id))
        self._passwords.check(request.new_password, username=user.username, email=user.email)
        before = await self._rows.find_password_hash(user.id)
        if before is not None and await self._passwords.verify(request.new_password, before):
            raise errors.BadRequest("password: it is the one that you have", hint="choose another")
        password_hash = await self._passwords.hash(request.new_password)
        async with self._ends.transaction(user.id, but=session.id) as transaction:
            await self._rows.set_password(transaction, user.id, password_hash)
            await self._trail.add(transaction, audit_records.done("password.change", caller, tenant=TenantId(user.id), target=user.id))
        _log.info("password changed", user_id=user.id)
        await self._postman.send(user.email, *mail_texts.password_changed(user.username))
        return Nothing()

    @serves(accounts.request_password_reset)
    async def request_password_reset(self, request: accounts.RequestPasswordReset, call: RpcCall) -> Nothing:
        address = client_facing_roles.address_seen(request.client, call)
        await self._limits.charge_address(hourly_limits.asker_of(address or "", call.caller.node))
        try:
            self._wishes.put_nowait(_Wish(request.name.strip(), context.current.get()))
        except asyncio.QueueFull:
            raise errors.Overloaded(
                "too many ask for a new password at once", hint="try again in a minute", retry_after_seconds=60
            ) from None
        return Nothing()

    @serves(accounts.reset_password)
    async def reset_password(self, request: accounts.ResetPassword, call: RpcCall) -> Nothing:
        """The rules are checked before the token is spent, so that a password that is too short costs no second mail."""
        token_hash = _hash(request.token.strip())
        user_id = await self._rows.find_reset(token_hash)
        user = None if user_id is None else await self._store.find_user(user_id)
        if user is None or not user.is_active:
            raise self._token_over()
        self._passwords.check(request.new_password, username=user.username, email=user.email)
        password_hash = await self._passwords.hash(request.new_password)
        async with self._ends.transaction(user.id) as transaction:
            if await self._rows.use_reset(transaction, token_hash) is None:
                raise self._token_over()
            await self._rows.set_password(transaction, user.id, password_hash)
            await self._trail.add(transaction, audit_records.done_by("password.reset", user.id, target=user.id))
        # Who was locked out by too many guesses is let in again.
        await self._guesses.forgive(str(user.id))
        _log.info("password reset", user_id=user.id)
        await self._postman.send(user.email, *mail_texts.password_changed(user.username))
        return Nothing()

    # --- behind the answer -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled. Where a store is away the wish is lost, and its owner asks again."""
        while True:
            wish = await self._wishes.get()
            context.current.set(wish.request)
            try:
                await self._grant(wish.name)
            except errors.PeerError as error:
                _log.warning("no mail for a new password", reason=error.message)
            finally:
                self._wishes.task_done()

    async def settled(self) -> None:
        """Until every wish that has come is dealt with."""
        await self._wishes.join()

    async def _grant(self, name: str) -> None:
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
            # Somebody who has left the provider's organisation must not stay in by mail.
            await self._postman.send(user.email, *mail_texts.reset_at_provider(user.username, self._settings.oidc_name))
            return
        token = api_keys.random_text()
        async with self._store.transaction() as transaction:
            await self._rows.put_reset(transaction, user.id, _hash(token), RESET_SECONDS)
            # By nobody that we know: that it was the user is what the token will show.
            await self._trail.add(transaction, audit_records.of_house("password.ask_reset", None, target=user.id))
        page = f"{self._settings.public_url.rstrip('/')}/reset" if self._settings.public_url else ""
        await self._postman.send(user.email, *mail_texts.reset(user.username, page, token, RESET_SECONDS // 60))

    def _token_over(self) -> errors.NotAuthenticated:
        self._identities.count_refusal("reset_over")
        return errors.NotAuthenticated(
            "this code is wrong, was used, or is too old", hint="ask for another one; only the newest mail counts"
        )


def _hash(token: str) -> str:
    """256 random bits need no slow hash."""
    return hashlib.sha256(token.encode()).hexdigest()
