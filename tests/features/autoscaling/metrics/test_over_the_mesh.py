"""Autoscaling in a whole metrics service on a real mesh."""

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest

from features.autoscaling import instruments
from features.autoscaling.metrics import scaling_module
from features.autoscaling.metrics.scaling_module import ScalingModule
from features.autoscaling.rules import autoscaler
from features.autoscaling.settings import ScalingSettings
from services.metrics.history import kept_series
from shared.protocol.directory import ModelOffer, WorkerLoad
from shared.types import ModelName
from tests.services.metrics.test_service import Gateway, Worker, start_metrics
from tests.testnet import testnet, until


def test_the_history_has_what_the_page_draws() -> None:
    assert {instruments.WANTED_REPLICAS.name, instruments.POOL_REPLICAS.name} <= kept_series.BY_NAME.keys()


async def test_pools_follow_what_gateways_and_workers_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling_module, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(autoscaler, "DECIDE_SECONDS", 0.1)
    pools = tmp_path / "pools.yaml"
    pools.write_text("pools: [{name: l4, models: [m], min: 0, max: 5}]", encoding="utf-8")
    async with testnet() as net:
        metrics = await start_metrics(net, more=(ScalingSettings(pools_file=pools),))
        gateway = await net.start(Gateway)
        gateway.node.metrics.queue_depth.labels(model="m").set(3)
        gateway.node.metrics.oldest_wait.labels(model="m").set(2.5)
        [scaling] = [each for each in metrics.service._features.served if isinstance(each, ScalingModule)]  # type: ignore[attr-defined]
        await until(lambda: scaling.pool("l4").waiting == 3, seconds=20)
        found = scaling.pool("l4")
        assert (found.ready, found.wanted, found.oldest_seconds, found.fresh) == (0, 1, 2.5, True)
        assert 'ai_platform_wanted_replicas{pool="l4"} 1.0' in metrics.node.metrics.render()
        worker = await net.start(Worker)
        worker.node.offer(models=(ModelOffer(ModelName("m"), 4096),), load=WorkerLoad(slots=4, running=1))
        await until(lambda: scaling.pool("l4").ready == 1, seconds=40)
        answered: list[int] = []

        async def send(message: MutableMapping[str, Any]) -> None:
            answered.extend([message["status"]] if "status" in message else [])

        app = metrics.service.asgi()
        assert app is not None
        for headers in ([], [(b"authorization", b"Bearer aip_live_unknown")]):
            scope = {"type": "http", "method": "GET", "path": "/autoscale/v1/l4", "headers": headers, "client": ("127.0.0.1", 1)}
            await app(scope, None, send)  # type: ignore[arg-type]  # it receives nothing
        assert answered == [401, 503], "without auth, no key is good"
