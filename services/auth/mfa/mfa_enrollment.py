"""RPC methods to enable and disable one's second factor."""

from services.auth import audit_records
from services.auth.dependencies import AuthHandlers, Dependencies
from services.auth.mfa import recovery_codes, totp
from services.auth.mfa.factor_store import Factor, FactorStore
from services.auth.mfa.factors import Factors
from services.auth.session_opening import SessionOpening
from services.auth.sessions.identities import CODE_HINT, WRONG_CODE
from services.auth.sessions.session_store import StoredSession
from shared import errors
from shared.api import accounts, auth
from shared.api.auth import Step
from shared.api.method import Nothing
from shared.rpc import RpcCall, serves
from shared.types import UserRole

_BEGIN_HINT = "beginMfa creates the seed for the app; it expires after an hour"


class MfaEnrollment(AuthHandlers):
    """All of them require a login: with a stolen key one must not be able to replace the owner's phone."""

    def __init__(self, parts: Dependencies, factors: Factors, opening: SessionOpening) -> None:
        super().__init__(parts)
        self._rows = FactorStore(parts.store)
        self._factors = factors
        self._opening = opening

    @serves(accounts.begin_mfa)
    async def begin_mfa(self, request: accounts.BeginMfa, call: RpcCall) -> accounts.MfaSeed:
        session = await self._identities.session_of(call.credential)
        caller = call.principal
        _check_may_set_up(caller, session, await self._rows.find(caller.user_id))
        seed = await self._factors.begin(caller.user_id)
        return accounts.MfaSeed(totp.secret_text(seed), totp.uri(seed, caller.username, f"aimesh {self._settings.mesh}"))

    @serves(accounts.enable_mfa)
    async def enable_mfa(self, request: accounts.EnableMfa, call: RpcCall) -> accounts.RecoveryCodes:
        session = await self._identities.session_of(call.credential)
        caller = call.principal
        factor = await self._rows.find(caller.user_id)
        _check_may_set_up(caller, session, factor)
        if factor.begun_seed is None:
            raise errors.BadRequest("no second factor is being set up", hint=_BEGIN_HINT)
        step = self._factors.prove(caller.user_id, factor, request.code)
        if step is None:
            raise errors.BadRequest.of("code", "it does not match this seed", hint=CODE_HINT)
        codes = recovery_codes.new_codes()
        async with self._store.transaction() as transaction:
            hashes = self._factors.digests(caller.user_id, codes)
            if not await self._rows.enable(transaction, caller.user_id, factor.begun_seed, step, hashes):
                raise errors.BadRequest("a newer setup of the second factor was started", hint="use the newest seed")
            await self._trail.add(transaction, audit_records.done("mfa.enable", caller))
        return accounts.RecoveryCodes(codes, await self._complete_login(caller, session))

    @serves(accounts.disable_mfa)
    async def disable_mfa(self, request: accounts.DisableMfa, call: RpcCall) -> Nothing:
        session = await self._identities.session_of(call.credential)
        caller = call.principal
        if caller.role is UserRole.ADMIN and self._settings.admin_mfa:
            raise errors.NotAllowed(
                "an administrator needs a second factor", hint="to change phones, set up a new one, which replaces this one"
            )
        if not (await self._rows.find(caller.user_id)).is_enabled:
            raise _no_factor()
        if not await self._factors.take(caller.user_id, request.code, session.client.address, session.browser):
            self._trail.note(audit_records.refused("mfa.disable", caller, "wrong code", address=session.client.address))
            raise errors.NotAllowed(WRONG_CODE, hint=CODE_HINT)
        async with self._store.transaction() as transaction:
            await self._rows.remove(transaction, caller.user_id)
            await self._trail.add(transaction, audit_records.done("mfa.disable", caller))
        return Nothing()

    @serves(accounts.renew_recovery_codes)
    async def renew_recovery_codes(self, request: accounts.RenewRecoveryCodes, call: RpcCall) -> accounts.RecoveryCodes:
        session = await self._identities.session_of(call.credential)
        caller = call.principal
        _check_code_entered(session, await self._rows.find(caller.user_id))
        codes = recovery_codes.new_codes()
        async with self._store.transaction() as transaction:
            if not await self._rows.renew_recovery_codes(transaction, caller.user_id, self._factors.digests(caller.user_id, codes)):
                raise _no_factor()
            await self._trail.add(transaction, audit_records.done("mfa.recovery_codes", caller))
        return accounts.RecoveryCodes(codes)

    async def _complete_login(self, caller: auth.Principal, session: StoredSession) -> auth.LoginSession | None:
        """Complete a login that lacked this step, under a new token. End all others, which were opened without a second factor."""
        if caller.step is Step.DONE:
            await self._sessions.confirm(session, has_factor=True)
            await self._sessions.end_all(caller.user_id, but=session.id)
            return None
        answer = await self._opening.complete(session)
        await self._sessions.end_all(caller.user_id, but=(await self._identities.session_of(answer.access_token)).id)
        return answer


def _check_may_set_up(caller: auth.Principal, session: StoredSession, factor: Factor) -> None:
    """Logins that lack a step are allowed here, because this is one. But those that lack a code of an enabled factor are not."""
    if caller.step is Step.ENTER_CODE:
        raise _code_required()
    _check_code_entered(session, factor)


def _check_code_entered(session: StoredSession, factor: Factor) -> None:
    if factor.is_enabled and not session.has_factor:
        raise _code_required()


def _code_required() -> errors.SecondFactorNeeded:
    return errors.SecondFactorNeeded("a second factor is enabled, and this login lacks its code", hint="log in with a code")


def _no_factor() -> errors.NotFound:
    return errors.NotFound("this account has no second factor", hint="beginMfa sets one up")
