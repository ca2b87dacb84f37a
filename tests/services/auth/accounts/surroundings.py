"""Account handlers on real PostgreSQL and Valkey, with a mailer and sessions that record their calls."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, cast

import argon2
import asyncpg
import msgspec

from services.auth import mail_texts
from services.auth.accounts.account_store import AccountStore
from services.auth.accounts.password_changes import PasswordChanges
from services.auth.accounts.profile import ProfileRpc
from services.auth.accounts.request_limits import MailLimits
from services.auth.dependencies import Dependencies
from services.auth.mfa.factor_store import Factor
from services.auth.passwords import Passwords
from services.auth.sessions.failed_logins import FailedLogins
from services.auth.sessions.identities import NEEDS_LOGIN, SESSION_OVER
from services.auth.settings import AuthSettings
from services.auth.store import AccountTables
from services.auth.store import opened as database_of
from shared import errors
from shared.api import auth
from shared.api.audit import AuditedAct
from shared.api.gateway import Check
from shared.api.method import Method, Reply, Request
from shared.mail.letters import Letter
from shared.node import lifecycle
from shared.rpc import Dispatcher
from shared.rpc.authorization import Authorizer
from shared.stores.cache import Cache
from shared.stores.database import Database, Transaction
from shared.types import Credential, KeyId, NodeId, Peer, Role, UserId, UserRole
from tests.services.auth.surroundings import PASSWORD, call

WEB = Peer(Role.WEB, NodeId("UWEB" + "A" * 52))
CLIENT = Peer(Role.CLIENT, NodeId("U" * 56))


@dataclass
class FakePostman:
    """A ``Mailer`` that records its mails."""

    sent: list[Letter] = field(default_factory=list)

    async def send(self, to: str, subject: str, text: str) -> None:
        self.sent.append(Letter(to, subject, text))

    def check(self) -> Check:
        return Check("mail", ok=True)

    def told(self) -> list[tuple[str, str]]:
        """Return the recipients and subjects since the last call."""
        told = [(letter.to, letter.subject) for letter in self.sent]
        self.sent.clear()
        return told


@dataclass
class FakeSessions:
    """Records whose sessions were ended. ``away`` simulates that Valkey is down."""

    ended: list[tuple[UserId, str | None]] = field(default_factory=list)
    away: bool = False

    async def end_all(self, user_id: UserId, but: str | None = None) -> int:
        if self.away:
            raise errors.Unavailable("Valkey does not answer")
        self.ended.append((user_id, but))
        return 1


@dataclass
class FakeTrail:
    """A ``Trail``. It also keeps the acts of rolled-back transactions, so read it only after calls that succeed."""

    acts: list[AuditedAct] = field(default_factory=list)
    refused: list[AuditedAct] = field(default_factory=list)

    async def add(self, transaction: Transaction, act: AuditedAct) -> None:
        self.acts.append(act)

    def note(self, act: AuditedAct) -> None:
        self.refused.append(act)

    def actions(self) -> list[str]:
        return [act.action for act in self.acts]


@dataclass(frozen=True)
class FakeSession:
    id: str


class FakeIdentities:
    """Recognizes the credentials in ``known``."""

    def __init__(self) -> None:
        self.known: dict[str, auth.Principal] = {}
        self.refusals: list[str] = []

    async def of(self, credential: Credential | None) -> auth.Principal:
        if credential is None or credential not in self.known:
            raise errors.NotAuthenticated("no such credential")
        return self.known[credential]

    async def session_of(self, credential: Credential | None) -> FakeSession:
        if self.known[cast("str", credential)].key_id is not None:
            raise errors.NotAllowed(NEEDS_LOGIN)
        return FakeSession(f"session of {credential}")

    async def active_user(self, user: auth.User | None) -> auth.User:
        if user is None or not user.is_active:
            raise errors.NotAuthenticated("closed")
        return user

    def session_over(self) -> errors.NotAuthenticated:
        return errors.NotAuthenticated(SESSION_OVER)

    def count_refusal(self, reason: str) -> None:
        self.refusals.append(reason)


class FakeFactors:
    """Replaces ``Factors``."""

    def __init__(self) -> None:
        self.enabled: dict[UserId, int] = {}

    async def find(self, user_id: UserId) -> Factor:
        return Factor(b"sealed" if user_id in self.enabled else None, None, self.enabled.get(user_id, 0))


@dataclass(kw_only=True)
class ApiClient:
    """The account handlers, called as by a client."""

    settings: AuthSettings
    database: Database
    cache: Cache
    store: AccountTables
    passwords: Passwords
    mailer: FakePostman = field(default_factory=FakePostman)
    sessions: FakeSessions = field(default_factory=FakeSessions)
    trail: FakeTrail = field(default_factory=FakeTrail)
    identities: FakeIdentities = field(default_factory=FakeIdentities)
    factors: FakeFactors = field(default_factory=FakeFactors)
    dispatcher: Dispatcher = field(init=False)

    def __post_init__(self) -> None:
        self.dispatcher = Dispatcher(cast("asyncio.TaskGroup", None), lambda *_: None, lambda *_: None)
        self.dispatcher.gate = Authorizer(self.identities.of, lambda *_: None)
        self.rows = AccountStore(self.database)
        self.guesses = FailedLogins(self.cache)
        self.parts = Dependencies(
            settings=self.settings,
            node=cast("Any", None),
            store=self.store,
            passwords=self.passwords,
            sessions=cast("Any", self.sessions),
            tokens=cast("Any", None),
            guesses=self.guesses,
            identities=cast("Any", self.identities),
            trail=self.trail,
        )
        self.changes = PasswordChanges(self.parts, self.rows, MailLimits(self.cache), self.mailer)
        self.dispatcher.add(self.changes)
        self.dispatcher.add(ProfileRpc(self.parts, self.rows, cast("Any", self.factors), self.mailer))

    async def ask(self, method: Method[Request, Reply], request: Request, credential: str | None = None, *, peer: Peer = CLIENT) -> Reply:
        """Call a method as over a link, through the gate."""
        handler, asked = self.dispatcher.find(method.name, peer), call(credential, peer=peer)
        assert self.dispatcher.gate is not None
        asked.found = await self.dispatcher.gate.admit(method, request, asked)
        return cast("Reply", await handler.function(request, asked))

    async def person(self, name: str = "anna", *, role: UserRole = UserRole.USER, password: str | None = PASSWORD) -> "Person":
        """Create an account, with a fresh login."""
        password_hash = None if password is None else await self.passwords.hash(password)
        async with self.store.adding_user() as transaction:
            user = await self.store.add_user(transaction, name, f"{name}@example.com", cast("str", password_hash))
            if role is not UserRole.USER:
                user = await self.store.set_role(transaction, user.id, role)
        return Person(self, user)

    async def has_password(self, user_id: UserId, password: str) -> bool:
        return await self.passwords.verify(password, await self.rows.find_password_hash(user_id))


@dataclass
class Person:
    api_client: ApiClient
    user: auth.User

    @property
    def id(self) -> UserId:
        return self.user.id

    def login(self, *, seconds_ago: float = 0, **changed: Any) -> str:
        return self._credential(confirmed_at=time.time() - seconds_ago, **changed)

    def key(self, *scopes: str) -> str:
        return self._credential(key_id=KeyId(UserId(self.id)), key_name="a key", scopes=scopes or ("*",))

    def _credential(self, **changed: Any) -> str:
        credential = secrets.token_hex(8)
        principal = auth.Principal(user_id=self.id, username=self.user.username, role=self.user.role, tier=self.user.tier)
        self.api_client.identities.known[credential] = msgspec.structs.replace(principal, **changed)
        return credential

    async def again(self) -> auth.User:
        """Return the user as stored now."""
        user = await self.api_client.store.find_user(self.id)
        assert user is not None
        return user


def cheap_hasher() -> argon2.PasswordHasher:
    return argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@contextlib.asynccontextmanager
async def opened_accounts(settings: AuthSettings, **instead: Any) -> AsyncIterator[ApiClient]:
    """Open the handlers and run the mail task. ``instead`` replaces the fakes."""
    with Passwords.open(min_length=8, hasher=cheap_hasher()) as passwords:
        async with database_of(settings.database_url) as database, Cache.open(settings.redis_url) as cache:
            api_client = ApiClient(
                settings=settings, database=database, cache=cache, store=AccountTables(database), passwords=passwords, **instead
            )
            async with lifecycle.background() as tasks:
                tasks.create_task(api_client.changes.run())
                yield api_client


def token_of(letter: Letter) -> str:
    """Return the code from a password reset mail, as a person would copy it."""
    subject, text = mail_texts.reset("", "", "TOKEN", 30)
    assert letter.subject == subject
    lines = letter.text.splitlines()
    tokens = [line for line in lines if len(line) == 43 and line.isalnum()]
    assert len(tokens) == 1
    assert text
    return tokens[0]


async def by_hand(url: str, sql: str, *arguments: object) -> list[asyncpg.Record]:
    """Run SQL as an administrator of the database."""
    connection = await asyncpg.connect(url, server_settings={"search_path": "auth", "aimesh.tenant": "*"})
    try:
        return list(await connection.fetch(sql, *arguments))
    finally:
        await connection.close()
