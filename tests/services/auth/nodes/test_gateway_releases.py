"""Which gateways may answer requests, and that auth answers no others."""

from datetime import UTC, datetime

import pytest

from services.auth.nodes import gateway_releases
from services.auth.nodes.gateway_releases import GatewayReleases
from services.auth.nodes.node_store import NodeStore
from shared import errors
from shared.api import auth
from shared.protocol.directory import Announcement, ConfigReading
from shared.types import Credential, NodeId, Peer, Role
from tests.services.auth.surroundings import Surroundings
from tests.testnet import until

STARTED = datetime.now(UTC)
NEEDED = "0.4.0"


def gateway(name: str, config: ConfigReading | None = None, version: str = "0.3.0") -> Announcement:
    return Announcement(Role.GATEWAY, NodeId(name), version, STARTED, config=config)


NEW = gateway("new", ConfigReading("0.4.0", NEEDED, 7))
LATE = gateway("late", ConfigReading("0.4.0", "0.3.0", 6))
OLD = gateway("old")


@pytest.mark.parametrize(
    ("running", "known", "needed"),
    [
        pytest.param([NEW, LATE, OLD], "0.3.0", NEEDED, id="the newest configuration counts"),
        pytest.param([LATE, OLD], NEEDED, "0.3.0", id="its document is gone"),
        pytest.param([gateway("starting", ConfigReading("0.4.0"))], NEEDED, NEEDED, id="the only one is starting"),
        pytest.param([OLD], NEEDED, NEEDED, id="no gateway knows"),
        pytest.param([], NEEDED, NEEDED, id="no gateway runs"),
        pytest.param([gateway("x", ConfigReading("0.4.0", "0.5.0", 7)), NEW], "0.3.0", "0.5.0", id="one can't read it"),
    ],
)
def test_what_gateways_say_about_the_configuration(running: list[Announcement], known: str, needed: str) -> None:
    assert gateway_releases.find_needed(running, known) == needed


@pytest.mark.parametrize(
    ("name", "needed", "is_refused"),
    [
        ("aimesh gateway", "0.4.0", True), ("aimesh gateway 0.3.0", "0.4.0", True), ("aimesh gateway 0.4.0", "0.4.0", False),
        ("aimesh gateway 0.5.0", "0.4.0", False), ("", "0.4.0", True), ("aimesh gateway", "0.3.0", False),
    ],
)  # fmt: skip
def test_a_login_names_its_release(name: str, needed: str, is_refused: bool) -> None:
    assert bool(gateway_releases.refuse_login(name, needed)) is is_refused


async def identify(world: Surroundings, node: str, key: Credential) -> auth.Principal:
    return await world.ask(auth.validate_api_key, auth.ValidateApiKey(key), peer=Peer(Role.GATEWAY, NodeId(node)))


async def test_auth_answers_no_gateway_that_cannot_read_the_configuration(world: Surroundings) -> None:
    _, made = await world.user_with_key()
    key, releases = Credential(made.api_key), world.service._wiring.releases
    starting = gateway("starting", ConfigReading("0.4.0"))
    for announced in (LATE, OLD, starting):
        world.directory.apply_announcement(announced, "nats")
        assert (await identify(world, announced.node, key)).username == "john_doe"
    world.directory.apply_announcement(NEW, "nats")
    await until(lambda: releases.needed == NEEDED)
    for announced in (LATE, NEW, starting):
        assert (await identify(world, announced.node, key)).username == "john_doe"
    with pytest.raises(
        errors.PeerError, match=r"this gateway's release, 0\.3\.0, can't read the configuration, which needs 0\.4\.0"
    ) as refused:
        await identify(world, OLD.node, key)
    assert refused.value.code == "peer_failed", "release 0.3 takes no answer of before instead"
    with pytest.raises(errors.Unavailable, match="has not announced itself yet"):
        await identify(world, "unheard", key)
    assert (await world.login()).user.username == "john_doe", "others don't have to read it"


async def test_what_is_needed_outlives_auth(world: Surroundings) -> None:
    members = NodeStore(world.service._opened.database)
    assert await members.read_gateway_release() == "0.3.0"
    world.directory.apply_announcement(NEW, "nats")
    releases = world.service._wiring.releases
    await until(lambda: releases._stored == NEEDED)
    again = GatewayReleases(Surroundings().as_node(), members, lambda: None)
    await again.begin()
    assert again.needed == NEEDED


async def test_a_gateway_that_does_not_run_any_more_is_not_cut(world: Surroundings) -> None:
    releases = world.service._wiring.releases
    for announced in (OLD, NEW):
        world.directory.apply_announcement(announced, "nats")
    await until(lambda: releases.is_too_old(OLD.node))
    world.directory.mark_gone(OLD.node, "stopped")
    assert not releases.is_too_old(OLD.node)
