from typing import ClassVar

import pytest

from shared.api import node as node_api
from shared.node.mesh_gauges import MAX_PEERS, mean_round_trips, round_trips
from shared.telemetry.instrument import node_label
from shared.transports.link import Link
from shared.types import NodeId, Peer, Role
from tests.testnet import IdleService, testnet, until


class Web(IdleService):
    """A service that does nothing."""

    role: ClassVar[Role] = Role.WEB


class Auth(Web):
    role: ClassVar[Role] = Role.AUTH


def link(node: str, path: str, seconds: float | None) -> Link:
    made = Link(Peer(Role.WORKER, NodeId(node)), transport="swarm", path=path, dialled=True, now=0.0)
    made.round_trip_seconds = seconds
    return made


def test_a_round_trip_is_measured_per_peer_and_path() -> None:
    links = [link("UWORKERTWELVE", "nats", 0.02), link("UWORKERTWELVE", "direct", 0.01), link("UOTHER", "direct", None)]
    assert round_trips(links) == {("UWORKERTWELV", "nats"): 0.02, ("UWORKERTWELV", "direct"): 0.01}


def test_the_shorter_round_trip_of_two_links_on_one_path_counts() -> None:
    assert round_trips([link("U1", "nats", 0.02), link("U1", "nats", 0.01), link("U1", "nats", 0.03)]) == {("U1", "nats"): 0.01}


@pytest.mark.parametrize("peers", [MAX_PEERS, MAX_PEERS + 50])
def test_in_a_large_mesh_only_the_first_peers_are_shown(peers: int) -> None:
    links = [link(f"U{number}", "nats", 0.01) for number in range(peers)]
    assert list(round_trips(links)) == [(node_label(each.peer.node), "nats") for each in links[:MAX_PEERS]]
    links[0].round_trip_seconds = 0.5
    assert round_trips(links)["U0", "nats"] == 0.5


def test_the_mean_round_trip_is_per_path_over_the_links_that_know_theirs() -> None:
    links = [link("U1", "nats", 0.02), link("U2", "nats", 0.04), link("U3", "nats", None), link("U1", "direct", 0.001)]
    assert mean_round_trips(links) == {("nats",): pytest.approx(0.03), ("direct",): 0.001}
    assert mean_round_trips([link("U3", "relayed", None)]) == {}


async def test_a_node_shows_its_machine_and_its_open_links() -> None:
    async with testnet() as net:
        web, auth = await net.start(Web), await net.start(Auth)
        assert "ai_platform_host_memory_total_bytes" in web.node.metrics_text()
        await until(lambda: web.node.directory.usable(Role.AUTH) != [])
        await web.node.rpc.call(node_api.read_revocations, node_api.ReadRevocations(), to=auth.node.id)
        series = f'ai_platform_peer_rtt_seconds{{path="nats",peer="{node_label(auth.node.id)}"}}'
        await until(lambda: series in web.node.metrics_text())
        assert 'ai_platform_round_trip_seconds{path="nats"}' in web.node.metrics_text()
        await auth.stop()
        await until(lambda: "ai_platform_peer_rtt_seconds{" not in web.node.metrics_text())
        assert "ai_platform_round_trip_seconds{" not in web.node.metrics_text()
