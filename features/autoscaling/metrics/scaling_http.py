"""Serves GET /autoscale/v1/{pool} for autoscalers such as KEDA, which send an API key with the scope scale:read."""

import time
from collections.abc import Callable

import msgspec

from features.autoscaling import contract
from features.autoscaling.contract import PoolScaling
from shared import access_table, errors
from shared.api.auth import Principal
from shared.node import http_server
from shared.rpc.authorization import Identify
from shared.types import Credential

PREFIX = "/autoscale/v1/"
#: Called with each refusal: the method, the caller as far as known, the address, and why.
OnRefusal = Callable[[str, Principal | None, str, errors.AimeshError], None]


class AutoscaleAnswer(msgspec.Struct, frozen=True):
    """KEDA's trigger ``metrics-api`` reads ``wanted`` (``valueLocation: wanted``)."""

    pool: str
    current: int
    wanted: int
    reason: str
    waiting: int
    oldest_seconds: float
    expected_wait_seconds: float | None
    tokens_per_second: float
    as_of: str


class ScalingHttp:
    """The ASGI application, for paths that begin with PREFIX."""

    def __init__(self, find: Callable[[str], PoolScaling], identify: Identify, on_refusal: OnRefusal) -> None:
        """``find`` raises NotFound."""
        self._find = find
        self._identify = identify
        self._on_refusal = on_refusal

    async def __call__(self, scope: http_server.Scope, receive: http_server.Receive, send: http_server.Send) -> None:
        if scope["type"] != "http":
            return
        headers: dict[bytes, bytes] = {}
        try:
            status, body = 200, msgspec.json.encode(await self._answer(scope))
        except errors.AimeshError as error:
            status, body = error.status, msgspec.json.encode({"code": errors.code_of(error), "message": error.message, "hint": error.hint})
            if error.retry_after_seconds is not None:
                headers[b"retry-after"] = str(max(1, round(error.retry_after_seconds))).encode()
            if isinstance(error, errors.MethodNotAllowed):
                headers[b"allow"] = b"GET"
        await http_server.respond(send, status, body, headers=headers)

    async def _answer(self, scope: http_server.Scope) -> AutoscaleAnswer:
        """Raises the AimeshError that says why the request is refused."""
        if scope["method"] not in {"GET", "HEAD"}:
            raise errors.MethodNotAllowed(f"{PREFIX} only accepts GET")
        await self._admit(scope)
        found = self._find(scope["path"].removeprefix(PREFIX))
        if not found.fresh or found.as_of is None:
            raise errors.Unavailable(
                f"there is no fresh data about the pool {found.pool}",
                hint="keep its size; see features/autoscaling/runbooks/scaling_data_stale.md", retry_after_seconds=15,
            )  # fmt: skip
        return AutoscaleAnswer(
            found.pool, found.ready + found.starting, found.wanted, found.reason, found.waiting, found.oldest_seconds,
            found.expected_wait_seconds, found.tokens_per_second, found.as_of.isoformat(),
        )  # fmt: skip

    async def _admit(self, scope: http_server.Scope) -> None:
        rule = access_table.of_method(contract.get_scaling.name)
        scheme, _, token = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        client = scope.get("client")
        address = client[0] if client else None
        principal: Principal | None = None
        try:
            if scheme.lower() != b"bearer" or not token.isascii():
                raise errors.NotAuthenticated("this needs an API key", hint="send Authorization: Bearer with a key of the scope scale:read")
            principal = await self._identify(Credential(token.strip().decode()))
            access_table.check(rule, principal, time.time())
            access_table.check_network(principal, address)
        except errors.CallerError as error:
            self._on_refusal(contract.get_scaling.name, principal, address or "", error)
            raise
