"""RPC methods to log in with the provider, and to link an account to it or unlink it."""

import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from services.auth import api_keys, audit_records
from services.auth.dependencies import AuthHandlers, Dependencies
from services.auth.logins import LoginRpc
from services.auth.oidc import account_provisioning, discovery
from services.auth.oidc.account_provisioning import Identity, ProvisionedAccount, RoleTable
from services.auth.oidc.discovery import ClientRegistration
from services.auth.oidc.flow import LoginPurpose, ProviderReply
from services.auth.oidc.iap import IapLogins
from services.auth.oidc.oidc_login import OidcLogins, PendingLogins
from services.auth.oidc.oidc_store import OidcStore
from services.auth.oidc.provider import Provider
from services.auth.sealing import DataSealer
from services.auth.sessions.session_store import SessionOver, StoredLogin
from services.auth.settings import AuthSettings
from shared import access_table, errors
from shared.api import accounts, auth, events
from shared.api.auth import SessionKind, Step
from shared.api.method import Nothing
from shared.rpc import RpcCall, serves
from shared.stores.cache import Cache
from shared.telemetry import logs
from shared.types import UserId

_PURPOSE = "id token"

_log = logs.get(part="auth")


@dataclass(frozen=True, slots=True)
class ProviderSession:
    """A session that was opened by a login with the provider."""

    #: None if it can't be decrypted any more: the provider then asks which session to end.
    id_token: str | None = field(repr=False)


class ProviderSessions:
    """ID tokens by session, encrypted in Valkey, for the logout at the provider. Every method may raise Unavailable."""

    def __init__(self, cache: Cache, sealer: DataSealer, *, longest_seconds: float) -> None:
        self._cache = cache
        self._sealer = sealer
        self._longest_seconds = longest_seconds

    async def put(self, session_token: str, id_token: str) -> None:
        key = _key(session_token)
        await self._cache.set(key, self._sealer.seal(_PURPOSE, key, id_token.encode()), ttl_seconds=self._longest_seconds)

    async def take(self, session_token: str) -> ProviderSession | None:
        """Return None for a session that was opened otherwise, or was taken before."""
        key = _key(session_token)
        sealed = await self._cache.take(key)
        return None if sealed is None else ProviderSession(self._open(key, sealed))

    def _open(self, key: str, sealed: bytes) -> str | None:
        try:
            return self._sealer.open(_PURPOSE, key, sealed).decode()
        except (errors.Unavailable, errors.Internal) as error:
            # The key is gone, or the value was changed. The logout must still work.
            _log.warning("a stored ID token cannot be decrypted; logging out at the provider without it", reason=error.message)
            return None


def _key(session_token: str) -> str:
    return f"auth:oidc:session:{api_keys.hash_token(session_token)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OidcDependencies:
    #: None if no provider is configured.
    oidc: OidcLogins | None
    #: None without IAP.
    iap: IapLogins | None
    links: OidcStore
    roles: RoleTable
    provider_sessions: ProviderSessions

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, settings: AuthSettings, cache: Cache, links: OidcStore) -> AsyncIterator["OidcDependencies"]:
        """Send nothing to the provider, so auth starts without it. Raises BadSettings."""
        async with contextlib.AsyncExitStack() as stack:
            oidc = None
            if (registration := _registration(settings)) is not None:
                provider = await stack.enter_async_context(Provider.open(registration))
                oidc = OidcLogins(registration, provider, PendingLogins(cache))
            iap = None
            if settings.iap_audience is not None:
                iap = await stack.enter_async_context(IapLogins.open(settings.iap_audience, settings.iap_keys_url, settings.oidc_ca_file))
            sealer = DataSealer.of(settings.data_key, settings.data_key_old)
            provider_sessions = ProviderSessions(cache, sealer, longest_seconds=settings.session_longest_seconds)
            yield cls(oidc=oidc, iap=iap, links=links, roles=RoleTable(settings.oidc_roles), provider_sessions=provider_sessions)


class OidcRpc(AuthHandlers):
    """Any method may raise Unavailable: the provider, PostgreSQL or Valkey does not answer."""

    def __init__(self, parts: Dependencies, oidc: OidcDependencies, logins: LoginRpc) -> None:
        super().__init__(parts)
        self._oidc = oidc.oidc
        self._iap = oidc.iap
        self._links = oidc.links
        self._roles = oidc.roles
        self._provider_sessions = oidc.provider_sessions
        self._logins = logins

    @serves(accounts.begin_oidc)
    async def begin_oidc(self, request: accounts.BeginOidc, call: RpcCall) -> accounts.OidcStart:
        oidc = self._require_provider()
        link_to = None if request.session_token is None else await self._check_may_link(request.session_token)
        max_age = 0 if request.fresh else None
        begun = await oidc.begin(
            LoginPurpose(redirect_uri=request.redirect_uri, then=request.then or "/", link_to=link_to, max_age_seconds=max_age)
        )
        return accounts.OidcStart(begun.url, begun.binding)

    @serves(accounts.finish_oidc)
    async def finish_oidc(self, request: accounts.FinishOidc, call: RpcCall) -> accounts.OidcEnd:
        answer = ProviderReply(state=request.state, code=request.code or None, error=request.error, iss=request.issuer)
        with self._counted_refusal(request.client):
            finished = await self._require_provider().finish(answer, request.binding)
        account = await self._provision(finished.identity, finished.link_to, self._roles)
        if finished.link_to is not None:
            return accounts.OidcEnd(None, finished.then)
        return accounts.OidcEnd(await self._open_session(account.user_id, finished.identity, request.client), finished.then)

    @serves(accounts.login_by_iap)
    async def login_by_iap(self, request: accounts.LoginByIap, call: RpcCall) -> accounts.IapEnd:
        if self._iap is None:
            raise errors.NotFound("logins by IAP are off", hint="log in with a password; an administrator: set IAP_AUDIENCE")
        link_to = None if request.session_token is None else await self._check_may_link(request.session_token)
        with self._counted_refusal(request.client):
            identity = await self._iap.identify(request.assertion)
        # IAP knows no groups, so it has no influence on roles.
        account = await self._provision(identity, link_to, RoleTable())
        return accounts.IapEnd(None if link_to is not None else await self._open_session(account.user_id, identity, request.client))

    @serves(accounts.list_oidc_links)
    async def list_oidc_links(self, request: accounts.ListOidcLinks, call: RpcCall) -> accounts.OidcLinks:
        return accounts.OidcLinks(await self._links.list_of(call.principal.user_id))

    @serves(accounts.remove_oidc_link)
    async def remove_oidc_link(self, request: accounts.RemoveOidcLink, call: RpcCall) -> Nothing:
        user_id = call.principal.user_id
        if not await self._links.remove(user_id, request.issuer, request.subject):
            linked = await self._links.list_of(user_id)
            if any((each.issuer, each.subject) == (request.issuer, request.subject) for each in linked):
                raise errors.NotAllowed("you could no longer log in to your account", hint="set a password first, then remove this link")
            raise errors.NotFound("your account has no such link", hint="listOidcLinks shows them")
        return Nothing()

    @serves(accounts.leave_oidc)
    async def leave_oidc(self, request: accounts.LeaveOidc, call: RpcCall) -> accounts.LeftOidc:
        if self._oidc is None:
            return accounts.LeftOidc(None)
        session = await self._provider_sessions.take(request.session_token)
        return accounts.LeftOidc(None if session is None else await self._oidc.logout_url(session.id_token, request.then))

    def _require_provider(self) -> OidcLogins:
        if self._oidc is None:
            raise errors.NotFound("no login provider is configured here", hint="log in with a password; an administrator: set OIDC_ISSUER")
        return self._oidc

    async def _check_may_link(self, session_token: str) -> UserId:
        """A link gives lasting access to the account, so it requires what a password change requires."""
        found = await self._sessions.resume(session_token)
        if isinstance(found, SessionOver):
            raise self._identities.session_over()
        session = found.session
        user = await self._identities.active_user(await self._store.find_user(session.user_id))
        if session.step is not Step.DONE:
            raise errors.SecondFactorNeeded("this login still lacks its second factor", hint="enter the code, then link the provider")
        if time.time() - session.confirmed_at > access_table.FRESH_SECONDS:
            raise errors.ConfirmationNeeded("your login is too old for this", hint="confirm it with your password or a code")
        return user.id

    @contextlib.contextmanager
    def _counted_refusal(self, client: auth.ClientFacts) -> Iterator[None]:
        try:
            yield
        except errors.NotAuthenticated:
            self._identities.count_refusal("oidc")
            self._trail.note(audit_records.refused("session.open", None, "not proven by the provider", address=client.address))
            raise

    async def _provision(self, identity: Identity, link_to: UserId | None, roles: RoleTable) -> ProvisionedAccount:
        account = await account_provisioning.provision_account(identity, link_to, self._links, roles)
        if account.is_new:
            self._node.metrics.registrations.inc()
            self._node.publish(events.UserRegistered(datetime.now(UTC), account.user_id))
            _log.info("user registered", user_id=account.user_id, by="oidc")
        return account

    async def _open_session(self, user_id: UserId, identity: Identity, client: auth.ClientFacts) -> auth.LoginSession:
        user = await self._identities.active_user(await self._store.find_user(user_id))
        confirmed_at = _confirmed_at(identity, time.time())
        login = StoredLogin(user_id=user.id, kind=SessionKind.BROWSER, confirmed_at=confirmed_at, client=client)
        session = await self._logins.begin(user, login)
        if identity.id_token:
            await self._provider_sessions.put(session.session_token, identity.id_token)
        return session


def _registration(settings: AuthSettings) -> ClientRegistration | None:
    if settings.oidc_issuer is None:
        return None
    if mistake := discovery.find_issuer_mistake(settings.oidc_issuer):
        raise errors.BadSettings(f"OIDC_ISSUER: {mistake}", hint="copy it from the provider's settings")
    if not settings.oidc_client_id:
        raise errors.BadSettings("OIDC_ISSUER is set, but OIDC_CLIENT_ID is not", hint="copy it from the client at the provider")
    return ClientRegistration(
        issuer=settings.oidc_issuer,
        client_id=settings.oidc_client_id,
        client_secret=settings.oidc_client_secret,
        scopes=settings.oidc_scopes,
        groups_claim=settings.oidc_groups_claim,
        ca_file=settings.oidc_ca_file,
    )


def _confirmed_at(identity: Identity, now: float) -> float:
    """Return when the user entered a password at the provider; 0 if it doesn't say, because it may have known the browser."""
    return 0.0 if identity.authenticated_at is None else min(identity.authenticated_at, now)
