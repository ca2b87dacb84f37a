"""Authenticates the caller of each RPC method and applies `shared.access_table`.

Services check nowhere else what a user may call. Handlers check whose data a user may touch.
"""

import time
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Protocol, runtime_checkable

import msgspec

from shared import access_table, answer_table, errors
from shared.access_rules import Audience
from shared.api.auth import Principal
from shared.rpc.serving import AnyMethod, Gate
from shared.telemetry import tracing
from shared.types import Credential, Role

#: Raises NotAuthenticated, or PeerError if auth cannot be asked.
Identify = Callable[[Credential | None], Awaitable[Principal]]
#: Called for each refusal with the method, the user as far as known, and the reason.
OnRefusal = Callable[[str, "CallerIdentity", Principal | None, errors.AimeshError], None]


class CallerIdentity(Protocol):
    """What the authorizer needs to know about a call."""

    @property
    def credential(self) -> Credential | None: ...

    @property
    def caller_role(self) -> Role: ...


@runtime_checkable
class CarriesCredential(Protocol):
    """A request that may contain its caller's credential."""

    def own_credential(self) -> Credential | None: ...


class Authorizer:
    def __init__(self, identify: Identify, on_refusal: OnRefusal, clock: Callable[[], float] = time.time) -> None:
        self._identify = identify
        self._on_refusal = on_refusal
        self._clock = clock

    async def admit(self, method: AnyMethod, request: msgspec.Struct, caller: CallerIdentity) -> Principal | None:
        """Return the caller; None if the method needs no user. Raises NotAuthenticated, NotAllowed or a subclass, and BadRequest for two
        different credentials."""
        row = access_table.of_method(method.name)
        if row.who is Audience.NODE:
            return None
        credential = credential_of(request, caller.credential)
        if credential is None and caller.caller_role in row.unless:
            return None
        principal: Principal | None = None
        try:
            with tracing.span("auth.check"):
                principal = await self._identify(credential)
                access_table.check(row, principal, self._clock())
                # The gateway has checked the address itself.
                if caller.caller_role is not Role.GATEWAY:
                    access_table.check_network(principal, None)
        except errors.CallerError as error:
            self._on_refusal(method.name, caller, principal, error)
            raise
        return principal


def credential_of(request: msgspec.Struct, of_call: Credential | None) -> Credential | None:
    """Return the credential of the request, or else of its call. Raises BadRequest if they differ."""
    own = request.own_credential() if _carries_credential(type(request)) else None  # type: ignore[attr-defined]  # mypy cannot narrow it
    if own and of_call and own != of_call:
        raise errors.BadRequest(
            "the call has two different credentials: one in `auth`, one in its header or in `hello`", hint="send only one of them"
        )
    return own or of_call


@lru_cache(maxsize=512)  # more types than the contract has; asking a protocol costs as much as decoding a small request
def _carries_credential(kind: type[msgspec.Struct]) -> bool:
    return issubclass(kind, CarriesCredential)


def check_declared(methods: list[AnyMethod], gate: Gate | None) -> None:
    """Raises ValueError for a method without a row in the tables, or that needs a user in a service that cannot identify users."""
    for method in methods:
        if access_table.of_method(method.name).who is Audience.NODE:
            answer_table.check(method.name, method.callers)
        elif gate is None:
            raise ValueError(f"{method.name} needs a user, but this service has no authorizer")
