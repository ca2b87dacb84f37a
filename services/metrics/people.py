"""Who asks for what is for people alone: auth says it, each time, because few ask here."""

from typing import Final

from shared import errors
from shared.api import auth
from shared.api.auth import Principal
from shared.rpc import Client
from shared.rpc.gate import Gate, Visitor
from shared.rpc.telling import Telling
from shared.types import Credential

_ASK_SECONDS: Final = 2.0


def gate(rpc: Client, telling: Telling) -> Gate:
    """Its refusals are told to the audit log."""

    async def identify(credential: Credential | None) -> Principal:
        if credential is None:
            raise errors.NotAuthenticated("this call needs a credential", hint="send an API key or an access token with it")
        return await rpc.call(auth.identify, auth.Identify(credential), deadline_seconds=_ASK_SECONDS)

    def refused(method: str, _visitor: Visitor, principal: Principal | None, error: errors.AimeshError) -> None:
        telling.refused(method, principal, "", error)

    return Gate(identify, refused)
