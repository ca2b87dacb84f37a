"""How many subscriptions each role needs, and may have."""

import pytest

from shared.node.stock_clients import nats_micro
from shared.protocol import topics
from shared.types import SERVICE_ROLES, MeshName, NodeId, Role


@pytest.mark.parametrize("role", Role)
def test_a_connection_has_room_for_what_its_role_subscribes_to(role: Role) -> None:
    rights = topics.permissions(MeshName("m"), role, NodeId("U1"))
    streams = nats_micro.max_streams(role) if role in SERVICE_ROLES else 0
    assert len(rights.subscribe) + streams <= rights.max_subscriptions == topics.MAX_SUBSCRIPTIONS[role]
    assert streams <= 512
    if role in {Role.WORKER, Role.CLIENT, Role.NEWCOMER}:
        assert rights.max_subscriptions == 64
