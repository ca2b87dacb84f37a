"""Joins the parts of auth at its start: what is opened, what runs beside the calls, and what answers them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta

from services.auth import api_keys, name_rules, sealing
from services.auth.accounts import password_changes as own_passwords
from services.auth.accounts.access_review import AccessReviews
from services.auth.accounts.account_store import AccountStore
from services.auth.accounts.api_key_rpc import ApiKeyRpc
from services.auth.accounts.factor_removal import FactorRemoval
from services.auth.accounts.mail_limits import MailLimits
from services.auth.accounts.password_changes import PasswordChanges
from services.auth.accounts.profile import ProfileRpc
from services.auth.accounts.registration_limits import RegistrationLimits
from services.auth.accounts.session_revocation import SessionRevocation
from services.auth.accounts.user_rpc import UserRpc
from services.auth.audit.anchoring import Anchoring, AnchorKeys
from services.auth.audit.audit_log import AuditLog
from services.auth.audit.audit_rpc import AuditRpc
from services.auth.audit.audit_store import AuditStore
from services.auth.audit.audit_upkeep import AuditUpkeep
from services.auth.audit.verification import Verification
from services.auth.change_stream import ChangeStream
from services.auth.dependencies import Dependencies
from services.auth.logins import LoginRpc
from services.auth.mfa.factors import Factors
from services.auth.mfa.mfa_enrollment import MfaEnrollment
from services.auth.nodes.enrollment_rpc import EnrollmentRpc
from services.auth.nodes.mesh_ca import MeshCa
from services.auth.nodes.node_admin_rpc import NodeAdminRpc
from services.auth.nodes.node_store import NodeStore
from services.auth.oidc.oidc_rpc import OidcDependencies, OidcRpc
from services.auth.organizations.invitations import Invitations
from services.auth.organizations.organization_rpc import OrganizationRpc
from services.auth.organizations.organization_store import OrganizationStore
from services.auth.passwords import Passwords
from services.auth.privacy import erasure, export_sources, retention
from services.auth.privacy.erasure import Erasures
from services.auth.privacy.export import Exports
from services.auth.privacy.privacy_store import PrivacyStore
from services.auth.privacy.retention import Days, Retention
from services.auth.sealing import DataSealer
from services.auth.session_opening import SessionOpening
from services.auth.sessions.failed_logins import FailedLogins
from services.auth.sessions.identities import CountRefusal, Identities
from services.auth.sessions.key_last_used import KeyLastUsed
from services.auth.sessions.session_store import SessionStore
from services.auth.sessions.tokens import AccessTokens
from services.auth.settings import AuthSettings
from services.auth.shown_settings import AuthShown
from services.auth.signing.active_keys import ActiveKeys
from services.auth.signing.signing_key_rpc import SigningKeyRpc
from services.auth.signing.signing_key_store import SigningKeyStore
from services.auth.store import AccountTables
from services.auth.store import opened as database_of
from shared import errors
from shared.api.gateway import Check
from shared.mail import mailer as mail
from shared.mail.mailer import Mailer
from shared.node import Node
from shared.stores.cache import Cache
from shared.stores.database import Database
from shared.telemetry import logs
from shared.types import Credential

_log = logs.get(part="auth")


#: A task that runs beside the calls, until it is cancelled.
Work = Callable[[], Coroutine[None, None, None]]


@dataclass(frozen=True, slots=True)
class OpenedStores:
    """What auth opens at its start."""

    database: Database
    cache: Cache
    passwords: Passwords
    postman: Mailer
    signers: ActiveKeys

    async def checks(self) -> tuple[Check, ...]:
        database, cache = await asyncio.gather(self.database.check(), self.cache.check())
        return database, cache, self.postman.check()


@dataclass(frozen=True, slots=True)
class Joined:
    """What answers the calls, and what runs beside them."""

    handlers: tuple[object, ...]
    work: tuple[Work, ...]


class Wiring:
    """The parts of one auth service, made of what it opened."""

    def __init__(self, settings: AuthSettings, node: Node, opened: OpenedStores, count_refusal: CountRefusal) -> None:
        self._settings = settings
        self._node = node
        self._opened = opened
        self._members = NodeStore(opened.database)
        self._audit_rows = AuditStore(opened.database)
        store, cache = AccountTables(opened.database), opened.cache
        tokens = AccessTokens(opened.signers, issuer=f"aimesh/{settings.mesh}")
        sessions = _sessions(settings, cache)
        self.trail = AuditLog(self._audit_rows)
        self.last_used = KeyLastUsed(store)
        self.changes = ChangeStream(store, node.drain_started)
        self.identities = Identities(
            store, sessions, tokens, self.last_used,
            pepper=settings.api_key_pepper, count_refusal=count_refusal, admin_mfa=settings.admin_mfa,
        )  # fmt: skip
        self.changes.on_change = lambda change: self.identities.last_known.forget(change.user_id)
        self._parts = Dependencies(
            settings=settings,
            node=node,
            store=store,
            passwords=opened.passwords,
            sessions=sessions,
            tokens=tokens,
            guesses=FailedLogins(cache),
            identities=self.identities,
            trail=self.trail,
        )
        anchoring = Anchoring(self._audit_rows, _anchor_keys(settings), settings.mesh, settings.audit_anchor_file)
        self._verification = Verification(self._audit_rows, anchoring, node.metrics)
        self.upkeep = AuditUpkeep(self.trail, self._audit_rows, anchoring, self._verification, days=settings.audit_days)

    def join(self, ca: MeshCa | None, equipment: OidcDependencies) -> Joined:
        factors = Factors.of(self._parts)
        groups = (self._of_logins(factors, equipment), self._of_accounts(factors), self._of_organisations(), self._of_house(ca))
        beside: tuple[Work, ...] = (self.changes.run, self.last_used.run, self.upkeep.run, self._opened.signers.run)
        return Joined(
            tuple(handler for group in groups for handler in group.handlers),
            (*beside, *(work for group in groups for work in group.work), *((ca.run,) if ca is not None else ())),
        )

    def _of_logins(self, factors: Factors, equipment: OidcDependencies) -> Joined:
        rows = PrivacyStore(self._opened.database)
        needs = erasure.ErasureDependencies(rows=rows, sessions=self._parts.sessions, postman=self._opened.postman, audit=self._audit_rows)
        erasures = Erasures(self._parts, needs)
        opening = SessionOpening(self._parts, at_login=(erasures.call_off_at_login,))
        logins = LoginRpc(self._parts, factors, opening)
        exports = Exports(self._parts, rows, (export_sources.sessions(self._parts.sessions), export_sources.audit(self._audit_rows)))
        lost = FactorRemoval(self._parts, SessionRevocation(self._parts.store, self._parts.sessions), self._opened.postman)
        days = Days(invitations=self._settings.invitation_days, ended_keys=self._settings.ended_key_days)
        kept = Retention(retention.own(rows, days))
        return Joined(
            (logins, MfaEnrollment(self._parts, factors, opening), lost, OidcRpc(self._parts, equipment, logins), erasures, exports),
            (erasures.run, kept.run),
        )

    def _of_accounts(self, factors: Factors) -> Joined:
        rows, postman = AccountStore(self._opened.database), self._opened.postman
        ends = SessionRevocation(self._parts.store, self._parts.sessions)
        needs = own_passwords.PasswordChangeDependencies(rows=rows, ends=ends, limits=MailLimits(self._opened.cache), postman=postman)
        changes = PasswordChanges(self._parts, needs)
        newcomers = RegistrationLimits(self._opened.cache, self._settings.registrations_per_address)
        return Joined((UserRpc(self._parts, newcomers), changes, ProfileRpc(self._parts, rows, factors, postman)), (changes.run,))

    def _of_organisations(self) -> Joined:
        teams = OrganizationStore(self._opened.database)
        invitations = Invitations(self._parts, teams, self._opened.postman)
        return Joined((ApiKeyRpc(self._parts), OrganizationRpc(self._parts, teams), invitations), ())

    def _of_house(self, ca: MeshCa | None) -> Joined:
        archive = AuditRpc(self._parts.store, self.trail, self._audit_rows, self._verification)
        nodes = (EnrollmentRpc(self._parts, self._members, ca), NodeAdminRpc(self._parts, self._members, ca))
        published = SigningKeyRpc(self.trail, self._opened.signers)
        return Joined((*nodes, archive, published, AccessReviews(self._parts, self._members), AuthShown(self._settings)), ())

    def mesh_ca(self) -> MeshCa | None:
        """None where auth is no CA."""
        return MeshCa.load(self._settings, self._node, self._members)


@contextlib.asynccontextmanager
async def opened(settings: AuthSettings) -> AsyncIterator[OpenedStores]:
    """Raises BadSettings, and Unavailable where PostgreSQL or Valkey does not come."""
    async with contextlib.AsyncExitStack() as stack:
        passwords = stack.enter_context(Passwords.open(min_length=settings.password_min_length))
        post = mail.parse(settings.smtp_url, settings.mail_from)
        sealer = DataSealer.of(settings.data_key, settings.data_key_old)
        database = await stack.enter_async_context(database_of(settings.database_url))
        cache = await stack.enter_async_context(Cache.open(settings.redis_url))
        postman = await stack.enter_async_context(mail.opened(post))
        await ensure_first_admin(settings, AccountTables(database), passwords)
        signers = ActiveKeys(SigningKeyStore(database), sealer, timedelta(days=settings.signing_key_days))
        await signers.begin()
        yield OpenedStores(database, cache, passwords, postman, signers)


async def ensure_first_admin(settings: AuthSettings, store: AccountTables, passwords: Passwords) -> None:
    """Raises BadSettings for a password or a key that cannot be."""
    password, key = settings.admin_password, settings.admin_api_key
    if password is None or await store.has_admin():
        return
    try:
        passwords.check(password, username=name_rules.ADMIN_USERNAME, email=name_rules.ADMIN_EMAIL)
    except errors.BadRequest as error:
        raise errors.BadSettings(f"ADMIN_PASSWORD: {error.message}", hint=error.hint) from error
    try:
        if key is not None:
            api_keys.check_first(key)
    except errors.BadRequest as error:
        raise errors.BadSettings(f"ADMIN_API_KEY: {error.message}", hint=error.hint) from error
    mark = None if key is None else api_keys.mark(Credential(key), settings.api_key_pepper)
    if await store.ensure_first_admin(await passwords.hash(password), mark):
        _log.info("first administrator made", username=name_rules.ADMIN_USERNAME)


def _anchor_keys(settings: AuthSettings) -> AnchorKeys:
    former = () if settings.data_key_old is None else (sealing.read_key(settings.data_key_old, "DATA_KEY_OLD"),)
    return AnchorKeys.of(*(sealing.derive(key, "audit-anchor") for key in (sealing.read_key(settings.data_key), *former)))


def _sessions(settings: AuthSettings, cache: Cache) -> SessionStore:
    return SessionStore(
        cache,
        idle_seconds=settings.session_timeout_seconds,
        longest_seconds=settings.session_longest_seconds,
        program_idle_seconds=settings.session_program_days * 24 * 3600,
    )
