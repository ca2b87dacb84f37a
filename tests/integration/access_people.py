"""The callers of the access matrix: each has an account or a key made by real calls, and lists what it should be allowed.

The permissions are written down here a second time, from the issue rather than from ``shared.access_table``, which is compared
with them.
"""

import hashlib
import hmac
import time
from base64 import b32decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import redis.asyncio as redis

from shared import errors
from shared.access_table import FRESH_SECONDS
from shared.api import accounts, auth, organizations
from shared.api.auth import KeyBounds, KeyKind
from shared.identity import node_keys
from shared.identity.trust import Trust
from shared.node.client_node import SOFTWARE, ClientNode, _calling
from shared.protocol.directory import Directory
from shared.transports.link import LocalNode
from shared.transports.nats_link import NatsTransport
from shared.types import Credential, Role, TenantId, Tier, UserId, UserRole
from stack import stack_plan
from stack.servers import nats_server
from tests.integration import asking
from tests.integration.access_requests import Things
from tests.people import ApiClient, Person
from tests.stacks import MESH, RunningStack, until

EVERYTHING = "*"
_USER = frozenset({"inference:execute", "usage:read", "key:write", "account:write"})
#: What a login of each role may do.
GRANTED = {
    UserRole.USER: _USER,
    UserRole.NODE_OWNER: _USER | {"node:own"},
    UserRole.DEVELOPER: _USER | {"model:read", "model:write"},
    UserRole.ADMIN: frozenset({EVERYTHING}),
}
EVERYDAY = GRANTED[UserRole.NODE_OWNER] | GRANTED[UserRole.DEVELOPER]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """A caller, possibly without a credential."""

    name: str
    credential: Credential | None = None
    user_id: UserId | None = None
    #: The tenant whose objects are the caller's own.
    tenant: TenantId | None = None
    may: frozenset[str] = frozenset()
    is_key: bool = False
    is_admin: bool = False
    #: A login that lacks its code, or its second factor.
    is_halfway: bool = False
    #: A login whose password was not confirmed recently.
    is_stale: bool = False
    #: A key that is bound to networks.
    is_bound: bool = False
    #: A key that may do less than its owner.
    is_narrow: bool = False
    has_factor: bool = False


@asynccontextmanager
async def node(stack: RunningStack, role: Role) -> AsyncIterator[ClientNode]:
    """Yield a node of this role that serves nothing, in addition to the stack's nodes."""
    key = node_keys.load(nats_server.add_node(stack.place, MESH, f"matrix-{role}", role))
    url = f"nats://127.0.0.1:{stack.environment['NATS_PORT']}"
    me, trust = LocalNode(MESH, role, key, SOFTWARE), Trust(key, role)

    async def connected() -> NatsTransport | None:
        transport = NatsTransport(me, url, None, trust)
        await transport.connect(deadline_seconds=1)
        return transport

    # NATS accepts the new user shortly after the reload request.
    nats = await until(connected, what=f"the {role} is let in", ignoring=(errors.AimeshError,))
    async with _calling(me, trust, nats, None) as (running, _tasks):
        await until(lambda: _sees_all(running.directory), what="it sees the services")
        yield running


async def _sees_all(directory: Directory) -> bool:
    return all(directory.usable(role) for role in (Role.AUTH, Role.GATEWAY))


def code(secret: str, at: float | None = None) -> str:
    """Return the code that an authenticator app shows (RFC 6238)."""
    counter = int((time.time() if at is None else at) // 30).to_bytes(8, "big")
    digest = hmac.new(b32decode(secret + "=" * (-len(secret) % 8)), counter, hashlib.sha1).digest()
    start = digest[-1] & 15
    return f"{(int.from_bytes(digest[start : start + 4], 'big') & 0x7FFFFFFF) % 10**6:06d}"


class SeededDb:
    """Creates the callers."""

    def __init__(self, stack: RunningStack, api_client: ApiClient, web: ClientNode) -> None:
        self._stack = stack
        self._desk = api_client
        self._web = web
        self._rpc = api_client.mesh.rpc
        #: What each account owns.
        self.things: dict[UserId, Things] = {}

    async def register(self, name: str, tier: Tier = Tier.ENTERPRISE) -> Person:
        """Register a user with an organization, an answered request, a spare key and a spare session."""
        person = await self._desk.register(name, tier)
        made = await self._rpc.call(
            organizations.create_organisation, organizations.CreateOrganization(f"of {name}"), credential=person.access_token
        )
        spare = await self._log_in(person)
        sessions = await self._rpc.call(accounts.list_sessions, accounts.ListSessions(), credential=spare.access_token)
        self.things[person.id] = Things(
            user_id=person.id,
            tenant=TenantId(person.id),
            team=made.id,
            request_id=(await asking.rpc(self._desk.mesh, person.key.secret, "hi")).request_id,
            session=next(session.id for session in sessions.sessions if session.is_this),
            key=str((await self._desk.make_key(person, "spare")).id),
        )
        return person

    async def askers(self) -> list[Asker]:
        people = {role: await self._person(role) for role in (UserRole.USER, UserRole.DEVELOPER, UserRole.NODE_OWNER)}
        developer, owner = people[UserRole.DEVELOPER], people[UserRole.NODE_OWNER]
        logins = [self._login(role.value, person, GRANTED[role]) for role, person in people.items()]
        keys = [
            await self._key(f"a key for {scope} alone", developer if scope != "node:own" else owner, frozenset({scope}))
            for scope in sorted(EVERYDAY)
        ]
        test = await self._key("a test key", developer, frozenset({"inference:execute", "model:read", "usage:read"}), kind=KeyKind.TEST)
        bound = await self._key("a key bound to networks", developer, GRANTED[UserRole.DEVELOPER], networks=("192.0.2.0/24",))
        return [
            Asker(name="a visitor"), *logins, *keys, test, bound,
            *(await self._admins()), await self._halfway(), await self._stale(), await self._stale_admin(), await self._member(),
        ]  # fmt: skip

    async def _person(self, role: UserRole) -> Person:
        person = await self.register(role.value)
        await self._rpc.call(auth.set_role, auth.SetRole(person.username, role), credential=self._stack.api_key)
        return person

    @staticmethod
    def _login(name: str, person: Person, may: frozenset[str]) -> Asker:
        return Asker(name=name, credential=person.access_token, user_id=person.id, tenant=TenantId(person.id), may=may)

    async def _key(
        self, name: str, person: Person, may: frozenset[str], *, kind: KeyKind = KeyKind.LIVE, networks: tuple[str, ...] = ()
    ) -> Asker:
        bounds = KeyBounds(() if kind is KeyKind.TEST else tuple(sorted(may)), (), networks)
        request = auth.GenerateApiKey(name, kind=kind, bounds=bounds)
        made = await self._rpc.call(auth.generate_api_key, request, credential=person.access_token)
        return Asker(
            name=name, credential=made.api_key, user_id=person.id, tenant=TenantId(person.id), may=may, is_key=True,
            is_bound=bool(networks), is_narrow=not networks,
        )  # fmt: skip

    async def _admins(self) -> list[Asker]:
        """Return an administrator with a second factor, that administrator's keys, and an administrator without a second factor."""
        first, second = [await self.register("boss") for _ in range(2)]
        for person in (first, second):
            await self._rpc.call(auth.set_role, auth.SetRole(person.username, UserRole.ADMIN), credential=self._stack.api_key)
        whole, halfway = [await self._log_in(person) for person in (first, second)]
        assert whole.step is halfway.step is auth.Step.SET_UP_MFA
        whole = await self._with_factor(whole)
        live = await self._rpc.call(auth.generate_api_key, auth.GenerateApiKey("everyday", all_rights=True), credential=whole.access_token)
        adm = await self._rpc.call(auth.generate_api_key, auth.GenerateApiKey("adm", kind=KeyKind.ADMIN), credential=whole.access_token)
        whole_admin = Asker(
            name="an administrator", credential=whole.access_token, user_id=first.id, tenant=TenantId(first.id),
            may=GRANTED[UserRole.ADMIN], is_admin=True, has_factor=True,
        )  # fmt: skip
        return [
            whole_admin,
            replace(whole_admin, name="an administrator's key adm", credential=adm.api_key, is_key=True),
            replace(
                whole_admin, name="an administrator's everyday key", credential=live.api_key, may=EVERYDAY, is_key=True, is_narrow=True
            ),
            Asker(
                name="an administrator without a second factor", credential=halfway.access_token, user_id=second.id,
                tenant=TenantId(second.id), may=GRANTED[UserRole.ADMIN], is_halfway=True, is_admin=True,
            ),
        ]  # fmt: skip

    async def _halfway(self) -> Asker:
        person = await self.register("halfway")
        await self._with_factor(await self._log_in(person))
        lacking = await self._log_in(person)
        assert lacking.step is auth.Step.ENTER_CODE
        return Asker(
            name="a login without its code", credential=lacking.access_token, user_id=person.id, tenant=TenantId(person.id),
            may=GRANTED[UserRole.USER], is_halfway=True, has_factor=True,
        )  # fmt: skip

    async def _stale(self) -> Asker:
        """Return a login by a key's link, which needs no password."""
        person = await self.register("stale")
        link = await self._rpc.call(auth.create_login_link, auth.CreateLoginLink(), credential=person.key.secret)
        session = await self._web.rpc.call(auth.redeem_login_link, auth.RedeemLoginLink(link.token))
        return Asker(
            name="a login that showed no password", credential=session.access_token, user_id=person.id, tenant=TenantId(person.id),
            may=GRANTED[UserRole.USER], is_stale=True,
        )  # fmt: skip

    async def _stale_admin(self) -> Asker:
        """Return a browser login whose password and code are too old for sensitive actions; resuming the session confirms neither."""
        person = await self.register("early-boss")
        await self._rpc.call(auth.set_role, auth.SetRole(person.username, UserRole.ADMIN), credential=self._stack.api_key)
        login = auth.LoginUser(auth.Credentials(person.password, person.username), kind=auth.SessionKind.BROWSER)
        session = await self._with_factor(await self._web.rpc.call(auth.login_user, login))
        found = await self._rpc.call(accounts.list_sessions, accounts.ListSessions(), credential=session.access_token)
        (this,) = (each for each in found.sessions if each.is_this)
        assert this.kind is auth.SessionKind.BROWSER
        async with redis.Redis.from_url(stack_plan.valkey_of(self._stack.place).url) as valkey:
            # The field exists already, so hset adds nothing.
            assert await valkey.hset(f"auth:session:{this.id}", "confirmed_at", repr(time.time() - FRESH_SECONDS - 1)) == 0
        resumed = await self._web.rpc.call(auth.resume_session, auth.ResumeSession(session.session_token))
        assert resumed.step is auth.Step.DONE
        return Asker(
            name="an administrator's login of long ago", credential=resumed.access_token, user_id=person.id, tenant=TenantId(person.id),
            may=GRANTED[UserRole.ADMIN], is_admin=True, is_stale=True, has_factor=True,
        )  # fmt: skip

    async def _member(self) -> Asker:
        """Return a member of an organization, acting for it."""
        person = await self.register("member")
        team = self.things[person.id].team
        self.things[person.id] = replace(self.things[person.id], tenant=team)
        session = await self._rpc.call(accounts.switch_organisation, accounts.SwitchTeam(team), credential=person.access_token)
        return Asker(
            name="a member of another organisation", credential=session.access_token, user_id=person.id, tenant=team,
            may=GRANTED[UserRole.USER],
        )  # fmt: skip

    async def _log_in(self, person: Person) -> auth.LoginSession:
        return await self._rpc.call(auth.login_user, auth.LoginUser(auth.Credentials(person.password, person.username)))

    async def _with_factor(self, session: auth.LoginSession) -> auth.LoginSession:
        seed = await self._rpc.call(accounts.begin_mfa, accounts.BeginMfa(), credential=session.access_token)
        enabled = await self._rpc.call(accounts.enable_mfa, accounts.EnableMfa(code(seed.secret)), credential=session.access_token)
        return enabled.session or session
