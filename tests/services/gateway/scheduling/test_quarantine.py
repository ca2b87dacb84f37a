"""Quarantine in a real PostgreSQL, with several gateways that restart."""

from collections.abc import AsyncIterator

import pytest

from services.gateway import store
from services.gateway.scheduling.quarantine import Quarantine, QuarantineStore
from services.gateway.scheduling.worker_records import QUARANTINE_SECONDS
from shared import errors
from shared.stores import database
from shared.telemetry import Metrics
from shared.types import NodeId
from tests.services.gateway.fakes import node_id

DISHONEST, OTHER = node_id(1), node_id(2)


class QuarantineHarness:
    def __init__(self, opened: database.Database) -> None:
        self.opened = opened
        self.metrics = Metrics("gateway")

    def gateway(self) -> Quarantine:
        return Quarantine(QuarantineStore(self.opened), self.metrics.wrong_counts, lambda: 100.0)


@pytest.fixture
async def harness(plain_url: str) -> AsyncIterator[QuarantineHarness]:
    async with store.opened(plain_url) as opened:
        yield QuarantineHarness(opened)


def left(gateway: Quarantine, node: NodeId = DISHONEST) -> float:
    return gateway.dishonest_workers.seconds_left(node, 100.0)


async def test_strikes_of_all_gateways_add_up_and_survive_restarts(harness: QuarantineHarness) -> None:
    first, second = harness.gateway(), harness.gateway()
    for gateway in (first, second, first):
        assert not left(first)
        gateway.strike(DISHONEST)
        await gateway.refresh()
    await second.refresh()
    async with harness.gateway().running() as restarted:
        for gateway in (first, second, restarted):
            assert QUARANTINE_SECONDS - 60 < left(gateway) <= QUARANTINE_SECONDS
            assert not left(gateway, OTHER)
    # Requests that started before don't extend the quarantine.
    second.strike(DISHONEST)
    await second.refresh()
    assert left(second) <= QUARANTINE_SECONDS
    assert harness.metrics.registry.get_sample_value("ai_platform_wrong_counts_total", {"node": DISHONEST}) == 4


async def test_old_strikes_expire_and_a_quarantine_ends(harness: QuarantineHarness) -> None:
    gateway = harness.gateway()
    for _ in range(2):
        gateway.report(DISHONEST)
    await gateway.refresh()
    async with harness.opened.transaction() as transaction:
        await transaction._connection.execute(
            "UPDATE worker_strikes SET struck_at = ARRAY(SELECT at - interval '1 h' FROM unnest(struck_at) AS at)"
        )
    gateway.report(DISHONEST)
    await gateway.refresh()
    assert not left(gateway)
    for _ in range(2):
        gateway.report(DISHONEST)
    await gateway.refresh()
    assert left(gateway)
    async with harness.opened.transaction() as transaction:
        await transaction._connection.execute("UPDATE worker_strikes SET quarantined_until = now()")
    await gateway.refresh()
    assert not left(gateway)
    gateway.report(DISHONEST)
    await gateway.refresh()
    assert not left(gateway), "its strikes start again"


async def test_a_pardon_applies_at_all_gateways(harness: QuarantineHarness) -> None:
    first, second = harness.gateway(), harness.gateway()
    for _ in range(3):
        first.strike(DISHONEST)
    second.strike(OTHER)
    await second.refresh()
    with pytest.raises(errors.BadRequest, match="2 workers"):
        await first.pardon(DISHONEST[:3])
    await second.refresh()
    assert left(first)
    assert left(second)
    assert await second.pardon(DISHONEST) == DISHONEST
    await first.refresh()
    assert (left(first), left(second)) == (0.0, 0.0)
    with pytest.raises(errors.NotFound, match="has strikes or is in quarantine"):
        await first.pardon(DISHONEST)
    # All strikes of the worker are forgotten, on this gateway too.
    for _ in range(2):
        first.strike(DISHONEST)
    await first.refresh()
    assert not left(first)


async def test_without_postgresql_a_gateway_counts_alone_and_saves_later(harness: QuarantineHarness) -> None:
    class Away(QuarantineStore):
        is_away = True

        async def strike(self, node: NodeId) -> None:
            if self.is_away:
                raise errors.Unavailable("PostgreSQL does not answer")
            await super().strike(node)

    away = Away(harness.opened)
    first, second = Quarantine(away, harness.metrics.wrong_counts, lambda: 100.0), harness.gateway()
    for _ in range(3):
        first.strike(DISHONEST)
    with pytest.raises(errors.Unavailable):
        await first.refresh()
    assert left(first)
    away.is_away = False
    await first.refresh()
    await second.refresh()
    assert left(first)
    assert left(second)


async def test_strikes_during_a_query_quarantine_a_worker_immediately(harness: QuarantineHarness) -> None:
    class StrikingStore(QuarantineStore):
        async def list_quarantined(self) -> dict[NodeId, float]:
            found = await super().list_quarantined()
            for _ in range(3):
                gateway.strike(DISHONEST)
            return found

    gateway = Quarantine(StrikingStore(harness.opened), harness.metrics.wrong_counts, lambda: 100.0)
    await gateway.refresh()
    assert left(gateway), "the query started before the strikes"
