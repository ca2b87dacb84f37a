"""Who asks for what is for people alone: auth says it, each time, because few ask here."""

from typing import Final

from shared import errors
from shared.api import auth
from shared.api.auth import Principal
from shared.rpc import RpcClient
from shared.rpc.audit_reporting import AuditReporting
from shared.rpc.authorization import Authorizer, CallerIdentity
from shared.types import Credential

_ASK_SECONDS: Final = 2.0


def gate(rpc: RpcClient, telling: AuditReporting) -> Authorizer:
    """Its refusals are told to the audit log."""

    async def identify(credential: Credential | None) -> Principal:
        if credential is None:
            raise errors.NotAuthenticated("this call needs a credential", hint="send an API key or an access token with it")
        return await rpc.call(auth.identify, auth.Identify(credential), deadline_seconds=_ASK_SECONDS)

    def refused(method: str, _visitor: CallerIdentity, principal: Principal | None, error: errors.AimeshError) -> None:
        telling.refused(method, principal, "", error)

    return Authorizer(identify, refused)
