"""API keys and organizations on a real PostgreSQL, behind the real gate. Tests create the logins themselves."""

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

from services.auth import api_keys
from services.auth.accounts.api_key_rpc import ApiKeyRpc
from services.auth.accounts.user_rpc import AccessReviews
from services.auth.dependencies import Dependencies
from services.auth.nodes.node_store import NodeStore
from services.auth.organizations.organization_rpc import Invitations, OrganizationRpc
from services.auth.organizations.organization_store import OrganizationStore
from services.auth.roles import KeyTerms
from services.auth.sessions.failed_logins import FailedLogins, Guess
from services.auth.sessions.identities import Identities, KeyLastUsed
from services.auth.store import AccountTables, NewKey, opened
from shared import errors
from shared.api import auth, organizations
from shared.api.audit import AuditedAct
from shared.api.auth import ApiKeyLimits, KeyBounds, KeyKind, Principal, User
from shared.api.gateway import Check
from shared.api.method import Method, Reply, Request
from shared.api.organizations import Organization, TeamRole
from shared.rpc.authorization import Authorizer
from shared.stores import database
from shared.stores.database import Transaction
from shared.types import Credential, Peer, Role, TenantId, UserRole
from tests.services.auth.surroundings import CLIENT, Surroundings, call

PEPPER = "p" * 32
UNBOUND = KeyBounds()


class Recorded:
    """The audit log as a list."""

    def __init__(self) -> None:
        self.acts: list[AuditedAct] = []
        self.refused: list[AuditedAct] = []

    async def add(self, transaction: Transaction, act: AuditedAct) -> None:
        self.acts.append(act)

    def note(self, act: AuditedAct) -> None:
        self.refused.append(act)

    @property
    def actions(self) -> list[str]:
        return [act.action for act in self.acts]


class Mailbox:
    """Keeps mails instead of sending them."""

    def __init__(self) -> None:
        self.mails: list[tuple[str, str, str]] = []

    async def send(self, to: str, subject: str, text: str) -> None:
        self.mails.append((to, subject, text))

    def check(self) -> Check:
        return Check("mail", ok=True)


class FreeGuesses:
    """``FailedLogins`` without limits."""

    async def charge(self, account: str, address: str = "") -> Guess:
        return Guess((account, address, ""), (b"", b"", 0, 0))

    async def refund(self, guess: Guess) -> None:
        pass


@dataclass(frozen=True)
class Person:
    user: User
    #: Serves as an access token, which only the gate of ``SeededDb`` knows.
    login: Credential


@dataclass
class SeededDb:
    db: database.Database
    surroundings: Surroundings = field(default_factory=Surroundings)
    trail: Recorded = field(default_factory=Recorded)
    mailbox: Mailbox = field(default_factory=Mailbox)
    guesses: FreeGuesses | FailedLogins = field(default_factory=FreeGuesses)

    def __post_init__(self) -> None:
        self.store = AccountTables(self.db)
        self.last_used = KeyLastUsed(self.store)
        nothing = cast("Any", None)
        self.identities = Identities(
            self.store, nothing, nothing, self.last_used, pepper=PEPPER, count_refusal=self._count, admin_mfa=False
        )
        self._logins: dict[Credential, Principal] = {}
        self.dispatcher = self.surroundings.dispatcher
        self.dispatcher.gate = Authorizer(self._identify, lambda method, visitor, principal, error: None)
        teams, members = OrganizationStore(self.db), NodeStore(self.db)
        for part in (
            ApiKeyRpc(self.parts),
            OrganizationRpc(self.parts, teams),
            Invitations(self.parts, teams, self.mailbox),
            AccessReviews(self.parts, members),
        ):
            self.dispatcher.add(part)

    @property
    def parts(self) -> Dependencies:
        return cast(
            "Dependencies",
            SimpleNamespace(
                settings=SimpleNamespace(
                    page=lambda path: f"https://ai.example{path}", mesh=self.surroundings.mesh, organisations_per_user=2
                ),
                node=self.surroundings.as_node(),
                store=self.store,
                identities=self.identities,
                trail=self.trail,
                guesses=self.guesses,
                # No test here logs in.
                passwords=None,
                sessions=None,
            ),
        )

    def _count(self, reason: str) -> None:
        self.surroundings.metrics.auth_failures.labels(reason=reason).inc()

    async def _identify(self, credential: Credential | None) -> Principal:
        found = self._logins.get(credential) if credential is not None else None
        return found or await self.identities.of(credential)

    # --- people ------------------------------------------------------------------------------------------------------

    async def person(self, name: str = "anna", role: UserRole = UserRole.USER) -> Person:
        async with self.store.adding_user() as transaction:
            user = await self.store.add_user(transaction, name, f"{name}@example.com", "hash")
            user = await self.store.set_role(transaction, user.id, role)
        return Person(user, self.login(user))

    async def admin(self, name: str = "boss") -> Person:
        return await self.person(name, UserRole.ADMIN)

    def login(self, user: User, team: TenantId | None = None) -> Credential:
        """Return a fresh login, switched to an organization if ``team`` is given."""
        token = Credential(f"login-{uuid4().hex}")
        self._logins[token] = Principal(user.id, user.username, user.role, user.tier, team_id=team, confirmed_at=time.time())
        return token

    # --- keys --------------------------------------------------------------------------------------------------------

    async def key(self, by: str, name: str = "default", **changed: Any) -> auth.CreatedApiKey:
        """Create a key, with all rights unless the test says otherwise."""
        has_scopes = "bounds" in changed and changed["bounds"].scopes
        return await self.ask(auth.generate_api_key, auth.GenerateApiKey(name, **{"all_rights": not has_scopes, **changed}), by)

    async def key_by_hand(self, user: User, kind: KeyKind = KeyKind.LIVE, bounds: KeyBounds = UNBOUND, **limits: Any) -> Credential:
        """Insert a key without any checks."""
        secret = api_keys.generate(kind)
        key = NewKey(user.id, None, "by hand", api_keys.mark(secret, PEPPER), KeyTerms(kind, ApiKeyLimits(**limits), bounds, None))
        async with self.store.transaction() as transaction:
            await self.store.add_key(transaction, key)
        return secret

    async def principal(self, key: Credential) -> Principal:
        return await self.identities.of_key(key)

    async def keys(self, by: str) -> tuple[auth.ApiKey, ...]:
        return (await self.ask(auth.list_api_keys, auth.ListApiKeys(), by)).keys

    # --- organizations -----------------------------------------------------------------------------------------------

    async def found(self, by: Person, name: str = "Acme") -> Organization:
        return await self.ask(organizations.create_organisation, organizations.CreateOrganization(name), by.login)

    async def join(self, owner: Person, organisation: Organization, member: Person, role: TeamRole = TeamRole.MEMBER) -> Credential:
        """Add the member, and return a login of theirs that acts for the organization."""
        invite = organizations.InviteMember(organisation.id, member.user.email, role)
        token = (await self.ask(organizations.invite_member, invite, owner.login)).token
        await self.ask(organizations.accept_invitation, organizations.AcceptInvitation(token), member.login)
        return self.login(member.user, organisation.id)

    async def page(self, organisation: Organization, by: str) -> organizations.OrganizationDetails:
        return await self.ask(organizations.get_organisation, organizations.GetOrganization(organisation.id), by)

    async def ask(self, method: Method[Request, Reply], request: Request, credential: str | None, *, through: Role = Role.CLIENT) -> Reply:
        """Call a method. If it comes ``through`` the gateway, the gateway has seen the caller's address."""
        peer = Peer(through, CLIENT.node)
        handler, asked = self.dispatcher.find(method.name, peer), call(credential, peer=peer)
        assert self.dispatcher.gate is not None
        asked.found = await self.dispatcher.gate.admit(method, request, asked)
        return cast("Reply", await handler.function(request, asked))


@contextlib.asynccontextmanager
async def opened_organizations(url: str, **instead: Any) -> AsyncIterator[SeededDb]:
    async with opened(url) as db:
        yield SeededDb(db, **instead)


async def refusal_of(asking: Any) -> errors.AimeshError:
    """Return the error that a call ends with."""
    try:
        await asking
    except errors.AimeshError as error:
        return error
    raise AssertionError("it was allowed")
