"""When the frames of a link are sent to the NATS server."""

from typing import Any

import pytest

from shared.identity import node_keys
from shared.protocol.wire import Reply
from shared.transports.link import EAGER_FRAMES, LocalNode
from shared.transports.nats.nats_client import NatsClient
from shared.transports.nats_link import NatsLink, NatsTransport
from shared.types import NodeId, Peer, Role
from tests.testnet import MESH


class Transport(NatsTransport):
    connected = True


@pytest.mark.parametrize(
    ("count", "left"),
    [(EAGER_FRAMES - 1, []), (EAGER_FRAMES, ["publish"])],
    ids=["fewer wait for the end of the turn", "many leave at once"],
)
async def test_many_calls_are_sent_before_the_turn_ends(count: int, left: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    transport = Transport(LocalNode(MESH, Role.METRICS, node_keys.NodeKey(node_keys.new_seed()), "1"), "nats://127.0.0.1:1")
    link = NatsLink(transport, Peer(Role.GATEWAY, NodeId("0" * 64)), 1, dialled=False)
    seen: list[str] = []

    def note(what: str) -> Any:
        return lambda *_: seen.append(what)

    monkeypatch.setattr(NatsClient, "max_payload_bytes", 1_000_000)
    monkeypatch.setattr(transport.nats, "publish", note("publish"))
    for number in range(count):
        link.send(Reply(number, b""))
    assert seen == left
