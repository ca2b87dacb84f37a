"""The /api routes: bodies in camelCase or snake_case, answers in snake_case."""

from datetime import date, datetime
from typing import Protocol

import msgspec

from services.gateway import mesh
from services.gateway.doors import bodies, key_bodies
from services.gateway.doors.http_app import Route
from services.gateway.doors.http_call import HttpCall
from services.gateway.doors.rest_inference import RestInference
from services.gateway.limiting import limits
from services.gateway.limiting.quotas import Quotas
from services.gateway.once import Once
from shared.api import auth
from shared.api.usage import UserUsage
from shared.types import Credential, KeyId, TenantId, Tier, UserId, UserRole


class RegisterBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    username: str
    email: str
    password: str


class LoginBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``username`` or ``email``, one of them."""

    password: str
    username: str | None = None
    email: str | None = None


class UserAnswer(msgspec.Struct, frozen=True):
    id: UserId
    username: str
    email: str
    role: UserRole
    tier: Tier
    is_active: bool
    created_at: datetime


class SessionAnswer(msgspec.Struct, frozen=True):
    access_token: Credential
    token_type: str
    expires_in: int
    session_token: str
    user: UserAnswer


class UsageDayAnswer(msgspec.Struct, frozen=True):
    date: date
    api_key_id: KeyId | None
    request_count: int
    tokens_used: int


class UsageAnswer(msgspec.Struct, frozen=True):
    user_id: UserId
    request_count: int
    tokens_used: int
    #: Newest first; at most a year.
    days: tuple[UsageDayAnswer, ...]


class LimitAnswer(msgspec.Struct, frozen=True):
    """One limit and how far it is used."""

    #: user or key.
    scope: str
    #: requests_per_hour, requests_per_minute, tokens_per_minute or concurrency.
    kind: str
    limit: int
    remaining: int
    #: Until all of it is there again.
    resets_in_seconds: float


class QuotaAnswer(msgspec.Struct, frozen=True):
    user_id: UserId
    tier: Tier
    limit_per_hour: int
    used_this_hour: int
    remaining: int
    resets_in_seconds: float
    #: Every limit that a request of this caller counts against.
    limits: tuple[LimitAnswer, ...] = ()


class UsageReader(Protocol):
    """The part of the store that is used here."""

    async def read_usage(self, tenant: TenantId) -> UserUsage: ...


class Rest:
    """The handlers of /api."""

    def __init__(self, once: Once, rpc: mesh.Rpc, usage: UsageReader, quotas: Quotas, *, request_seconds: float) -> None:
        self._inference = RestInference(once, request_seconds=request_seconds)
        self._rpc = rpc
        self._usage_of = usage.read_usage
        self._quotas = quotas

    def routes(self) -> tuple[Route, ...]:
        return (
            Route(
                verb="POST", path="/api/auth/register", handler=self._register, method="registerUser",
                summary="Make an account", body=RegisterBody, answer=UserAnswer, status=201,
            ),
            Route(
                verb="POST", path="/api/auth/login", handler=self._login, method="loginUser",
                summary="Exchange a password for an access token", body=LoginBody, answer=SessionAnswer,
            ),
            Route(
                verb="POST", path="/api/auth/api-keys", handler=self._make_key, method="generateApiKey",
                summary="Make an API key; it is shown this once", body=key_bodies.ApiKeyBody, answer=key_bodies.ApiKeyAnswer, status=201,
            ),
            *self._inference.routes(),
            Route(
                verb="GET", path="/api/usage", handler=self._usage, method="readUsage",
                summary="What you used, by day", answer=UsageAnswer,
            ),
            Route(
                verb="GET", path="/api/quota", handler=self._quota, method="getUserQuota",
                summary="What you may still use in this hour", answer=QuotaAnswer,
            ),
        )  # fmt: skip

    async def _register(self, call: HttpCall) -> None:
        body = bodies.read_either_case(call.body, RegisterBody)
        user = await self._rpc.call(auth.register_user, auth.RegisterUser(auth.UserData(body.username, body.email, body.password)))
        await call.answer(msgspec.convert(user, UserAnswer, from_attributes=True), status=201)

    async def _login(self, call: HttpCall) -> None:
        body = bodies.read_either_case(call.body, LoginBody)
        credentials = auth.Credentials(body.password, body.username, body.email)
        session = await self._rpc.call(auth.login_user, auth.LoginUser(credentials))
        await call.answer(msgspec.convert(session, SessionAnswer, from_attributes=True))

    async def _make_key(self, call: HttpCall) -> None:
        body = bodies.read_either_case(call.body, key_bodies.ApiKeyBody)
        made = await self._rpc.call(auth.generate_api_key, key_bodies.to_request(body), credential=call.credential)
        await call.answer(key_bodies.to_answer(made), status=201)

    async def _usage(self, call: HttpCall) -> None:
        usage = await self._usage_of(call.caller.tenant_id)
        await call.answer(msgspec.convert(usage, UsageAnswer, from_attributes=True))

    async def _quota(self, call: HttpCall) -> None:
        found = await self._quotas.look(call.caller)
        hour, caller = limits.hourly(found), call.caller
        each = tuple(LimitAnswer(one.scope, one.kind, one.limit, one.remaining, one.resets_in_seconds) for one in found)
        await call.answer(QuotaAnswer(caller.user_id, caller.tier, hour.limit, hour.used, hour.remaining, hour.resets_in_seconds, each))
