"""One replica leads: by a lock in PostgreSQL, and without PostgreSQL the last leader or the first replica."""

import secrets

import asyncpg
import pytest

from services.metrics import leader, leader_state
from shared import errors
from tests.servers import PostgresServer
from tests.services.metrics.replicas import ONE, TWO, Mesh, Replica, Replicas


async def test_leader_keeps_the_lead_after_a_dropped_session_if_the_lock_is_free(replicas: Replicas) -> None:
    one = await replicas.start(ONE)
    await replicas.cut(one)
    with pytest.raises(errors.Unavailable):
        await one.round()
    await replicas.reconnect(one)
    assert one.leader.leads


async def test_another_replica_takes_over_when_the_leaders_session_ends(replicas: Replicas) -> None:
    one, two = await replicas.start(ONE), await replicas.start(TWO)
    await two.round()
    assert (one.leader.leads, two.leader.leads) == (True, False)
    await replicas.cut(one)
    await two.round()
    await replicas.reconnect(one)
    assert (one.leader.leads, two.leader.leads) == (False, True)


async def test_without_postgresql_the_last_leader_continues_and_then_the_first_live_replica(mesh: Mesh, replicas: Replicas) -> None:
    one, two = await replicas.start(ONE), await replicas.start(TWO)
    for each in (one, two):
        each.session = None
        await each.round()
    assert (one.leader.leads, two.leader.leads) == (True, False)
    mesh.replicas = [TWO]
    await two.round()
    assert two.leader.leads


async def test_process_started_without_postgresql_waits_before_it_leads(mesh: Mesh, replicas: Replicas) -> None:
    one = await replicas.start(ONE)
    other = Replica(mesh, one.leader.database, ONE)
    await other.round()
    assert not other.leader.leads
    mesh.now += leader.REMEMBERING_SECONDS
    await other.round()
    assert other.leader.leads


async def test_without_a_database_only_one_of_several_replicas_leads(mesh: Mesh) -> None:
    one, two = (Replica(mesh, None, node) for node in (ONE, TWO))
    for each in (one, two):
        await each.round()
    assert (one.leader.leads, two.leader.leads) == (True, False)
    assert one.leader.checks() == ()
    mesh.replicas = [TWO]
    await two.round()
    assert two.leader.leads


async def test_after_an_outage_the_previous_leader_reconnects_first(
    mesh: Mesh, replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await replicas.start(ONE), await replicas.start(TWO)
    for each in (one, two):
        await replicas.cut(each)
        # A session of this moment.
        each.leader._session_at = leader.time.monotonic()
    monkeypatch.setattr(leader, "_GRACE_SECONDS", 1000.0)
    await replicas.reconnect(two)
    assert not two.leader.leads
    await replicas.reconnect(one)
    assert one.leader.leads
    await replicas.cut(one)
    mesh.replicas = [TWO]
    await replicas.reconnect(two)
    assert two.leader.leads


async def test_missing_schema_privilege_is_reported(postgres: PostgresServer, postgres_url: str) -> None:
    name = f"nobody_much_{secrets.token_hex(4)}"
    admin = await asyncpg.connect(postgres_url)
    await admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
    await admin.close()
    database = postgres_url.partition("?")[0].rpartition("/")[2]
    url = postgres.server.url(name, "x").replace("/aimesh?", f"/{database}?")
    with pytest.raises(errors.BadSettings, match="denies access"):
        async with leader_state.open_database(url, migrate=True):
            pass
