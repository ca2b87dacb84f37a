"""The RPC method by which an administrator takes the second factor of somebody who has lost it."""

from services.auth import audit_records, mail_texts
from services.auth.accounts.session_revocation import SessionRevocation
from services.auth.dependencies import Dependencies
from services.auth.mfa.factor_store import FactorStore
from shared import errors
from shared.api import auth
from shared.mail.mailer import Mailer
from shared.rpc import RpcCall, serves
from shared.telemetry import logs

_log = logs.get(part="auth")


class FactorRemoval:
    """The person is told by mail: whoever asked for it in their name shall not stay unseen."""

    def __init__(self, parts: Dependencies, ends: SessionRevocation, postman: Mailer) -> None:
        self._users = parts.store
        self._store = FactorStore(parts.store)
        self._ends = ends
        self._postman = postman
        self._trail = parts.trail

    @serves(auth.remove_mfa)
    async def remove_mfa(self, request: auth.RemoveMfa, call: RpcCall) -> auth.User:
        user = await self._users.get_user_called(request.user)
        if user.id == call.principal.user_id:
            raise errors.NotAllowed(
                "nobody removes their own second factor in this way", hint="switch it off in your settings, or let another administrator"
            )
        async with self._ends.transaction(user.id) as transaction:
            if not await self._store.remove(transaction, user.id):
                raise errors.NotFound(f"{user.username} has no second factor", hint="there is nothing to remove")
            await self._trail.add(transaction, audit_records.done("mfa.remove", call.principal, target=user.id))
        _log.info("second factor removed", user_id=user.id, by=call.principal.user_id)
        await self._postman.send(user.email, *mail_texts.factor_removed(user.username))
        return user
