"""Why a node cannot be reached over NATS: in its own health, and in what the other nodes hear about it."""

import pytest

from shared import errors
from shared.node.member import Node
from shared.transports.link import Peer
from shared.types import Role
from tests.shared.node.test_mesh_gauges import Auth, Web
from tests.testnet import testnet, until


async def nats_detail(node: Node) -> str:
    [check] = [check for check in (await node.health()).checks if check.name == "NATS"]
    return "" if check.ok else check.detail


async def test_a_removed_key_is_named_in_the_health_check() -> None:
    async with testnet() as net:
        web = await net.start(Web)
        assert (await web.node.health()).ready
        net.server.remove(web.node.id)
        await until(lambda: web.node.node_transports.faults() != "" and "refused" in web.node.node_transports.faults(), seconds=20)
        assert "refused this node's key" in await nats_detail(web.node)
        assert "aicli admin nodes refusals" in await nats_detail(web.node)
        assert not (await web.node.health()).ready
        nats = web.node.node_transports.nats
        assert nats is not None
        with pytest.raises(errors.NotReachable, match="refused this node's key") as refused:
            await nats.dial(Peer(Role.AUTH, web.node.id))
        assert "aicli admin nodes refusals" in refused.value.hint


async def test_a_node_stays_ready_without_the_nats_server_that_all_share() -> None:
    async with testnet() as net:
        web = await net.start(Web)
        assert (await web.node.health()).ready
        net.server.kill()
        await until(lambda: web.node.node_transports.faults() != "")
        assert (await web.node.health()).ready
        assert await nats_detail(web.node) != ""
        [nats] = [each for each in await web.node.dependencies() if each.name == "NATS"]
        assert nats.state == "failing"
        assert nats.last_success is not None


async def test_a_node_without_permission_to_receive_reports_it_to_others() -> None:
    async with testnet() as net:
        web, auth = await net.start(Web), await net.start(Auth)
        await until(lambda: auth.node.directory.find(web.node.id) is not None, seconds=10)
        users = net.server.folder / "users.conf"
        users.write_text(users.read_text().replace(f'"aimesh.test.web.{web.node.id}.*.*"', '"nothing"'))
        net.server.reload()

        def told() -> str:
            entry = auth.node.directory.find(web.node.id)
            return "" if entry is None else entry.announcement.trouble

        await until(lambda: "not allowed to receive" in told(), seconds=20)
        assert not (await web.node.health()).ready


async def test_what_a_service_warns_of_is_reported_to_others() -> None:
    async with testnet() as net:
        web, auth = await net.start(Web), await net.start(Auth)
        web.node.offer(warning="the GPU is not used")

        def told() -> str:
            entry = auth.node.directory.find(web.node.id)
            return "unknown" if entry is None else entry.announcement.warning

        await until(lambda: told() == "the GPU is not used", seconds=20)
        web.node.offer()
        await until(lambda: told() == "", seconds=20)
