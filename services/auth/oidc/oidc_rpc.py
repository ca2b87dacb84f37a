"""The RPC methods by which people log in with the provider, link it to their account, and unlink it."""

import contextlib
import hashlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from services.auth import audit_records
from services.auth.dependencies import Dependencies
from services.auth.oidc import account_provisioning, discovery
from services.auth.oidc.account_provisioning import ProvisionedAccount
from services.auth.oidc.claim_mapping import Identity, RoleTable
from services.auth.oidc.client_registration import ClientRegistration
from services.auth.oidc.flow import LoginPurpose, ProviderReply
from services.auth.oidc.oidc_login import Finished, Oidc
from services.auth.oidc.oidc_store import OidcStore
from services.auth.oidc.pending_logins import PendingLogins
from services.auth.oidc.provider import Provider
from services.auth.sealing import DataSealer
from services.auth.sessions.session_store import SessionOver, StoredLogin
from services.auth.settings import AuthSettings
from shared import errors
from shared.access import access_table
from shared.api import accounts, auth, events
from shared.api.auth import SessionKind, Step
from shared.api.method import Nothing
from shared.rpc import RpcCall, serves
from shared.stores.cache import Cache
from shared.telemetry import logs
from shared.types import UserId

_PURPOSE = "id token"


@dataclass(frozen=True, slots=True)
class ProviderSession:
    """A session that came by the provider."""

    #: None where it does not open any more: the provider then asks the person whom it means.
    id_token: str | None = field(repr=False)


class ProviderSessions:
    """Every method may raise Unavailable."""

    def __init__(self, cache: Cache, sealer: DataSealer, *, longest_seconds: float) -> None:
        self._cache = cache
        self._sealer = sealer
        self._longest_seconds = longest_seconds

    async def keep(self, session_token: str, id_token: str) -> None:
        key = _key(session_token)
        await self._cache.set(key, self._sealer.seal(_PURPOSE, key, id_token.encode()), ttl_seconds=self._longest_seconds)

    async def take(self, session_token: str) -> ProviderSession | None:
        """None if it came otherwise, or has been taken."""
        key = _key(session_token)
        sealed = await self._cache.take(key)
        return None if sealed is None else ProviderSession(self._open(key, sealed))

    def _open(self, key: str, sealed: bytes) -> str | None:
        try:
            return self._sealer.open(_PURPOSE, key, sealed).decode()
        except (errors.Unavailable, errors.Internal) as error:
            # Sealed with a key that is gone, changed, or kept in the open by an older auth: nobody stays logged in for that.
            _log.warning("an ID token that was kept does not open; the provider is asked without it", reason=error.message)
            return None


def _key(session_token: str) -> str:
    return f"auth:oidc:session:{hashlib.sha256(session_token.encode()).hexdigest()}"


_log = logs.get(part="auth")


class OpensSessions(Protocol):
    """``logins.LoginRpc``, as far as it is needed here."""

    async def begin(self, user: auth.User, login: StoredLogin) -> auth.LoginSession:
        """With the step that the login still lacks."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OidcDependencies:
    """What only this door has."""

    #: None where no provider is set up.
    oidc: Oidc | None
    links: OidcStore
    roles: RoleTable
    provider_sessions: ProviderSessions

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, settings: AuthSettings, cache: Cache, links: OidcStore) -> AsyncIterator["OidcDependencies"]:
        """Does not ask the provider: auth starts without it. Raises BadSettings."""
        async with contextlib.AsyncExitStack() as stack:
            oidc = None
            if (registration := _registration(settings)) is not None:
                provider = await stack.enter_async_context(Provider.open(registration))
                oidc = Oidc(registration, provider, PendingLogins(cache))
            sealer = DataSealer.of(settings.data_key, settings.data_key_old)
            kept = ProviderSessions(cache, sealer, longest_seconds=settings.session_longest_seconds)
            yield cls(oidc=oidc, links=links, roles=RoleTable(settings.oidc_roles), provider_sessions=kept)


class OidcRpc:
    """Handlers. Any of them may raise Unavailable: the provider, PostgreSQL or Valkey does not answer."""

    def __init__(self, parts: Dependencies, equipment: OidcDependencies, logins: OpensSessions) -> None:
        self._node = parts.node
        self._store = parts.store
        self._sessions = parts.sessions
        self._identities = parts.identities
        self._trail = parts.trail
        self._oidc = equipment.oidc
        self._links = equipment.links
        self._roles = equipment.roles
        self._provider_sessions = equipment.provider_sessions
        self._logins = logins

    @serves(accounts.begin_oidc)
    async def begin_oidc(self, request: accounts.BeginOidc, call: RpcCall) -> accounts.OidcStart:
        oidc = self._provider()
        link_to = None if request.session_token is None else await self._check_may_link(request.session_token)
        max_age = 0 if request.fresh else None
        begun = await oidc.begin(
            LoginPurpose(redirect_uri=request.redirect_uri, then=request.then or "/", link_to=link_to, max_age_seconds=max_age)
        )
        return accounts.OidcStart(begun.url, begun.binding)

    @serves(accounts.finish_oidc)
    async def finish_oidc(self, request: accounts.FinishOidc, call: RpcCall) -> accounts.OidcEnd:
        answer = ProviderReply(state=request.state, code=request.code or None, error=request.error, iss=request.issuer)
        try:
            finished = await self._provider().finish(answer, request.binding)
        except errors.NotAuthenticated:
            self._identities.count_refusal("oidc")
            self._trail.note(audit_records.refused("session.open", None, "not proven by the provider", address=request.client.address))
            raise
        admitted = await account_provisioning.admit(finished.identity, finished.link_to, self._links, self._roles)
        if admitted.is_new:
            self._tell(admitted)
        if finished.link_to is not None:
            return accounts.OidcEnd(None, finished.then)
        return accounts.OidcEnd(await self._open_session(admitted.user_id, finished, request.client), finished.then)

    @serves(accounts.list_oidc_links)
    async def list_oidc_links(self, request: accounts.ListOidcLinks, call: RpcCall) -> accounts.OidcLinks:
        linked = await self._links.list_of(call.principal.user_id)
        return accounts.OidcLinks(tuple(accounts.OidcLink(each.issuer, each.subject, each.email or "", each.linked_at) for each in linked))

    @serves(accounts.remove_oidc_link)
    async def remove_oidc_link(self, request: accounts.RemoveOidcLink, call: RpcCall) -> Nothing:
        user_id = call.principal.user_id
        if not await self._links.remove(user_id, request.issuer, request.subject):
            linked = await self._links.list_of(user_id)
            if any((each.issuer, each.subject) == (request.issuer, request.subject) for each in linked):
                raise errors.NotAllowed("nothing else opens your account", hint="set a password first, then remove this")
            raise errors.NotFound("your account has no such link", hint="listOidcLinks shows them")
        return Nothing()

    @serves(accounts.leave_oidc)
    async def leave_oidc(self, request: accounts.LeaveOidc, call: RpcCall) -> accounts.LeftOidc:
        if self._oidc is None:
            return accounts.LeftOidc(None)
        came = await self._provider_sessions.take(request.session_token)
        return accounts.LeftOidc(None if came is None else await self._oidc.logout_url(came.id_token, request.then))

    def _provider(self) -> Oidc:
        if self._oidc is None:
            raise errors.NotFound("no login provider is set up here", hint="log in with a password; an administrator: set OIDC_ISSUER")
        return self._oidc

    async def _check_may_link(self, session_token: str) -> UserId:
        """A link opens the account for good, so it needs what a new password needs."""
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

    async def _open_session(self, user_id: UserId, finished: Finished, client: auth.ClientFacts) -> auth.LoginSession:
        user = await self._identities.active_user(await self._store.find_user(user_id))
        confirmed_at = _confirmed_at(finished.identity, time.time())
        login = StoredLogin(user_id=user.id, kind=SessionKind.BROWSER, confirmed_at=confirmed_at, client=client)
        session = await self._logins.begin(user, login)
        await self._provider_sessions.keep(session.session_token, finished.identity.id_token)
        return session

    def _tell(self, admitted: ProvisionedAccount) -> None:
        self._node.metrics.registrations.inc()
        self._node.publish(events.UserRegistered(datetime.now(UTC), admitted.user_id))
        _log.info("user registered", user_id=admitted.user_id, by="oidc")


def _registration(settings: AuthSettings) -> ClientRegistration | None:
    """None where no provider is set up."""
    if settings.oidc_issuer is None:
        return None
    if fault := discovery.find_fault(settings.oidc_issuer):
        raise errors.BadSettings(f"OIDC_ISSUER: {fault}", hint="copy it from the provider's own settings")
    if not settings.oidc_client_id:
        raise errors.BadSettings("OIDC_CLIENT_ID is not set, and OIDC_ISSUER is", hint="the provider shows it where the client was made")
    return ClientRegistration(
        issuer=settings.oidc_issuer,
        client_id=settings.oidc_client_id,
        client_secret=settings.oidc_client_secret,
        scopes=settings.oidc_scopes,
        groups_claim=settings.oidc_groups_claim,
        ca_file=settings.oidc_ca_file,
    )


def _confirmed_at(identity: Identity, now: float) -> float:
    """When the password was shown at the provider; long ago where it does not say, because the browser may have been known there."""
    return 0.0 if identity.authenticated_at is None else min(identity.authenticated_at, now)
