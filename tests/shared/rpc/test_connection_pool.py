"""Choosing the node of a call, and how long a call waits for a node."""

import asyncio
import random
import time
from datetime import UTC, datetime

import pytest

from shared import errors
from shared.protocol.directory import Announcement, Directory
from shared.rpc import ConnectionPool
from shared.rpc.connection import RpcConnection
from shared.types import NodeId, Peer, Role


async def nobody(peer: Peer, transport: str) -> RpcConnection:
    raise AssertionError("there is nobody to be reached")


async def test_a_waiting_caller_that_learns_of_its_revocation_stops_waiting() -> None:
    refusal: errors.AimeshError | None = None
    nodes = Directory(asyncio.get_running_loop().time)
    pool = ConnectionPool(nodes, nobody, random.Random(1), wait_seconds=600, refusal=lambda: refusal)
    waiting = asyncio.create_task(pool.connection(Role.GATEWAY, None, time.monotonic() + 600))
    await asyncio.sleep(0)
    refusal = errors.NodeRevoked("this machine was revoked")
    async with asyncio.timeout(60):
        with pytest.raises(errors.NodeRevoked, match="this machine was revoked"):
            await waiting


async def test_waiting_for_a_node_ends_with_the_deadline() -> None:
    pool = ConnectionPool(Directory(asyncio.get_running_loop().time), nobody, random.Random(1), wait_seconds=0.02)
    with pytest.raises(errors.NotReachable, match="no gateway is available"):
        await pool.connection(Role.GATEWAY, None, time.monotonic() + 20)


async def test_unreachable_nodes_leave_nothing_behind() -> None:
    async def unreachable(peer: Peer, transport: str) -> RpcConnection:
        await asyncio.sleep(0)
        raise errors.NotReachable("nobody answers")

    nodes = Directory(asyncio.get_running_loop().time)
    pool = ConnectionPool(nodes, unreachable, random.Random(1), wait_seconds=0.02)
    for number in range(100):
        node = NodeId(f"U{number}")
        nodes.apply_announcement(Announcement(Role.WORKER, node, "1", datetime(2026, 1, 1, tzinfo=UTC)), "nats")
        dials = [pool.connection(None, node, time.monotonic() + 20) for _ in range(3)]
        assert all(isinstance(end, errors.NotReachable) for end in await asyncio.gather(*dials, return_exceptions=True))
    assert not pool._dialling


async def test_a_call_waits_until_its_node_is_heard_again_over_our_own_connection() -> None:
    """A dial over a lost connection says nothing about the node, which stays known."""
    dials: list[NodeId] = []

    async def dialing(peer: Peer, transport: str) -> RpcConnection:
        dials.append(peer.node)
        raise errors.NotConnected("our own connection is lost")

    nodes, node = Directory(asyncio.get_running_loop().time), NodeId("U1")
    announcement = Announcement(Role.AUTH, node, "1", datetime(2026, 1, 1, tzinfo=UTC))
    nodes.apply_announcement(announcement, "nats")
    pool = ConnectionPool(nodes, dialing, random.Random(1), wait_seconds=600)
    with pytest.raises(errors.NotConnected):
        await pool.connection(Role.AUTH, None, time.monotonic() + 600)
    assert nodes.usable(Role.AUTH)
    nodes.transport_lost("nats")
    waiting = asyncio.create_task(pool.connection(Role.AUTH, None, time.monotonic() + 600))
    await asyncio.sleep(0)
    assert len(dials) == 1
    nodes.transport_back("nats")
    nodes.apply_announcement(announcement, "nats")
    async with asyncio.timeout(60):
        with pytest.raises(errors.NotConnected):
            await waiting
    assert len(dials) == 2
    assert ConnectionPool(nodes, dialing, random.Random(1)).ready(Role.AUTH, None) is None


async def test_a_caller_that_has_waited_in_vain_learns_that_our_own_connection_is_lost() -> None:
    nodes, node = Directory(asyncio.get_running_loop().time), NodeId("U1")
    nodes.apply_announcement(Announcement(Role.WORKER, node, "1", datetime(2026, 1, 1, tzinfo=UTC)), "nats")
    nodes.transport_lost("nats")
    pool = ConnectionPool(nodes, nobody, random.Random(1), wait_seconds=0.02)
    with pytest.raises(errors.NotConnected, match="our own connection to NATS is lost"):
        await pool.connection(None, node, time.monotonic() + 20)
    assert nodes.usable(Role.WORKER)
