"""Logins in a second and connections at once, of one node and of one address."""

import json
import random
from datetime import UTC, datetime, timedelta

import pytest

from services.auth.nodes import login_limits
from services.auth.nodes.login_limits import (
    MAX_CONNECTIONS,
    MAX_NODE_LOGINS,
    MAX_UNKNOWN_LOGINS,
    ConnectionId,
    LoginQueue,
    LoginRates,
    NodeConnections,
)
from services.auth.nodes.nats_jwt import NatsIssuer
from shared.identity import base64url, node_keys
from shared.protocol import topics
from shared.types import MeshName, NodeId, Role
from tests.services.gateway.fakes import node_id

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def refused(rates: LoginRates, times: int, number: int = 1, address: str = "192.0.2.1", *, is_known: bool = True) -> int:
    return sum(bool(rates.count(address, node_id(number), is_known=is_known)) for _ in range(times))


def test_logins_of_services_are_answered_first_then_the_newest() -> None:
    queue = LoginQueue[str](most_seconds=1.5)
    for number in range(3):
        queue.add(f"worker {number}", number / 10, is_first=False)
        queue.add(f"gateway {number}", number / 10, is_first=True)
    assert [queue.take(1.0) for _ in range(7)] == [
        "gateway 2", "gateway 1", "gateway 0", "worker 2", "worker 1", "worker 0", None,
    ]  # fmt: skip
    assert not len(queue)


def test_a_login_that_its_server_has_given_up_is_not_answered() -> None:
    queue = LoginQueue[str](most_seconds=1.5)
    queue.add("gateway", 0.0, is_first=True)
    queue.add("old", 0.0, is_first=False)
    queue.add("new", 1.0, is_first=False)
    assert queue.take(2.0) == "new"
    assert queue.take(2.0) is None
    assert not len(queue)


def test_a_flood_of_logins_takes_no_more_memory_than_auth_can_answer() -> None:
    queue = LoginQueue[int](most_seconds=1.5)
    for number in range(2 * login_limits.MAX_WAITING):
        queue.add(number, 0.0, is_first=False)
    assert len(queue) == login_limits.MAX_WAITING
    assert queue.take(0.0) == 2 * login_limits.MAX_WAITING - 1


def test_known_nodes_behind_one_address_get_in_beside_a_flood_of_unknown_keys() -> None:
    rates = LoginRates()
    assert sum(refused(rates, 1, number, is_known=False) for number in range(10_000, 15_000)) == 5_000 - MAX_UNKNOWN_LOGINS
    assert sum(refused(rates, 1, number) for number in range(1_000)) == 0
    assert refused(rates, 1, is_known=False, address="192.0.2.2") == 0
    rates.clear()
    assert refused(rates, MAX_UNKNOWN_LOGINS, is_known=False) == 0


def test_one_node_is_limited_alone() -> None:
    rates = LoginRates()
    assert refused(rates, MAX_NODE_LOGINS + 5) == 5
    assert refused(rates, MAX_NODE_LOGINS, 2) == 0
    assert "of this node" in rates.count("192.0.2.1", node_id(1), is_known=True)


def test_a_claimed_key_without_its_signature_locks_nobody_out() -> None:
    rates, victim = LoginRates(), node_id(1)
    for _ in range(50):
        rates.count("192.0.2.66", victim, is_known=True)
        rates.distrust("192.0.2.66", victim)
    assert refused(rates, MAX_NODE_LOGINS) == 0, "from its own address"
    assert refused(rates, 1, address="192.0.2.66") == 0, "also from the attacker's, among its unknown keys"
    assert refused(rates, MAX_UNKNOWN_LOGINS, address="192.0.2.66") > 0, "which are limited"


@pytest.mark.parametrize(
    ("role", "most"), [(Role.WORKER, 64), (Role.CLIENT, 64), (Role.NEWCOMER, 64), (Role.GATEWAY, 1024), (Role.AUTH, 1024)]
)
def test_a_login_limits_subscriptions(role: Role, most: int) -> None:
    issuer = NatsIssuer(node_keys.Authority(node_keys.new_authority_seed()))
    jwt = issuer.grant("U1", node_id(1), "MESH", topics.permissions(MeshName("m"), role, node_id(1)), now=0, until=None)
    assert json.loads(base64url.decode(jwt.split(".")[1]))["nats"]["subs"] == most


def at(number: int) -> ConnectionId:
    return ConnectionId(f"S{number % 3}", number)


def test_the_oldest_of_nine_connections_ends() -> None:
    connections, node = NodeConnections(), node_id(1)
    order = list(range(20))
    random.Random(7).shuffle(order)
    ended = [connections.report(node, at(number), BEGAN + timedelta(seconds=number), now=0) for number in order]
    assert ended[:MAX_CONNECTIONS] == [None] * MAX_CONNECTIONS
    assert {one.number for one in ended if one is not None} == set(range(12)), "the 8 newest stay, in any order of the reports"
    assert connections.report(node_id(2), at(100), BEGAN, now=0) is None


def test_connections_that_ended_are_not_counted() -> None:
    connections, node = NodeConnections(), node_id(1)
    for number in range(50):
        assert connections.report(node, at(number), BEGAN + timedelta(seconds=number), now=number) is None
        assert connections.report(node, at(number), BEGAN + timedelta(seconds=number), now=number) is None, "reported again"
        if number >= 5:
            connections.close(node, at(number - 5))
    connections.forget(reported_before=48)
    for number in range(100, 106):
        assert connections.report(node, at(number), BEGAN + timedelta(seconds=number), now=100) is None


def test_what_is_remembered_is_bounded() -> None:
    connections = NodeConnections(node_id(number) for number in range(login_limits.MAX_KNOWN))
    connections.report(node_id(0), at(1), BEGAN, now=0)
    for number in range(20_000, 20_005):
        connections.report(node_id(number), at(number), BEGAN, now=100)
        connections.close(node_id(number), at(number))
    connections.forget(reported_before=-1)
    known: list[NodeId] = [node_id(number) for number in (*range(8), *range(20_000, 20_005)) if connections.knows(node_id(number))]
    assert known == [node_id(number) for number in (0, 5, 6, 7, *range(20_000, 20_005))], "those unused for longest are forgotten"
