"""Deletion of a user who used a whole stack: no personal data is left, and the books still add up."""

from dataclasses import dataclass
from typing import Any

import pytest
import redis.asyncio

from services.gateway.idempotency import stored_items
from shared import errors
from shared.api import accounts, auth, organizations, usage_report
from shared.api.organizations import TeamRole
from shared.types import Tier
from stack import stack_plan
from tests import feature_parts
from tests.integration import asking
from tests.people import ApiClient, Person
from tests.stacks import RunningStack, until

#: What features store of a person: `tests/features/NAME/integration/stored.py`.
_OF_FEATURES = feature_parts.modules("integration.stored")
SUMS = {
    "accounts": "SELECT count(*), sum(balance_micro), sum(allowance_tokens) FROM accounts",
    "entries": "SELECT count(*), sum(amount_micro), sum(amount_tokens) FROM entries",
    "days": "SELECT sum(request_count), sum(tokens_used) FROM usage_stats",
    "requests": "SELECT count(*), sum(cost_micro), sum(prompt_tokens), sum(completion_tokens) FROM request_logs",
    "thumbs": "SELECT count(*), sum(rating) FROM feedback",
}
#: All of our tables; their rows are searched as text.
TABLES = "SELECT schemaname, tablename FROM pg_tables WHERE schemaname = current_schema()"


@dataclass(frozen=True, slots=True)
class Known:
    """Everything that could identify the deleted user."""

    words: tuple[str, ...]

    async def left_in(self, stack: RunningStack, service: str) -> set[str]:
        async with stack.database(service) as database:
            found = set()
            for row in await database.fetch(TABLES):
                table = f'"{row["schemaname"]}"."{row["tablename"]}"'
                rows = await database.fetch(f"SELECT t::text AS all FROM {table} AS t")
                found |= {f"{row['tablename']}: {word}" for each in rows for word in self.words if word in each["all"]}
            return found


@pytest.mark.nightly("long")
async def test_nothing_personal_is_left_and_every_sum_is(stack: RunningStack, api_client: ApiClient) -> None:
    gone, other = await api_client.register("gone"), await api_client.register("other")
    known = await _use_everything(stack, api_client, gone, other)
    assert {"users"} <= {each.split(":")[0] for each in await known.left_in(stack, "auth")}, "the search finds what is there"
    async with stack.http(gone.key.secret) as http:
        answer = (await http.post("/v1/responses", json={"model": asking.ECHO, "input": "words to repeat"})).json()
        assert (answer["store"], len(await _stored_items(stack))) == (True, 1)
        more = sum([await part.store(http) for part in _OF_FEATURES])
    await stack.recorded(gone.id, 4 + more)
    assert await _stored_by_features(stack, gone) == [1] * len(_OF_FEATURES)
    before, bill = await _sums(stack), await _bill(api_client, other)
    assert [tokens for tokens, *_ in bill] == [7], "the one request that the person made for the organisation"

    await _delete(stack, api_client, gone)

    assert await known.left_in(stack, "auth") == set()
    assert await known.left_in(stack, "gateway") == set()
    assert await _stored_items(stack) == []
    assert await _stored_by_features(stack, gone) == [0] * len(_OF_FEATURES)
    assert (await _sums(stack), await _bill(api_client, other)) == (before, bill)
    books = (await stack.aicli("admin", "ledger", "verify", "--json")).json()
    assert (books["drift_micro"], books["findings"]) == (0, [])
    chain = await stack.aicli("admin", "audit", "verify")
    assert chain.status == 0, chain.err
    for credential in (gone.key.secret, gone.access_token):
        with pytest.raises(errors.NotAuthenticated):
            await api_client.mesh.rpc.call(usage_report.list_requests, usage_report.ListRequests(), credential=credential)
    # Others can continue, also in the organization that they shared.
    assert (await asking.rpc(api_client.mesh, other.key.secret, "still here")).text == "still here"


async def _use_everything(stack: RunningStack, api_client: ApiClient, gone: Person, other: Person) -> Known:
    rpc = api_client.mesh.rpc
    answered = [await asking.rpc(api_client.mesh, person.key.secret, "some words of a prompt") for person in (gone, other, gone)]
    await stack.recorded(gone.id, 2)
    await stack.recorded(other.id, 1)
    await rpc.call(usage_report.give_feedback, usage_report.GiveFeedback(answered[0].request_id, 1), credential=gone.key.secret)
    spare = await api_client.make_key(gone, f"spare of {gone.username}")
    await rpc.call(auth.revoke_api_key, auth.RevokeApiKey(str(spare.id)), credential=gone.access_token)
    await rpc.call(
        accounts.set_preferences,
        accounts.SetPreferences(accounts.Preferences(None, "dark", notify_by_mail=False)),
        credential=gone.access_token,
    )
    team = await rpc.call(organizations.create_organisation, organizations.CreateOrganization("Shared"), credential=other.access_token)
    # The organization shares the limits of its founder before.
    await rpc.call(organizations.set_team_tier, organizations.SetTeamTier(team.id, Tier.FREE), credential=api_client.admin_key)
    invited = organizations.InviteMember(team.id, f"{gone.username}@example.org", TeamRole.MEMBER)
    sent = await rpc.call(organizations.invite_member, invited, credential=other.access_token)
    await rpc.call(organizations.accept_invitation, organizations.AcceptInvitation(sent.token), credential=gone.access_token)
    async with stack.database("auth") as database:
        # As if the deleted user had registered by this invitation.
        await database.execute(
            "INSERT INTO colleague_invitations (id, email, role, token_hash, invited_by, expires_at)"
            " VALUES (gen_random_uuid(), $1, 'user', $1, $2, now())",
            f"{gone.username}@example.org",
            other.id,
        )
    keys = (await rpc.call(auth.list_api_keys, auth.ListApiKeys(), credential=gone.access_token)).keys
    acting = await rpc.call(accounts.switch_organisation, accounts.SwitchTeam(team.id), credential=gone.access_token)
    await asking.rpc(api_client.mesh, acting.access_token, "on the bill of all of us")
    await stack.recorded(gone.id, 3)
    return Known((gone.username, f"{gone.username}@example.org", *(key.preview for key in keys)))


async def _stored_items(stack: RunningStack) -> list[bytes]:
    async with redis.asyncio.Redis.from_url(stack_plan.valkey_of(stack.place).url) as valkey:
        keys: list[bytes] = await valkey.keys(f"{stored_items.PREFIX}*")
    return [key for key in keys if not key.endswith((b":order", b":sizes", b":bytes"))]


async def _stored_by_features(stack: RunningStack, person: Person) -> list[int]:
    """Return how many things of the person each feature stores."""
    async with stack.database("gateway") as database:
        return [await part.count(database, person) for part in _OF_FEATURES]


async def _sums(stack: RunningStack) -> dict[str, tuple[Any, ...]]:
    async with stack.database("gateway") as database:
        return {name: tuple(await database.fetchrow(query)) for name, query in SUMS.items()}


async def _bill(api_client: ApiClient, member: Person) -> list[tuple[int, int, int]]:
    """Return what the organization used, as another member sees it."""
    rpc = api_client.mesh.rpc
    session = await rpc.call(auth.login_user, auth.LoginUser(auth.Credentials(member.password, member.username)))
    found = await rpc.call(organizations.list_organisations, organizations.ListOrganizations(), credential=session.access_token)
    team = found.organisations[0].id
    acting = await rpc.call(accounts.switch_organisation, accounts.SwitchTeam(team), credential=session.access_token)
    log = await rpc.call(usage_report.list_requests, usage_report.ListRequests(), credential=acting.access_token)
    return [(row.prompt_tokens, row.completion_tokens, row.cost_micro) for row in log.requests]


async def _delete(stack: RunningStack, api_client: ApiClient, person: Person) -> None:
    """Request the deletion over the mesh, skip its thirty days, and restart auth, which deletes soon after its start."""
    login = auth.LoginUser(auth.Credentials(person.password, person.username))
    session = await api_client.mesh.rpc.call(auth.login_user, login)
    await api_client.mesh.rpc.call(accounts.request_erasure, accounts.RequestErasure(), credential=session.access_token)
    async with stack.database("auth") as database:
        await database.execute("UPDATE users SET erase_at = now() - interval '1 second' WHERE id = $1", person.id)
        assert (await stack.aicli("stack", "restart", "auth")).status == 0

        async def is_done() -> bool:
            return await database.fetchval("SELECT erased_at IS NOT NULL FROM users WHERE id = $1", person.id) is True

        await until(is_done, seconds=30, what="the account is erased")
