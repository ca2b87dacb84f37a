"""In-memory auth and gateway, behind the interface that web calls. Passwords are stored in plain text."""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, cast
from uuid import UUID, uuid4

import msgspec

from services.web import mesh_calls
from shared import errors
from shared.api import auth, gateway, ledger, membership, metrics, usage_report
from shared.api.method import End, Item, Method, Nothing, Reply, Request, StreamMethod
from shared.api.usage_report import DailyUsage, UserUsage
from shared.types import Credential, KeyId, ModelName, NodeId, Tier, UserId, UserRole
from tests import feature_parts
from tests.services.web.fake_accounts import FakeAccounts
from tests.services.web.fake_billing import FakeBilling
from tests.services.web.fake_deployments import FakeDeployments
from tests.services.web.fake_models import FakeModels
from tests.services.web.fake_policies import FakePolicies
from tests.services.web.fake_usage import FakeUsage

#: The only gateway.
GATEWAY = NodeId("gateway")
NO_LIMITS = auth.ApiKeyLimits()
#: The default scopes of a new key.
USUAL_SCOPES = ("inference:execute", "usage:read")
NOW = datetime(2026, 11, 20, 14, 5, tzinfo=UTC)


LIMITS = {Tier.FREE: 100, Tier.PRO: 1000, Tier.ENTERPRISE: gateway.NO_LIMIT}


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One call that web made."""

    method: str
    request: msgspec.Struct
    credential: Credential | None


@dataclass(slots=True)
class FakeAnswer(Generic[Item, End]):
    """A stream whose items come from a generator; ``end`` is set from the start."""

    items: AsyncIterator[Item]
    end: End
    node: NodeId = GATEWAY

    def __aiter__(self) -> AsyncIterator[Item]:
        return self.items


@dataclass(slots=True)
class Account:
    user: auth.User
    password: str


#: What features add to it.
_OF_FEATURES: list[type] = [part.FAKE for part in feature_parts.modules("web.fake_mesh")]


class FakeMesh(FakeUsage, FakeDeployments, FakeModels, FakePolicies, FakeAccounts, FakeBilling, *_OF_FEATURES):  # type: ignore[misc]
    """Implements services.web.mesh_calls.MeshCalls. A test reads ``calls`` and writes the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.accounts: dict[str, Account] = {}
        #: Of every user.
        self.notices: tuple[gateway.AccountNotice, ...] = ()
        #: Ids of usable ones.
        self.tickets: set[str] = set()
        self.sessions: dict[str, auth.User] = {}
        self.links: dict[str, auth.User] = {}
        self.keys: list[auth.ApiKey] = []
        self.days: tuple[DailyUsage, ...] = ()
        self.used = 0
        #: The account of every user.
        self.account: ledger.Account | None = None
        self.workers = 1
        self.why_none = self.warning = ""
        #: The code of an open invitation; only registration accepts it.
        self.invitation = "a-code-of-an-invitation"
        self.calls: list[RecordedCall] = []
        #: Service (`auth`, `gateway`) or method name -> the error that it raises instead of answering.
        self.broken: dict[str, errors.AimeshError] = {}

    async def call(
        self,
        method: Method[Request, Reply],
        request: Request,
        *,
        to: NodeId | None = None,
        deadline_seconds: float = 10,
        credential: Credential | None = None,
    ) -> Reply:
        self.calls.append(RecordedCall(method.name, request, credential))
        service, _, name = method.name.partition(".")
        if error := self.broken.get(service) or self.broken.get(method.name):
            raise error
        handler = "_" + re.sub("[A-Z]", lambda capital: "_" + capital[0].lower(), name)
        answer: Callable[[Any, Credential | None], object] = getattr(self, handler)
        reply = answer(request, credential)
        assert isinstance(reply, method.reply)
        return reply

    @asynccontextmanager
    async def stream(
        self,
        method: StreamMethod[Request, Item, End],
        request: Request,
        *,
        deadline_seconds: float = 300,
        credential: Credential | None = None,
    ) -> AsyncIterator[FakeAnswer[Item, End]]:
        """Stream from the handler, an async generator called `_` plus the method's name. Only an inference has a result at its end."""
        self.calls.append(RecordedCall(method.name, request, credential))
        service, _, name = method.name.partition(".")
        if error := self.broken.get(service) or self.broken.get(method.name):
            raise error
        handler = "_" + re.sub("[A-Z]", lambda capital: "_" + capital[0].lower(), name)
        make: Callable[[Any, Credential | None], AsyncGenerator[Item]] = getattr(self, handler)
        end = self.result if method.end is gateway.InferenceResult else method.end()
        async with aclosing(make(request, credential)) as items:
            yield FakeAnswer(items, cast("End", end))

    def _check_ticket(self, request: membership.CheckTicket, _credential: Credential | None) -> Nothing:
        if request.id not in self.tickets:
            raise errors.BadTicket("this mesh does not know the ticket")
        return Nothing()

    def _get_history(self, request: metrics.GetHistory, credential: Credential | None) -> metrics.History:
        raise errors.NotFound("this mesh has no metrics history", hint="set DATABASE_URL")

    def called_methods(self) -> list[str]:
        return [call.method for call in self.calls]

    def add_account(self, username: str, password: str, email: str = "", tier: Tier = Tier.FREE) -> auth.User:
        user = auth.User(UserId(uuid4()), username, email or f"{username}@example.com", UserRole.USER, tier, True, NOW)
        self.accounts[username] = Account(user, password)
        return user

    def add_session(self, user: auth.User) -> str:
        token = f"session-{uuid4().hex}"
        self.sessions[token] = user
        return token

    def add_key(self, user: auth.User, name: str, limits: auth.ApiKeyLimits = NO_LIMITS) -> auth.ApiKey:
        key = auth.ApiKey(KeyId(uuid4()), user.id, name, "aip_live_abc…wxyz", True, NOW, limits=limits)
        self.keys.append(key)
        return key

    def add_usage(self, days_ago: int, requests: int, tokens: int) -> None:
        day = DailyUsage(NOW.date() - timedelta(days=days_ago), KeyId(UUID(int=days_ago % 2)), requests, tokens)
        self.days = (*self.days, day)

    def _register_user(self, request: auth.RegisterUser, credential: Credential | None) -> auth.User:
        offer = self.colleagues.get(request.invitation or "")
        is_invited = self.options.open_registration or request.invitation == self.invitation or offer is not None
        if not is_invited and (credential is None or self._user(credential).role is not UserRole.ADMIN):
            raise errors.NotAllowed("registration is closed here", hint="ask an administrator for an account")
        wanted = request.user_data
        if wanted.username in self.accounts:
            raise errors.AlreadyExists(f"the username {wanted.username!r} is taken", hint="choose another one")
        if len(wanted.password) < 8:
            raise errors.BadRequest("the password is shorter than 8 characters", hint="choose a longer one")
        if offer is not None and offer.email == wanted.email:
            self.colleagues.pop(request.invitation or "")
        return self.add_account(wanted.username, wanted.password, wanted.email)

    def _login_user(self, request: auth.LoginUser, _: Credential | None) -> auth.LoginSession:
        wanted = request.credentials
        for account in self.accounts.values():
            if wanted.password == account.password and (account.user.username == wanted.username or account.user.email == wanted.email):
                session = self._session(self.add_session(account.user))
                is_browser = request.kind is auth.SessionKind.BROWSER
                return msgspec.structs.replace(session, browser=request.browser or "mark") if is_browser else session
        raise errors.NotAuthenticated("the name or the password is wrong", hint="check both and try again")

    def _resume_session(self, request: auth.ResumeSession, _: Credential | None) -> auth.LoginSession:
        if request.session_token not in self.sessions:
            raise errors.NotAuthenticated("the session has ended", hint="log in again")
        return self._session(request.session_token)

    def _logout_user(self, request: auth.LogoutUser, _: Credential | None) -> Nothing:
        self.sessions.pop(request.session_token, None)
        return Nothing()

    def _redeem_login_link(self, request: auth.RedeemLoginLink, _: Credential | None) -> auth.LoginSession:
        user = self.links.pop(request.token, None)
        if user is None:
            raise errors.NotAuthenticated("this link has been used or is older than a minute", hint="run `aicli dashboard` again")
        return self._session(self.add_session(user))

    def _generate_api_key(self, request: auth.GenerateApiKey, credential: Credential | None) -> auth.CreatedApiKey:
        user = self._user(credential)
        if not request.name:
            raise errors.BadRequest("a key needs a name", hint="say what it is for")
        key = self.add_key(user, request.name, request.limits)
        days = 90 if request.days is None else request.days
        ends_at = NOW + timedelta(days=days) if days else None
        scopes = request.bounds.scopes or (() if request.all_rights else USUAL_SCOPES)
        bounds = msgspec.structs.replace(request.bounds, scopes=scopes)
        self.keys[-1] = key = msgspec.structs.replace(key, kind=request.kind, bounds=bounds, expires_at=ends_at)
        return auth.CreatedApiKey(Credential(f"aip_{request.kind}_{key.id.hex}{'x' * 17}"), key)

    def _rename_api_key(self, request: auth.RenameApiKey, credential: Credential | None) -> auth.ApiKey:
        if not request.name:
            raise errors.BadRequest("a key needs a name", hint="say what it is for")
        return self._change_key(request.key, credential, name=request.name)

    def _rotate_api_key(self, request: auth.RotateApiKey, credential: Credential | None) -> auth.CreatedApiKey:
        self._check_fresh("auth.rotateApiKey")
        key = self._change_key(request.key, credential, preview="aip_live_new…wxyz")
        return auth.CreatedApiKey(Credential(f"aip_live_{key.id.hex}{'y' * 17}"), key)

    def _change_key(self, key_id: str, credential: Credential | None, **changes: object) -> auth.ApiKey:
        user = self._user(credential)
        for place, key in enumerate(self.keys):
            if str(key.id) == key_id and key.user_id == user.id:
                if not key.is_active:
                    raise errors.BadRequest(f"the key {key.name!r} was revoked or has expired", hint="make a new one")
                self.keys[place] = msgspec.structs.replace(key, **changes)
                return self.keys[place]
        raise errors.NotFound("there is no such key", hint="list your keys")

    def _list_api_keys(self, _request: auth.ListApiKeys, credential: Credential | None) -> auth.ApiKeys:
        user = self._user(credential)
        # Newest first.
        return auth.ApiKeys(tuple(key for key in reversed(self.keys) if key.user_id == user.id))

    def _revoke_api_key(self, request: auth.RevokeApiKey, credential: Credential | None) -> auth.ApiKey:
        return self._change_key(request.key, credential, is_active=False)

    def _get_user_usage(self, _request: usage_report.GetUserUsage, credential: Credential | None) -> UserUsage:
        user = self._user(credential)
        return UserUsage(user.id, sum(day.request_count for day in self.days), sum(day.tokens_used for day in self.days), self.days)

    def _get_user_quota(self, _request: gateway.GetUserQuota, credential: Credential | None) -> gateway.UserQuota:
        user = self._user(credential)
        limit = LIMITS[user.tier]
        resets_at = NOW + timedelta(minutes=41, seconds=20)
        hour = gateway.LimitState("user", "requests_per_hour", limit, limit - self.used, 2480.0)
        limits = self.limits or ((hour,) if limit < gateway.NO_LIMIT else ())
        return gateway.UserQuota(
            user.id, user.tier, limit, self.used, limit - self.used, resets_at, limits, self.account, notices=self.notices
        )

    def _list_models(self, _request: gateway.ListModels, _: Credential | None) -> gateway.ServedModels:
        models = (gateway.ServedModel(ModelName("smollm2"), self.workers, 2048),) if self.workers else ()
        return gateway.ServedModels(models if self.served is None else self.served, self.why_none, self.warning)

    def _get_service_health(self, _request: gateway.GetServiceHealth, _: Credential | None) -> gateway.ServiceHealth:
        models = (ModelName("smollm2"),) if self.workers else ()
        return gateway.ServiceHealth("healthy" if self.workers else "degraded", (), self.workers, models, 0)

    def _user(self, credential: Credential | None) -> auth.User:
        for user in self.sessions.values():
            if credential == f"access-{user.username}":
                return user
        raise errors.NotAuthenticated("the access token is not good", hint="log in again")

    def _session(self, token: str) -> auth.LoginSession:
        user = self.sessions[token]
        return self.dressed(token, auth.LoginSession(Credential(f"access-{user.username}"), 600, token, user))


_: type[mesh_calls.MeshCalls] = FakeMesh
