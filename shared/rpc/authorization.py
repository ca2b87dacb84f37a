"""The gate in front of a service's handlers: finds out who asks, and lets in whom `shared.access.access_table` says.

The only place where a service checks what a person may call; what of whose data a handler touches is the handler's to say.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, runtime_checkable

import msgspec

from shared import errors
from shared.access import access_table
from shared.access.access_table import Audience
from shared.api.auth import Principal
from shared.api.method import Method, StreamMethod
from shared.types import Credential, Role

#: Raises NotAuthenticated, and PeerError where it cannot be found out.
Identify = Callable[[Credential | None], Awaitable[Principal]]
#: Told of each refusal: the method, who it was as far as that is known, and why.
OnRefusal = Callable[[str, "CallerIdentity", Principal | None, errors.AimeshError], None]

AnyMethod = Method[Any, Any] | StreamMethod[Any, Any, Any]


class CallerIdentity(Protocol):
    """The call as the gate sees it."""

    @property
    def credential(self) -> Credential | None: ...

    @property
    def caller_role(self) -> Role: ...


@runtime_checkable
class BringsCredential(Protocol):
    """A request that may carry its caller's credential itself, as the seed documents have it."""

    def own_credential(self) -> Credential | None: ...


class Authorizer:
    def __init__(self, identify: Identify, on_refusal: OnRefusal, clock: Callable[[], float] = time.time) -> None:
        self._identify = identify
        self._on_refusal = on_refusal
        self._clock = clock

    async def admit(self, method: AnyMethod, request: msgspec.Struct, visitor: CallerIdentity) -> Principal | None:
        """Who asks; None where the method asks about nobody. Raises NotAuthenticated, NotAllowed and their kind, and BadRequest for two
        credentials that differ."""
        row = access_table.of_method(method.name)
        if row.who is Audience.NODE:
            return None
        credential = _credential_of(request, visitor)
        if credential is None and visitor.caller_role in row.unless:
            return None
        principal: Principal | None = None
        try:
            principal = await self._identify(credential)
            access_table.check(row, principal, self._clock(), method.name)
            # The gateway has seen the address at its own door.
            if visitor.caller_role is not Role.GATEWAY:
                access_table.check_network(principal, None)
        except errors.CallerError as error:
            self._on_refusal(method.name, visitor, principal, error)
            raise
        return principal


def _credential_of(request: msgspec.Struct, visitor: CallerIdentity) -> Credential | None:
    own = request.own_credential() if isinstance(request, BringsCredential) else None
    if own and visitor.credential and own != visitor.credential:
        raise errors.BadRequest(
            "the call has two different credentials: one in `auth`, and one in its header or in `hello`", hint="send one of them"
        )
    return own or visitor.credential


def check_declared(methods: list[AnyMethod], gate: Authorizer | None) -> None:
    """Raises ValueError for a method that has no row in the table, or that asks about people where nobody can tell who they are."""
    for method in methods:
        if access_table.of_method(method.name).who is Audience.PERSON and gate is None:
            raise ValueError(f"{method.name} asks who the caller is, and this service has no gate")
