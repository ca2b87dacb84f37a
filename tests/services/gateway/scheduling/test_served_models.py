"""The gateway's gauge of how many workers could serve each model."""

import asyncio
import random
from dataclasses import dataclass, field
from typing import cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.gateway.scheduling import model_coverage
from services.gateway.scheduling.dispatch import Dispatch
from services.gateway.scheduling.worker_records import STRIKES
from shared.node import Node
from shared.telemetry import Metrics
from tests.services.gateway.fakes import FakeDirectory, node_id
from tests.testnet import until


@dataclass
class FakeNode:
    directory: FakeDirectory = field(default_factory=FakeDirectory)
    metrics: Metrics = field(default_factory=lambda: Metrics("gateway"))

    def shown(self) -> dict[str, float]:
        families = {family.name: family for family in text_string_to_metric_families(self.metrics.render())}
        found = families.get("ai_platform_model_workers")
        return {} if found is None else {sample.labels["model"]: sample.value for sample in found.samples}


async def test_the_gauge_follows_workers_that_join_leave_and_are_quarantined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_coverage, "EVERY_SECONDS", 0.01)
    node = FakeNode()
    dispatch = Dispatch(node.directory, random.Random(1))
    node.directory.worker(1, "phi", "llama3")
    node.directory.worker(2, "phi")
    measuring = asyncio.create_task(model_coverage.measure(cast("Node", node), dispatch))
    try:
        await until(lambda: node.shown() == {"phi": 2, "llama3": 1})
        node.directory.mark_gone(node_id(1), "silent for 6 s")
        await until(lambda: node.shown() == {"phi": 1, "llama3": 0})
        for _ in range(STRIKES):
            dispatch.worker_stats.dishonest_workers.strike(node_id(2), dispatch.clock())
        await until(lambda: node.shown() == {"phi": 0, "llama3": 0})
    finally:
        measuring.cancel()
