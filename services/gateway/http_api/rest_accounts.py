"""Serves the /api routes for your own account: registration, login, API keys; and the public keys of access tokens."""

from typing import Annotated

import msgspec

from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import request_bodies
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import HttpCall
from shared import amounts, limits, plan_names
from shared.api import auth
from shared.rpc import RpcClient
from shared.types import Credential, KeyId, MicroCredits, ModelName, Moment, PlanName, UserId, UserRole

Days = Annotated[int, msgspec.Meta(ge=0, le=3650)]


@limits.fields(limits.OfKey | None, after="user_id")
class ApiKeyBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A new key. Omitted limits aren't set on the key; the account's limits apply in any case."""

    name: str = "default"
    user_id: UserId | None = None
    #: In credits, over all requests of the key; use a string for more than 15 digits.
    budget: str | int | float | None = None
    #: When the budget is renewed: at the start of each UTC day, week or month. By default never.
    budget_every: auth.Every | None = None
    #: live, test or adm.
    kind: auth.KeyKind = auth.KeyKind.LIVE
    #: For example `inference:execute`; empty for using models and reading usage.
    scopes: tuple[str, ...] = ()
    #: Everything that this kind of key can get from you, now and later, instead of scopes.
    all_rights: bool = False
    #: Allowed models; empty for all.
    models: tuple[ModelName, ...] = ()
    #: Allowed networks in CIDR form; empty for all.
    networks: tuple[str, ...] = ()
    #: Days until it expires; 0 for never. The default is 90, or 30 for a test key.
    days: Days | None = None


@limits.fields(int | None, after="created_at", default=msgspec.NODEFAULT)
class ApiKeyView(msgspec.Struct, frozen=True, omit_defaults=True):
    id: KeyId
    user_id: UserId
    name: str
    preview: str
    is_active: bool
    created_at: Moment
    #: In credits; a string, to keep it exact.
    budget: str | None
    #: When the budget is renewed; null: never.
    budget_every: auth.Every | None
    kind: auth.KeyKind
    scopes: tuple[str, ...]
    models: tuple[ModelName, ...]
    networks: tuple[str, ...]
    last_used_at: Moment | None
    #: null for never.
    expires_at: Moment | None
    #: The key that created it; null if a login did.
    made_by: KeyId | None
    #: Only after a revocation: false if it is done, but the recovery log on disk lacks it for now.
    logged: bool = True


class RevokeQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: Also revoke the keys that it created, directly or indirectly.
    with_made: bool = False


class ApiKeysAnswer(msgspec.Struct, frozen=True):
    keys: tuple[ApiKeyView, ...]


class ApiKeyAnswer(msgspec.Struct, frozen=True):
    """The only response that contains a whole key."""

    api_key: Credential
    key: ApiKeyView


def to_key_request(body: ApiKeyBody) -> auth.GenerateApiKey:
    """Convert the body. Raises BadField for an invalid budget; auth checks the limits."""
    of_key = auth.ApiKeyLimits(
        **{kind.name: kind.of(body) for kind in limits.LIMITS}, budget_micro=_micro(body.budget), budget_every=body.budget_every
    )
    bounds = auth.KeyBounds(body.scopes, body.models, body.networks)
    return auth.GenerateApiKey(body.name, body.user_id, of_key, body.kind, bounds, body.days, body.all_rights)


def to_key_view(key: auth.ApiKey) -> ApiKeyView:
    fields = {name: value for part in (key, key.limits, key.bounds) for name, value in msgspec.structs.asdict(part).items()}
    budget = key.limits.budget_micro
    return msgspec.convert(fields | {"budget": None if budget is None else amounts.written(budget)}, ApiKeyView)


def _micro(budget: str | int | float | None) -> MicroCredits | None:
    if budget is None:
        return None
    try:
        return amounts.read_json(budget)
    except ValueError as error:
        raise BadField("budget", f"is invalid: {error}") from error


#: How long verifiers may cache the keys; a new key is published for three times as long before it signs.
_JWKS_SECONDS = 300


class RegisterBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    username: str
    email: str
    password: str
    #: If registration is closed: the code of an invitation to this email address.
    invitation: str | None = None


class LoginBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Requires ``username`` or ``email``, but not both."""

    password: str
    username: str | None = None
    email: str | None = None
    #: Second factor, if enabled: six digits, or a recovery code.
    code: str | None = None


class CodeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    code: str


class SessionBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    session_token: str


class DeviceBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: What the person who approves it sees.
    machine: auth.MachineName = ""


class DeviceCodeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    device_code: str


class DeviceAnswer(msgspec.Struct, frozen=True):
    device_code: str
    user_code: str
    #: Empty if PUBLIC_URL is not set: the page is /device of the mesh's pages.
    verification_uri: str
    verification_uri_complete: str
    expires_in: int
    #: Seconds between two polls.
    interval: int


class UserAnswer(msgspec.Struct, frozen=True):
    id: UserId
    username: str
    email: str
    role: UserRole
    #: Without its version.
    tier: PlanName
    is_active: bool
    created_at: Moment

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "tier", plan_names.name_of(self.tier))


class SessionAnswer(msgspec.Struct, frozen=True):
    access_token: Credential
    token_type: str
    expires_in: int
    session_token: str
    user: UserAnswer
    #: done, or the step required before the access token can be used: enter_code, set_up_mfa.
    step: auth.Step


class Done(msgspec.Struct, frozen=True):
    done: bool = True


class PublicKey(msgspec.Struct, frozen=True):
    """A JWK (RFC 8037)."""

    kid: str
    x: str
    kty: str = "OKP"
    crv: str = "Ed25519"
    use: str = "sig"
    alg: str = "EdDSA"


class PublicKeys(msgspec.Struct, frozen=True):
    keys: tuple[PublicKey, ...]


class RestAccounts:
    """Handlers that forward every call to auth with the caller's credential."""

    def __init__(self, rpc: RpcClient) -> None:
        self._rpc = rpc

    def routes(self) -> tuple[HttpRoute, ...]:
        return (
            HttpRoute("POST", "/api/auth/register", self._register, "registerUser", "Create an account",
                      body=RegisterBody, answer=UserAnswer, status=201),
            HttpRoute("POST", "/api/auth/login", self._login, "loginUser", "Exchange a password for an access token",
                      body=LoginBody, answer=SessionAnswer),
            HttpRoute("POST", "/api/auth/confirm", self._confirm, "confirmLogin", "Complete a login with a code",
                      body=CodeBody, answer=SessionAnswer),
            HttpRoute("POST", "/api/auth/device", self._begin_device, "beginDeviceLogin",
                      "Begin a login that a person approves in a browser", body=DeviceBody, answer=DeviceAnswer),
            HttpRoute("POST", "/api/auth/device/token", self._poll_device, "pollDeviceLogin",
                      "Exchange an approved device code for an access token", body=DeviceCodeBody, answer=SessionAnswer),
            HttpRoute("POST", "/api/auth/refresh", self._refresh, "refreshSession",
                      "Get a new access token, and a new session token that replaces this one",
                      body=SessionBody, answer=SessionAnswer),
            HttpRoute("POST", "/api/auth/logout", self._logout, "logoutUser", "End a session", body=SessionBody, answer=Done),
            HttpRoute("POST", "/api/auth/api-keys", self._make_key, "generateApiKey", "Create an API key (shown once)",
                      body=ApiKeyBody, answer=ApiKeyAnswer, status=201),
            HttpRoute("GET", "/api/auth/api-keys", self._list_keys, "listApiKeys", "List your API keys, without their secrets",
                      answer=ApiKeysAnswer),
            HttpRoute("DELETE", "/api/auth/api-keys/{key}", self._revoke_key, "revokeApiKey", "Revoke an API key by its id or name",
                      query=RevokeQuery, answer=ApiKeyView),
            HttpRoute("GET", "/.well-known/jwks.json", self._jwks, "getSigningKeys", "Get the public keys of access tokens",
                      answer=PublicKeys),
        )  # fmt: skip

    async def _register(self, call: HttpCall) -> None:
        body = await call.read_fields(RegisterBody)
        data = auth.UserData(body.username, body.email, body.password)
        request = auth.RegisterUser(data, auth.ClientFacts(call.address or "", call.agent), body.invitation)
        user = await self._rpc.call(auth.register_user, request, credential=call.credential)
        await call.answer(msgspec.convert(user, UserAnswer, from_attributes=True), status=201)

    async def _login(self, call: HttpCall) -> None:
        body = await call.read_fields(LoginBody)
        credentials = auth.Credentials(body.password, body.username, body.email, body.code)
        request = auth.LoginUser(credentials, client=auth.ClientFacts(call.address or "", call.agent))
        await _answer_session(call, await self._rpc.call(auth.login_user, request))

    async def _confirm(self, call: HttpCall) -> None:
        body = await call.read_fields(CodeBody)
        await _answer_session(call, await self._rpc.call(auth.confirm_login, auth.ConfirmLogin(body.code), credential=call.credential))

    async def _begin_device(self, call: HttpCall) -> None:
        body = await call.read_fields(DeviceBody)
        request = auth.BeginDeviceLogin(body.machine, auth.ClientFacts(call.address or "", call.agent))
        begun = await self._rpc.call(auth.begin_device_login, request)
        await call.answer(msgspec.convert(begun, DeviceAnswer, from_attributes=True))

    async def _poll_device(self, call: HttpCall) -> None:
        body = await call.read_fields(DeviceCodeBody)
        request = auth.PollDeviceLogin(body.device_code, auth.ClientFacts(call.address or "", call.agent))
        await _answer_session(call, await self._rpc.call(auth.poll_device_login, request))

    async def _refresh(self, call: HttpCall) -> None:
        body = await call.read_fields(SessionBody)
        await _answer_session(call, await self._rpc.call(auth.refresh_session, auth.RefreshSession(body.session_token)))

    async def _logout(self, call: HttpCall) -> None:
        body = await call.read_fields(SessionBody)
        await self._rpc.call(auth.logout_user, auth.LogoutUser(body.session_token))
        await call.answer(Done())

    async def _make_key(self, call: HttpCall) -> None:
        body = await call.read_fields(ApiKeyBody)
        created = await self._rpc.call(auth.generate_api_key, to_key_request(body), credential=call.credential)
        await call.answer(ApiKeyAnswer(created.api_key, to_key_view(created.key)), status=201)

    async def _list_keys(self, call: HttpCall) -> None:
        listed = await self._rpc.call(auth.list_api_keys, auth.ListApiKeys(), credential=call.credential)
        await call.answer(ApiKeysAnswer(tuple(to_key_view(key) for key in listed.keys)))

    async def _revoke_key(self, call: HttpCall) -> None:
        query = request_bodies.read_query(call.query, RevokeQuery)
        request = auth.RevokeApiKey(call.rest_of_path, query.with_made)
        revoked = await self._rpc.call(auth.revoke_api_key, request, credential=call.credential)
        await call.answer(to_key_view(revoked))

    async def _jwks(self, call: HttpCall) -> None:
        found = await self._rpc.call(auth.get_signing_keys, auth.GetSigningKeys())
        call.add_headers([(b"cache-control", b"public, max-age=%d" % _JWKS_SECONDS)])
        await call.answer(PublicKeys(tuple(PublicKey(key.kid, key.x) for key in found.keys)))


async def _answer_session(call: HttpCall, session: auth.LoginSession) -> None:
    await call.answer(msgspec.convert(session, SessionAnswer, from_attributes=True))
