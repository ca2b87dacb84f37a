"""RPC methods to publish and rotate the keys that sign access tokens."""

from services.auth import audit_records
from services.auth.audit_records import AuditTrail
from services.auth.sessions.active_keys import ActiveKeys
from shared.api import auth
from shared.rpc import RpcCall, serves
from shared.telemetry import logs

_log = logs.get(part="signing")


class SigningKeyRpc:
    def __init__(self, trail: AuditTrail, signers: ActiveKeys) -> None:
        self._trail = trail
        self._signers = signers

    @serves(auth.get_signing_keys)
    async def get_signing_keys(self, request: auth.GetSigningKeys, call: RpcCall) -> auth.SigningKeys:
        return self._published()

    @serves(auth.rotate_signing_keys)
    async def rotate_signing_keys(self, request: auth.RotateSigningKeys, call: RpcCall) -> auth.SigningKeys:
        caller = call.principal
        async with self._signers.rotating(at_once=request.at_once) as transaction:
            act = audit_records.of_mesh("signing_keys.rotate", caller, at_once="yes" if request.at_once else "no")
            await self._trail.add(transaction, act)
        _log.info("signing keys rotated", at_once=request.at_once, by=caller.user_id)
        return self._published()

    def _published(self) -> auth.SigningKeys:
        return auth.SigningKeys(tuple(auth.SigningKey(key.kid, key.x) for key in self._signers.published()))
