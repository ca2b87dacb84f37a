"""auth's mesh tables on a real PostgreSQL: each use of a ticket is counted once, and the number of the list only grows."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from services.auth import store
from services.auth.nodes import node_store
from services.auth.nodes.ca_keys import MeshState
from services.auth.nodes.enrollment_rules import KnownTicket
from services.auth.nodes.node_store import NodeStore
from shared import errors
from shared.api.membership import MemberState
from shared.identity import node_keys
from shared.node import lifecycle
from shared.types import NodeId, Role, UserId
from tests.services.auth import by_hand


@pytest.fixture
async def members(postgres_url: str) -> AsyncIterator[NodeStore]:
    async with store.opened(postgres_url) as database:
        yield NodeStore(database)


def now() -> datetime:
    return datetime.now(UTC)


def new_node() -> NodeId:
    return node_keys.NodeKey(node_keys.new_seed()).id


async def add_ticket(members: NodeStore, ticket_id: str = "aaaa1111", **changed: Any) -> str:
    fields: dict[str, Any] = {
        "id": ticket_id, "public_key": new_node(), "role": Role.WORKER, "owner": UserId(UUID(int=7)), "owner_name": "",
        "labels": {"zone": "eu"}, "needs_approval": False, "uses": 1, "used": 0, "created_at": now(),
        "expires_at": now() + timedelta(hours=1), "revoked_at": None,
    }  # fmt: skip
    async with members.transaction() as transaction:
        await members.add_ticket(transaction, KnownTicket(**{**fields, **changed}))
    return ticket_id


async def use(members: NodeStore, ticket_id: str, node: NodeId) -> bool:
    return await members.use_ticket(ticket_id, node, name="box", labels={"zone": "eu"}, now=now())


async def approve(members: NodeStore, node: NodeId) -> bool:
    async with members.transaction() as transaction:
        return await members.approve(transaction, node)


async def revoke(members: NodeStore, node: NodeId, reason: str) -> bool:
    async with members.transaction() as transaction:
        return await members.revoke(transaction, node, reason)


async def used(members: NodeStore, ticket_id: str) -> int:
    found = await members.find_ticket(ticket_id)
    assert found is not None
    return found.used


async def state(members: NodeStore) -> MeshState:
    return await members.read_state(now())


# --- tickets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uses", [1, 7])
async def test_as_many_of_fifty_concurrent_nodes_join_as_the_ticket_has_uses(members: NodeStore, uses: int) -> None:
    ticket = await add_ticket(members, uses=uses)
    outcomes = await asyncio.gather(*(use(members, ticket, new_node()) for _ in range(50)))
    assert outcomes.count(True) == uses
    assert await used(members, ticket) == uses
    assert len(await members.list_nodes(None)) == uses


async def test_one_node_with_twenty_concurrent_requests_uses_the_ticket_once(members: NodeStore) -> None:
    ticket, node = await add_ticket(members, uses=50), new_node()
    outcomes = await asyncio.gather(*(use(members, ticket, node) for _ in range(20)))
    assert outcomes.count(True) == 1
    assert await used(members, ticket) == 1


async def test_a_known_node_with_another_ticket_uses_it_once(members: NodeStore) -> None:
    node = new_node()
    assert await use(members, await add_ticket(members), node)
    other = await add_ticket(members, "bbbb2222", uses=50, role=Role.CLIENT)
    outcomes = await asyncio.gather(*(use(members, other, node) for _ in range(20)))
    assert outcomes.count(True) == 1
    assert await used(members, other) == 1
    found = await members.find_node(node)
    assert found is not None
    assert (found.role, found.ticket_id) == (Role.CLIENT, other)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param("UPDATE auth.tickets SET expires_at = now() - interval '1 second'", id="expired"),
        pytest.param("UPDATE auth.tickets SET revoked_at = now()", id="revoked"),
        pytest.param("UPDATE auth.tickets SET used = uses", id="used up"),
        pytest.param("DELETE FROM auth.tickets", id="gone"),
    ],
)
async def test_an_invalid_ticket_admits_nobody(members: NodeStore, postgres_url: str, change: str) -> None:
    ticket = await add_ticket(members)
    await by_hand.run(postgres_url, change)
    assert not await use(members, ticket, new_node())
    assert await members.list_nodes(None) == ()


async def test_a_revoked_key_and_an_auths_key_use_no_ticket(members: NodeStore) -> None:
    ticket, revoked, auth = await add_ticket(members, uses=9), new_node(), new_node()
    await members.ensure_vouched(revoked, Role.WORKER)
    await revoke(members, revoked, "")
    await members.ensure_vouched(auth, Role.AUTH)
    assert not await use(members, ticket, revoked)
    assert not await use(members, ticket, auth)
    assert await used(members, ticket) == 0


async def test_the_row_contains_what_the_ticket_grants(members: NodeStore) -> None:
    ticket, node = await add_ticket(members, needs_approval=True), new_node()
    assert await use(members, ticket, node)
    found = await members.find_node(node)
    assert found is not None
    assert (found.role, found.state, found.name, found.owner) == (Role.WORKER, MemberState.PENDING, "box", UserId(UUID(int=7)))
    assert (found.labels, found.ticket_id, found.certified_until) == ({"zone": "eu"}, ticket, None)
    assert await approve(members, node)
    assert not await approve(members, node)
    assert await members.note_certified(node, now())


async def test_an_id_may_be_given_by_a_unique_prefix(members: NodeStore) -> None:
    await add_ticket(members, "aaaa1111")
    await add_ticket(members, "aaaa2222")
    assert (await members.get_ticket_called("aaaa2", None)).id == "aaaa2222"
    for beginning, error in (("aaaa", errors.BadRequest), ("aaa", errors.BadRequest), ("", errors.BadRequest), ("bbbb", errors.NotFound)):
        with pytest.raises(error):
            await members.get_ticket_called(beginning, None)
    for beginning in ("aaaa%", "a\0aa1", "' OR 1=1 --"):
        with pytest.raises(errors.BadRequest, match="id: give the node's id, or at least its first 4 characters"):
            await members.get_node_called(beginning, None)
        assert await members.find_ticket(beginning) is None


# --- nodes that NATS vouches for ---------------------------------------------------------------------------------------


async def test_a_node_that_nats_vouches_for_is_active_unless_revoked(members: NodeStore) -> None:
    node = new_node()
    for _ in range(2):
        await members.ensure_vouched(node, Role.GATEWAY)
        found = await members.find_node(node)
        assert found is not None
        assert (found.role, found.state, found.owner) == (Role.GATEWAY, MemberState.ACTIVE, None)
    assert await revoke(members, node, "lost")
    assert not await revoke(members, node, "again")
    await members.ensure_vouched(node, Role.GATEWAY)
    found = await members.find_node(node)
    assert found is not None
    assert (found.state, found.reason, found.revoked_at is not None) == (MemberState.REVOKED, "lost", True)
    assert not await members.note_certified(node, now())
    assert not await approve(members, node)


# --- the revocation list -----------------------------------------------------------------------------------------------


async def test_the_number_only_grows_and_the_epoch_at_most_once_an_hour(members: NodeStore, postgres_url: str) -> None:
    nodes = [new_node() for _ in range(4)]
    for node in nodes:
        await members.ensure_vouched(node, Role.WORKER)
    states = [await state(members)]
    for node in nodes[:3]:
        await revoke(members, node, "")
        states.append(await state(members))
    assert all(earlier.number < later.number for earlier, later in itertools.pairwise(states))
    assert [found.epoch for found in states] == [1, 2, 2, 2]
    assert set(states[-1].revoked) == set(nodes[:3])
    await by_hand.run(postgres_url, "UPDATE auth.mesh_state SET epoch_changed_at = epoch_changed_at - interval '61 minutes'")
    await revoke(members, nodes[3], "")
    assert (await state(members)).epoch == 3


async def test_a_revocation_soon_after_another_changes_the_epoch_an_hour_later(members: NodeStore, postgres_url: str) -> None:
    for node in (new_node(), new_node()):
        await members.ensure_vouched(node, Role.WORKER)
        await by_hand.run(postgres_url, "UPDATE auth.mesh_state SET epoch_changed_at = epoch_changed_at - interval '1 second'")
        await revoke(members, node, "")
    before = await state(members)
    await members.rotate_epoch()
    assert await state(members) == before, "the hour is not over"
    await by_hand.run(
        postgres_url,
        "UPDATE auth.mesh_state SET epoch_changed_at = epoch_changed_at - interval '1 hour', last_revoked_at = now() - interval '1 minute'",
    )
    for _ in range(2):
        await members.rotate_epoch()
    after = await state(members)
    assert (before.epoch, after.epoch) == (2, 3)
    assert after.number > before.number, "or nobody would fetch the list that tells of it"


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("UPDATE auth.nodes SET state = 'revoked' WHERE id = $1", id="cut off"),
        pytest.param("INSERT INTO auth.nodes (id, role, state) VALUES (left($1, 55) || 'A', 'worker', 'revoked')", id="banned"),
    ],
)  # fmt: skip
async def test_a_revocation_by_hand_counts_and_is_announced(members: NodeStore, postgres_url: str, statement: str) -> None:
    node = new_node()[:-1] + "B"
    await by_hand.run(postgres_url, "INSERT INTO auth.nodes (id, role) VALUES ($1, 'worker')", node)
    before = await state(members)
    changes: asyncio.Queue[str | None] = asyncio.Queue()
    async with lifecycle.background() as tasks:
        tasks.create_task(members.listen(node_store.CHANGES, changes.put))
        await asyncio.wait_for(changes.get(), 30)
        await by_hand.run(postgres_url, statement, node)
        await asyncio.wait_for(changes.get(), 30)
    after = await state(members)
    assert after.number > before.number
    assert after.epoch == before.epoch + 1
    assert len(after.revoked) == 1
    await by_hand.run(postgres_url, "DELETE FROM auth.nodes")
    assert (await state(members)).number > after.number


async def test_changes_that_do_not_affect_the_list_keep_the_number(members: NodeStore, postgres_url: str) -> None:
    node, before = new_node(), await state(members)
    await members.ensure_vouched(node, Role.WORKER)
    await members.note_certified(node, now())
    await by_hand.run(postgres_url, "UPDATE auth.nodes SET state = 'pending'")
    await approve(members, node)
    await by_hand.run(postgres_url, "DELETE FROM auth.nodes")
    assert await state(members) == before


async def test_a_key_leaves_the_list_when_none_of_its_certificates_can_be_valid(members: NodeStore, postgres_url: str) -> None:
    node = new_node()
    await members.ensure_vouched(node, Role.GATEWAY)
    await revoke(members, node, "")
    assert (await state(members)).revoked == (node,)
    for age, listed in (("7 days", True), ("7 days 61 minutes", False)):
        await by_hand.run(postgres_url, "UPDATE auth.nodes SET revoked_at = now() - $1::text::interval", age)
        assert bool((await state(members)).revoked) is listed


@pytest.mark.parametrize("tables_of", [None], ids=["empty"])
async def test_a_new_or_restored_database_continues_above_its_old_numbers(members: NodeStore, postgres_url: str) -> None:
    assert abs((await state(members)).number - now().timestamp()) < 100, "the clock, so that a new database is above the old one"
    for seen in ((await state(members)).number + 1000, 5):
        await members.raise_number(seen)
        assert (await state(members)).number > seen
    await by_hand.run(postgres_url, "UPDATE auth.mesh_state SET number = 17")
    await members.ensure_vouched(new_node(), Role.WORKER)
    await by_hand.run(postgres_url, "UPDATE auth.nodes SET state = 'revoked'")
    assert abs((await state(members)).number - now().timestamp()) < 100


async def test_psql_cannot_insert_an_invalid_node(members: NodeStore, postgres_url: str) -> None:
    for row in ("('gpu-box', 'worker', 'active')", f"('{new_node()}', 'newcomer', 'active')", f"('{new_node()}', 'worker', 'gone')"):
        with pytest.raises(asyncpg.CheckViolationError):
            await by_hand.run(postgres_url, f"INSERT INTO auth.nodes (id, role, state) VALUES {row}")


# --- owners and audit acts ---------------------------------------------------------------------------------------------


async def test_owners_only_list_and_find_their_own(members: NodeStore) -> None:
    anna, ben = UserId(UUID(int=7)), UserId(UUID(int=8))
    annas, bens = await add_ticket(members, "aaaa1111", uses=9), await add_ticket(members, "aaaa2222", owner=ben)
    node = new_node()
    await use(members, annas, node)
    for owner, tickets, nodes in ((anna, {annas}, {node}), (ben, {bens}, set()), (None, {annas, bens}, {node})):
        assert {ticket.id for ticket in await members.list_tickets(owner)} == tickets
        assert {found.id for found in await members.list_nodes(owner)} == nodes
    assert (await members.get_ticket_called("aaaa", anna)).id == annas, "a beginning that another's has, too"
    for asking in (members.get_ticket_called(bens, anna), members.get_node_called(node, ben)):
        with pytest.raises(errors.NotFound, match=r"no (ticket|node) has an id that begins like this"):
            await asking
    assert (await members.count_good_tickets(anna), await members.count_good_tickets(UserId(UUID(int=9)))) == (1, 0)
    async with members.transaction() as transaction:
        assert await members.revoke_ticket(transaction, annas)
    assert await members.count_good_tickets(anna) == 0


async def test_a_failed_enrollment_does_not_use_up_the_ticket(members: NodeStore, postgres_url: str) -> None:
    ticket, node, written = await add_ticket(members), new_node(), []

    async def full(transaction: object) -> None:
        raise errors.Unavailable("the log is away")

    async def write(transaction: object) -> None:
        written.append(1)

    with pytest.raises(errors.Unavailable, match="the log is away"):
        await members.use_ticket(ticket, node, name="box", labels={}, now=now(), also=full)
    assert (await used(members, ticket), await members.find_node(node)) == (0, None)
    assert await members.use_ticket(ticket, node, name="box", labels={}, now=now(), also=write)
    assert not await members.use_ticket(ticket, node, name="box", labels={}, now=now(), also=write)
    assert written == [1]


# --- replica slots -----------------------------------------------------------------------------------------------------


async def ages(postgres_url: str, node: NodeId, seconds: int) -> None:
    await by_hand.run(
        postgres_url,
        "UPDATE auth.nodes SET heard_at = now() - make_interval(secs => $2), joined_at = now() - interval '1 day' WHERE id = $1",
        node,
        seconds,
    )


async def active(members: NodeStore, ticket_id: str) -> int:
    found = await members.find_ticket(ticket_id)
    assert found is not None
    return found.active


async def test_two_places_admit_two_of_many_at_once(members: NodeStore) -> None:
    ticket = await add_ticket(members, uses=None, active_most=2)
    nodes = [new_node() for _ in range(8)]
    assert sum(await asyncio.gather(*(use(members, ticket, node) for node in nodes))) == 2
    assert (await active(members, ticket), await used(members, ticket)) == (2, 2)


async def test_a_stop_frees_the_place_and_a_kill_does_after_a_minute(members: NodeStore, postgres_url: str) -> None:
    ticket, (one, two, three) = await add_ticket(members, uses=None, active_most=1), (new_node() for _ in range(3))
    assert await use(members, ticket, one)
    assert not await use(members, ticket, two)
    await members.note_left(one)
    assert (await active(members, ticket), await use(members, ticket, two)) == (0, True)
    await ages(postgres_url, two, 59)
    assert not await use(members, ticket, three)
    await ages(postgres_url, two, 61)
    assert await use(members, ticket, three)
    # The killed node comes back with its certificate.
    await members.note_heard([two])
    assert await active(members, ticket) == 2


async def test_heard_nodes_are_written_only_every_fifteen_seconds(members: NodeStore, postgres_url: str) -> None:
    ticket, node, enrolled = await add_ticket(members), new_node(), new_node()
    await use(members, ticket, node)
    await members.ensure_vouched(enrolled, Role.WORKER)
    await members.note_heard([node, enrolled])

    async def versions() -> dict[str, str]:
        found = await by_hand.value(postgres_url, "SELECT json_object_agg(id, xmin::text) FROM auth.nodes")
        return dict(json.loads(found))

    before = await versions()
    await members.note_heard([node, enrolled])
    assert await versions() == before
    await ages(postgres_url, node, 16)
    before = await versions()
    await members.note_heard([node, enrolled])
    after = await versions()
    assert (after[node] != before[node], after[enrolled] == before[enrolled]) == (True, True)


async def test_only_silent_replicas_are_forgotten(members: NodeStore, postgres_url: str) -> None:
    replicas, single = await add_ticket(members, "aaaa1111", uses=None, active_most=5), await add_ticket(members, "bbbb2222", uses=3)
    silent, fresh, banned, laptop = (new_node() for _ in range(4))
    for ticket, node in ((replicas, silent), (replicas, fresh), (replicas, banned), (single, laptop)):
        assert await use(members, ticket, node)
    for node in (silent, banned, laptop):
        await ages(postgres_url, node, 3601)
    await ages(postgres_url, fresh, 3500)
    await revoke(members, banned, "")
    await members.forget_left_nodes()
    assert {node.id for node in await members.list_nodes(None)} == {fresh, banned, laptop}


async def test_a_rotated_ticket_ends_a_day_later_but_never_lives_longer(members: NodeStore) -> None:
    long, short = await add_ticket(members, "aaaa1111", expires_at=now() + timedelta(days=30)), await add_ticket(members, "bbbb2222")
    for ticket, hours in ((long, 24), (short, 1)):
        async with members.transaction() as transaction:
            await members.end_ticket_soon(transaction, ticket, timedelta(hours=24))
        found = await members.find_ticket(ticket)
        assert found is not None
        assert abs(found.expires_at - now() - timedelta(hours=hours)) < timedelta(minutes=1)
