"""Connect the parts of auth at startup: what is opened, the background tasks, and the handlers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from services.auth import api_keys, features, name_rules, sealing
from services.auth.accounts.account_store import AccountStore
from services.auth.accounts.address_verification import AddressVerification
from services.auth.accounts.api_key_rpc import ApiKeyRpc
from services.auth.accounts.budget_rpc import BudgetRpc
from services.auth.accounts.colleague_rpc import ColleagueRpc
from services.auth.accounts.colleague_store import ColleagueStore
from services.auth.accounts.device_login_rpc import DeviceLoginRpc
from services.auth.accounts.notice_store import NoticeStore
from services.auth.accounts.notices import Notices
from services.auth.accounts.password_changes import PasswordChanges
from services.auth.accounts.plan_rpc import PlanRpc
from services.auth.accounts.profile import ProfileRpc
from services.auth.accounts.request_limits import MailLimits, RegistrationLimits
from services.auth.accounts.setup_rpc import SetupRpc
from services.auth.accounts.user_rpc import AccessReviews, FactorRemoval, UserRpc
from services.auth.audit.anchoring import Anchoring
from services.auth.audit.audit_log import AuditLog, AuditUpkeep
from services.auth.audit.audit_rpc import AuditRpc
from services.auth.audit.audit_store import AuditStore
from services.auth.audit.verification import Verification
from services.auth.change_stream import ChangeStream
from services.auth.deferred_rpc import DeferredRpc
from services.auth.dependencies import Dependencies
from services.auth.logins import LoginRpc
from services.auth.mfa.factors import Factors
from services.auth.mfa.mfa_enrollment import MfaEnrollment
from services.auth.nodes.gateway_releases import GatewayReleases
from services.auth.nodes.mesh_ca import MeshCa
from services.auth.nodes.nats_logins import LoginKeys, NatsLogins
from services.auth.nodes.node_rpc import EnrollmentRpc, NodeAdminRpc
from services.auth.nodes.node_store import NodeStore
from services.auth.oidc.oidc_rpc import OidcDependencies, OidcRpc
from services.auth.organizations.organization_rpc import Invitations, OrganizationRpc
from services.auth.organizations.organization_store import OrganizationStore
from services.auth.passwords import Passwords
from services.auth.privacy import export, retention
from services.auth.privacy.erasure import Erasures
from services.auth.privacy.export import Exports
from services.auth.privacy.privacy_store import PrivacyStore
from services.auth.privacy.retention import Retention
from services.auth.recovery import kinds
from services.auth.recovery.auth_replay import auth_replay
from services.auth.recovery.restored_access import AccessEnding, LostRows, RestoredAccess
from services.auth.sealing import DataSealer
from services.auth.session_opening import SessionOpening
from services.auth.sessions.active_keys import ActiveKeys, SigningKeyRpc
from services.auth.sessions.failed_logins import FailedLogins
from services.auth.sessions.identities import CountRefusal, Identities, KeyLastUsed
from services.auth.sessions.session_store import SessionStore
from services.auth.sessions.signing_key_store import SigningKeyStore
from services.auth.sessions.tokens import AccessTokens
from services.auth.settings import AuthSettings
from services.auth.store import AccountTables
from services.auth.store import opened as database_of
from shared import errors
from shared.api.gateway import Check
from shared.audit_anchors import AnchorKeys
from shared.background import tasks
from shared.background.deferred_rows import DeferredRows
from shared.background.items import BackgroundItems
from shared.mail import mailer as mail
from shared.mail.mailer import Mailer, MailSink
from shared.node import Node
from shared.recovery import recovery_log
from shared.recovery.log_place import LogPlace
from shared.recovery.recovery_log import RecoveryLog
from shared.recovery.recovery_store import RecoveryStore
from shared.recovery.rollback import RecoveryStart
from shared.stores.cache import Cache
from shared.stores.database import Database
from shared.stores.replica_reads import DatabaseOptions
from shared.telemetry import logs
from shared.telemetry.database_metrics import DatabaseMetrics
from shared.types import Credential

_log = logs.get(part="auth")


#: A background task, run until it is canceled.
Work = Callable[[], Coroutine[None, None, None]]


@dataclass(frozen=True, slots=True)
class OpenedStores:
    database: Database
    cache: Cache
    passwords: Passwords
    mailer: Mailer
    #: For test mails, which skip the queue.
    mail_sink: MailSink
    signers: ActiveKeys
    recovery: "RecoveryParts"

    async def checks(self) -> tuple[Check, ...]:
        database, cache = await asyncio.gather(self.database.check(), self.cache.check())
        return database, cache, self.mailer.check()


@dataclass(frozen=True, slots=True)
class RecoveryParts:
    rows: RecoveryStore
    log: RecoveryLog
    start: RecoveryStart
    lost_rows: LostRows
    anchoring: Anchoring


class Wiring:
    def __init__(self, settings: AuthSettings, node: Node, opened: OpenedStores, count_refusal: CountRefusal) -> None:
        self._settings = settings
        self._node = node
        self._opened = opened
        self.members = NodeStore(opened.database)
        self._audit_rows = AuditStore(opened.database)
        store, cache = AccountTables(opened.database, verifies_addresses=settings.verifies_addresses), opened.cache
        tokens = AccessTokens(opened.signers, issuer=f"aimesh/{settings.mesh}")
        sessions = SessionStore(
            cache,
            idle_seconds=settings.session_timeout_seconds,
            longest_seconds=settings.session_longest_seconds,
            program_idle_seconds=settings.session_program_days * 24 * 3600,
        )
        self.trail = AuditLog(self._audit_rows, on_act=recovery_log.noting(kinds.RESTRICTING))
        self.last_used = KeyLastUsed(store)
        self.changes = ChangeStream(store, node.drain_started)
        self.identities = Identities(
            store, sessions, tokens, self.last_used,
            pepper=settings.api_key_pepper, count_refusal=count_refusal, admin_mfa=settings.admin_mfa,
        )  # fmt: skip
        self.releases = GatewayReleases(node, self.members, self.changes.forget_everyone)
        self.changes.on_change = lambda change: self.identities.principal_cache.forget(change.user_id)
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
        anchoring = opened.recovery.anchoring
        self._verification = Verification(self._audit_rows, anchoring, node.metrics, lambda: opened.recovery.start.restores)
        self.upkeep = AuditUpkeep(self.trail, self._audit_rows, anchoring, self._verification, days=settings.audit_days)

    def connect(self, ca: MeshCa | None, oidc: OidcDependencies, nats: NatsLogins | None) -> tuple[tuple[object, ...], tuple[Work, ...]]:
        """Return the handlers and the background tasks."""
        parts, database, cache, mailer = self._parts, self._opened.database, self._opened.cache, self._opened.mailer
        accounts, organizations, own_data = AccountStore(database), OrganizationStore(database), PrivacyStore(database)
        factors = Factors.of(parts)
        deferred_rows = DeferredRows(database, "auth")
        items = BackgroundItems(deferred_rows, self._node.metrics)
        deferred = DeferredRpc(parts, deferred_rows, items)
        erasures = Erasures(parts, own_data, self._audit_rows, mailer, items)
        notice_rows = NoticeStore(database)
        notices = Notices(notice_rows, mailer, self._opened.mail_sink, self._settings.page, items)
        opening = SessionOpening(parts, at_login=(erasures.call_off_at_login, notices.note_login))
        logins = LoginRpc(parts, factors, opening)
        mail_limits = MailLimits(cache)
        passwords = PasswordChanges(parts, accounts, mail_limits, mailer)
        verification = AddressVerification(parts, cache, mail_limits, mailer)
        colleagues = ColleagueRpc(parts, ColleagueStore(database), mailer, cache)
        more = features.build(features.Site(settings=self._settings, node=self._node, database=database))
        settings = self._settings
        rules = retention.own(own_data, invitation_days=settings.invitation_days, ended_key_days=settings.ended_key_days)
        handlers = (
            logins,
            MfaEnrollment(parts, factors, opening),
            FactorRemoval(parts, mailer),
            OidcRpc(parts, oidc, logins),
            DeviceLoginRpc(parts, logins, cache),
            erasures,
            Exports(parts, own_data, (export.sessions(parts.sessions), export.audit(self._audit_rows))),
            UserRpc(parts, RegistrationLimits(cache, settings.registrations_per_address), colleagues, verification),
            verification,
            colleagues,
            SetupRpc(parts, self._opened.mail_sink, cache),
            passwords,
            ProfileRpc(parts, accounts, factors, mailer),
            ApiKeyRpc(parts),
            OrganizationRpc(parts, organizations),
            PlanRpc(parts, notice_rows),
            Invitations(parts, organizations, mailer),
            EnrollmentRpc(parts, self.members, ca, nats),
            NodeAdminRpc(parts, self.members, ca, nats),
            AccessReviews(parts, self.members),
            BudgetRpc(parts),
            AuditRpc(parts.store, self.trail, self._audit_rows, self._verification),
            SigningKeyRpc(self.trail, self._opened.signers),
            deferred,
            *(each for built in more for each in built.served),
        )
        background: dict[str, Work] = {
            "changes": self.changes.run,
            "gateway releases": self.releases.run,
            "last used keys": self.last_used.run,
            "audit log": self.upkeep.run,
            "signing keys": self._opened.signers.run,
            "erasures": erasures.run,
            "retention": Retention(rules, items).run,
            "passwords": passwords.run,
            "notices": notices.run,
            "recovery log": self._opened.recovery.log.run,
            "recovery state": self._opened.recovery.start.run,
            "deferred items": deferred.run,
            **{name: task for built in more for name, task in built.tasks.items()},
        }
        if ca is not None:
            background["certificates"] = ca.run
        kept = (partial(tasks.keep, name, run) for name, run in background.items())
        # Without logins, nobody reaches anybody: they end the service.
        return handlers, (*kept, *(() if nats is None else (nats.run,)))

    async def finish_recovery(self) -> None:
        """Call before anything answers. Raises BadSettings and Unavailable."""
        recovery, opened = self._opened.recovery, self._opened
        accounts, members = AccountStore(opened.database), NodeStore(opened.database)
        ending = AccessEnding(accounts, members, opened.signers, opened.cache, self._node.trust)
        await recovery.start.finish(RestoredAccess(recovery.rows, ending, recovery.lost_rows, self.trail).handle)

    def nats_logins(self) -> NatsLogins | None:
        """Return None if auth does not decide about NATS logins."""
        keys = LoginKeys.load(self._settings)
        return (
            None if keys is None else NatsLogins(keys, self._settings, self._node, self.members, self._opened.cache, releases=self.releases)
        )


@contextlib.asynccontextmanager
async def opened(settings: AuthSettings, node: Node) -> AsyncIterator[OpenedStores]:
    """Replays the recovery log. Raises BadSettings, and Unavailable if PostgreSQL or Valkey doesn't answer."""
    async with contextlib.AsyncExitStack() as stack:
        passwords = stack.enter_context(Passwords.open(min_length=settings.password_min_length))
        post = mail.parse(settings.smtp_url, settings.mail_from)
        sealer = DataSealer.of(settings.data_key, settings.data_key_old)
        database = await stack.enter_async_context(
            database_of(
                settings.database_url,
                pool_size=settings.database_pool,
                migrate=settings.migrate == "on",
                options=DatabaseOptions(reports=DatabaseMetrics(node.metrics)),
            )
        )
        cache = await stack.enter_async_context(Cache.open(settings.redis_url))
        mailer = await stack.enter_async_context(mail.opened(post))
        recovery = _recovery(settings, node, database)
        replay = auth_replay(recovery.rows, PrivacyStore(database), AuditStore(database), passwords.hash)
        await recovery.start.begin(replay, recovery.lost_rows.are_some_ahead)
        await ensure_first_admin(settings, AccountTables(database), passwords)
        signers = ActiveKeys(SigningKeyStore(database), sealer, timedelta(days=settings.signing_key_days))
        await signers.begin()
        yield OpenedStores(database, cache, passwords, mailer, post, signers, recovery)


async def ensure_first_admin(settings: AuthSettings, store: AccountTables, passwords: Passwords) -> None:
    """Raises BadSettings for an unacceptable password or key."""
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
        _log.info("first administrator created", username=name_rules.ADMIN_USERNAME)


def _recovery(settings: AuthSettings, node: Node, database: Database) -> RecoveryParts:
    rows, audit = RecoveryStore(database, "auth"), AuditStore(database)
    place = LogPlace("auth", node.id, settings.mesh, _signing_keys(settings, "recovery-log"), settings.recovery_log_dir)
    log = RecoveryLog(rows, place, node.metrics.recovery_log_behind)
    anchoring = Anchoring(audit, _signing_keys(settings, "audit-anchor"), settings.mesh, settings.audit_anchor_file)
    start = RecoveryStart(rows, log, place, node.metrics.database_restored)
    return RecoveryParts(rows, log, start, LostRows(audit, anchoring), anchoring)


def _signing_keys(settings: AuthSettings, purpose: str) -> AnchorKeys:
    keys = sealing.read_keys(settings.data_key, settings.data_key_old)
    return AnchorKeys.of(*(sealing.derive(key, purpose) for key in keys))
