"""Decisions made after the restored moment still hold (D5): each kind of RECOVERY.md, section 3."""

from dataclasses import dataclass

import pytest

from shared import errors
from shared.api import accounts, auth, organizations
from shared.api.organizations import TeamRole
from shared.identity import node_keys, tickets
from shared.identity.node_keys import NodeKey
from shared.node import enrollment
from shared.node.enrollment import EnrollingNode, EnrollmentOptions
from shared.types import Credential, Role, TenantId, UserRole
from tests import outside
from tests.people import ApiClient, Person
from tests.stacks import RunningStack, until

CREDITS_MICRO = 500_000_000
MIN_PRICE = "0.5"


@dataclass(slots=True)
class Decisions:
    people: "DecidedPeople"
    keys: "DecidedKeys"
    teams: "DecidedTeams"
    nodes: "DecidedNodes"
    refund: "Refund"

    @classmethod
    async def prepare(cls, stack: RunningStack, api_client: ApiClient) -> "Decisions":
        return cls(
            await DecidedPeople.prepare(api_client), await DecidedKeys.prepare(api_client), await DecidedTeams.prepare(api_client),
            await DecidedNodes.prepare(stack), await Refund.prepare(stack, api_client),
        )  # fmt: skip

    async def make(self, stack: RunningStack, api_client: ApiClient, paying: Person) -> None:
        await good(stack, "admin", "credits", paying.username, "500", "--note", "invoice 7")
        for each in (self.nodes, self.refund, self.keys, self.teams, self.people):
            await each.make(stack, api_client)
        # This ends all access tokens.
        await good(stack, "admin", "signing-keys", "rotate", "--at-once")

    async def check(self, stack: RunningStack, api_client: ApiClient) -> None:
        for each in (self.people, self.keys, self.teams, self.nodes, self.refund):
            await each.check(stack, api_client)
        async with stack.database("gateway") as database:
            paid = "SELECT count(*) FROM entries WHERE kind = 'top_up' AND account = 'balance' AND amount_micro = $1"
            assert await database.fetchval(paid, CREDITS_MICRO) == 1


@dataclass(slots=True)
class DecidedPeople:
    closed: Person
    erased: Person
    #: The first gets a new password; the second is no longer an administrator.
    changed: Person
    lowered: Person

    @classmethod
    async def prepare(cls, api_client: ApiClient) -> "DecidedPeople":
        made = cls(*[await api_client.register(name) for name in ("closed", "erased", "changed", "lowered")])
        promoted = auth.SetRole(made.lowered.username, UserRole.ADMIN)
        await api_client.mesh.rpc.call(auth.set_role, promoted, credential=api_client.admin_key)
        return made

    async def make(self, stack: RunningStack, api_client: ApiClient) -> None:
        rpc, admin = api_client.mesh.rpc, api_client.admin_key
        await rpc.call(auth.set_active, auth.SetActive(self.closed.username, is_active=False), credential=admin)
        await rpc.call(auth.set_role, auth.SetRole(self.lowered.username, UserRole.USER), credential=admin)
        changed = accounts.ChangePassword("another " + self.changed.password)
        await rpc.call(accounts.change_password, changed, credential=await session_of(api_client, self.changed))
        await rpc.call(accounts.request_erasure, accounts.RequestErasure(), credential=await session_of(api_client, self.erased))
        async with stack.database("auth") as database:
            await database.execute("UPDATE users SET erase_at = now() - interval '1 second' WHERE id = $1", self.erased.id)
            await good(stack, "stack", "restart", "auth")

            async def is_erased() -> bool:
                return await database.fetchval("SELECT erased_at IS NOT NULL FROM users WHERE id = $1", self.erased.id) is True

            await until(is_erased, seconds=30, what="the account is erased")

    async def check(self, stack: RunningStack, api_client: ApiClient) -> None:
        rpc = api_client.mesh.rpc
        for person in (self.closed, self.erased):
            assert await status_of(stack, person.key.secret) == 401, person.username
        for password in (self.changed.password, "another " + self.changed.password):
            with pytest.raises(errors.NotAuthenticated, match="password"):
                await rpc.call(auth.login_user, auth.LoginUser(auth.Credentials(password, self.changed.username)))
        found = await rpc.call(auth.get_user_called, auth.GetUserCalled(self.lowered.username), credential=api_client.admin_key)
        assert found.role is UserRole.USER
        # The access token has not expired, but the key that signed it leaked.
        with pytest.raises(errors.NotAuthenticated, match="was not made by this mesh"):
            await rpc.call(accounts.list_sessions, accounts.ListSessions(), credential=self.lowered.access_token)
        async with stack.database("auth") as database:
            assert await database.fetchval("SELECT erased_at IS NOT NULL FROM users WHERE id = $1", self.erased.id)
            assert not await database.fetchval("SELECT count(*) FROM users WHERE username = $1", self.erased.username)


@dataclass(slots=True)
class DecidedKeys:
    revoked: Person
    rotated: Person
    tightened: Person
    narrowed: Person
    #: The new key of ``rotated``, which replaces the ended one.
    next_secret: Credential | None = None

    @classmethod
    async def prepare(cls, api_client: ApiClient) -> "DecidedKeys":
        return cls(*[await api_client.register(name) for name in ("revoked", "rotated", "tightened", "narrowed")])

    async def make(self, stack: RunningStack, api_client: ApiClient) -> None:
        await good(stack, "keys", "revoke", str(self.revoked.key.id))
        request, session = auth.RotateApiKey(str(self.rotated.key.id), overlap_seconds=0), await session_of(api_client, self.rotated)
        self.next_secret = (await api_client.mesh.rpc.call(auth.rotate_api_key, request, credential=session)).api_key
        # No method changes the limits of a key.
        async with stack.database("auth") as database:
            await database.execute(
                "UPDATE api_keys SET limits = $2 WHERE id = $1", self.tightened.key.id, '{"requests_per_hour": 3, "budget_micro": 5}'
            )
            await database.execute("UPDATE api_keys SET models = '{small}' WHERE id = $1", self.narrowed.key.id)

    async def check(self, stack: RunningStack, api_client: ApiClient) -> None:
        assert self.next_secret is not None
        # The log does not contain the names of models, so the narrowed key has ended.
        ended = [self.revoked, self.rotated, self.narrowed]
        assert [await status_of(stack, person.key.secret) for person in ended] == [401, 401, 401], ended
        assert [await status_of(stack, secret) for secret in (self.next_secret, self.tightened.key.secret)] == [200, 200]
        listed = await api_client.mesh.rpc.call(auth.list_api_keys, auth.ListApiKeys(), credential=self.tightened.key.secret)
        (limits,) = [key.limits for key in listed.keys if key.id == self.tightened.key.id]
        assert (limits.requests_per_hour, limits.budget_micro) == (3, 5), limits


@dataclass(slots=True)
class DecidedTeams:
    team: TenantId
    removed: Person
    #: No longer an owner.
    lowered: Person
    invited: Person
    #: The invitations of ``invited`` to the organization, and of someone without an account to the mesh.
    code: str
    colleague_code: str

    @classmethod
    async def prepare(cls, api_client: ApiClient) -> "DecidedTeams":
        rpc, admin = api_client.mesh.rpc, api_client.admin_key
        removed, lowered, invited = [await api_client.register(name) for name in ("removed", "lessened", "invited")]
        team = (await rpc.call(organizations.create_organisation, organizations.CreateOrganization("crew"), credential=admin)).id

        async def invite(person: Person) -> str:
            request = organizations.InviteMember(team, f"{person.username}@example.org", TeamRole.OWNER)
            return (await rpc.call(organizations.invite_member, request, credential=admin)).token

        for person in (removed, lowered):
            accepted = organizations.AcceptInvitation(await invite(person))
            await rpc.call(organizations.accept_invitation, accepted, credential=person.access_token)
        colleague = organizations.InviteColleague(f"colleague-of-{invited.username}@example.org", UserRole.ADMIN)
        colleague_code = (await rpc.call(organizations.invite_colleague, colleague, credential=admin)).token
        return cls(team, removed, lowered, invited, await invite(invited), colleague_code)

    async def make(self, stack: RunningStack, api_client: ApiClient) -> None:
        rpc, admin = api_client.mesh.rpc, api_client.admin_key
        removal = organizations.RemoveTeamMember(self.team, self.removed.id)
        await rpc.call(organizations.remove_team_member, removal, credential=admin)
        lowered = organizations.SetTeamRole(self.team, self.lowered.id, TeamRole.MEMBER)
        await rpc.call(organizations.set_team_role, lowered, credential=admin)
        found = await rpc.call(organizations.get_organisation, organizations.GetOrganization(self.team), credential=admin)
        (invitation,) = found.invitations
        withdrawn = organizations.WithdrawInvitation(self.team, invitation.id)
        await rpc.call(organizations.withdraw_invitation, withdrawn, credential=admin)
        listed = await rpc.call(organizations.list_colleague_invitations, organizations.ListColleagueInvitations(), credential=admin)
        await good(stack, "admin", "invitations", "revoke", listed.invitations[0].id)
        await good(stack, "policy", "set", "--organization", str(self.team), "--max-input-price", MIN_PRICE, "--hide-targets")

    async def check(self, stack: RunningStack, api_client: ApiClient) -> None:
        rpc, admin = api_client.mesh.rpc, api_client.admin_key
        found = await rpc.call(organizations.get_organisation, organizations.GetOrganization(self.team), credential=admin)
        roles = {member.user_id: member.role for member in found.members}
        assert (self.removed.id in roles, roles[self.lowered.id], found.invitations) == (False, TeamRole.MEMBER, ()), found
        session = await session_of(api_client, self.invited)
        with pytest.raises(errors.NotFound, match="revoked"):
            await rpc.call(organizations.accept_invitation, organizations.AcceptInvitation(self.code), credential=session)
        with pytest.raises(errors.NotFound, match="revoked"):
            await rpc.call(organizations.read_colleague_invitation, organizations.ReadColleagueInvitation(self.colleague_code))
        shown = await good(stack, "policy", "show", "--organization", str(self.team))
        assert (MIN_PRICE in shown, "show_targets: false" in shown) == (True, True), shown


@dataclass(slots=True)
class DecidedNodes:
    node: NodeKey
    used: str
    ended: str

    @classmethod
    async def prepare(cls, stack: RunningStack) -> "DecidedNodes":
        node = NodeKey(node_keys.new_seed())
        await enroll(await outside.ticket(stack, "client"), node)
        return cls(node, *[await outside.ticket(stack, "client") for _ in range(2)])

    async def make(self, stack: RunningStack, api_client: ApiClient) -> None:
        await good(stack, "admin", "nodes", "revoke", self.node.id, "--yes")
        await good(stack, "admin", "tickets", "revoke", tickets.parse(self.ended).id)
        await enroll(self.used, NodeKey(node_keys.new_seed()))

    async def check(self, stack: RunningStack, api_client: ApiClient) -> None:
        for ticket in (self.used, self.ended):
            with pytest.raises(errors.BadTicket, match="the ticket"):
                await enroll(ticket, NodeKey(node_keys.new_seed()))
        async with stack.database("auth") as database:
            assert await database.fetchval("SELECT state FROM nodes WHERE id = $1", self.node.id) == "revoked"


@dataclass(slots=True)
class Refund:
    person: Person
    request_id: str

    @classmethod
    async def prepare(cls, stack: RunningStack, api_client: ApiClient) -> "Refund":
        person = await api_client.register("refunded")
        async with stack.http(person.key.secret) as http:
            answer = await http.post("/v1/completions", json={"model": "echo", "prompt": "one two three", "max_tokens": 8})
        assert answer.status_code == 200, answer.text
        await stack.recorded(person.id, 1)
        return cls(person, answer.headers["x-request-id"])

    async def make(self, stack: RunningStack, api_client: ApiClient) -> None:
        await good(stack, "admin", "ledger", "revert", self.request_id, "--note", "a complaint")

    async def check(self, stack: RunningStack, api_client: ApiClient) -> None:
        again = await stack.aicli("admin", "ledger", "revert", self.request_id)
        assert (again.status != 0, "already refunded" in again.err) == (True, True), again.err
        async with stack.database("gateway") as database:
            paid = await database.fetchval("SELECT settled_micro FROM reservations WHERE request_id = $1::uuid", self.request_id)
            refunded = "SELECT amount_micro FROM entries WHERE owner = $1 AND kind = 'reversal' AND account = 'balance'"
            assert [row["amount_micro"] for row in await database.fetch(refunded, self.person.id)] == [paid]
            assert paid > 0


async def good(stack: RunningStack, *words: str) -> str:
    done = await stack.aicli(*words, deadline_seconds=180)
    assert done.status == 0, (words, done.out, done.err)
    return done.out


async def status_of(stack: RunningStack, key: str) -> int:
    async with stack.http(key) as http:
        return (await http.get("/v1/models")).status_code


async def session_of(api_client: ApiClient, person: Person) -> Credential:
    """Return the token of a new session, because a restore ends all others."""
    login = auth.LoginUser(auth.Credentials(person.password, person.username))
    return (await api_client.mesh.rpc.call(auth.login_user, login)).access_token


async def enroll(ticket: str, key: NodeKey) -> None:
    means = EnrollmentOptions(find_seconds=60, poll_seconds=0.2)
    await enrollment.enroll(tickets.parse(ticket), key, EnrollingNode(Role.CLIENT, "test"), lambda _line: None, means)
