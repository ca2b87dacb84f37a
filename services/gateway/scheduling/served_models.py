"""Measures how many workers could serve each model."""

import asyncio
from typing import Final

from services.gateway.scheduling.dispatch import Dispatch
from services.gateway.scheduling.worker_health.model_coverage import ModelCoverage
from shared.node import Node
from shared.types import NodeId, Role

#: The alert waits for minutes; counting a thousand workers takes milliseconds.
EVERY_SECONDS: Final = 2.0


async def measure(node: Node, dispatch: Dispatch) -> None:
    """Update the metric until canceled."""
    coverage, shown = ModelCoverage(), node.metrics.model_workers

    def is_quarantined(worker: NodeId) -> bool:
        return dispatch.worker_stats.dishonest_workers.seconds_left(worker, dispatch.clock()) > 0

    while True:
        counted = coverage.count(node.directory.entries(Role.WORKER), is_quarantined, dispatch.clock())
        shown.clear()
        for model, workers in counted.items():
            shown.labels(model=model).set(workers)
        await asyncio.sleep(EVERY_SECONDS)
