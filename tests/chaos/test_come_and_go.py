"""Three processes of each service, replaced one by one under load: the first minute of ``python -m tests.chaos.come_and_go``."""

from dataclasses import replace

import pytest

from tests import tiers
from tests.chaos import come_and_go, world

#: The leases of a killed gateway expire two minutes later.
SCALE = replace(world.SHORT, lease_seconds=world.LONG.lease_seconds)


@pytest.mark.timeout(900)
async def test_replicas_come_and_go_under_load_and_nothing_is_lost() -> None:
    outcome = await come_and_go.come_and_go(SCALE, tiers.seed("COME_AND_GO_SEED"), minutes=1)
    assert outcome.violations == (), outcome
    assert outcome.calls > SCALE.clients
