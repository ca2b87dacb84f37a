"""The history during a PostgreSQL outage: the service continues, reports it, and catches up."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, cast

import asyncpg
import pytest

from services.metrics.history import history_module
from services.metrics.history.history_module import HistoryModule
from services.metrics.history.history_store import HistoryStore
from services.metrics.service import MetricsService
from services.metrics.settings import MetricsSettings
from shared import errors
from shared.api import metrics as api
from shared.node import NodeSettings
from shared.rpc import RpcCall
from shared.types import Role
from tests.servers import PostgresServer
from tests.testnet import MESH, RunningNode, TestNet, until

_NO_CALL = cast("RpcCall", None)


def _settings(net: TestNet, url: str | None, raw_hours: int = 24, migrate: Literal["on", "off"] = "on") -> MetricsSettings:
    return MetricsSettings(
        node_key_file=net.server.key("metrics", Role.METRICS),
        port=0,
        prometheus_port=0,
        mesh=MESH,
        nats_url=net.server.url,
        database_url=url,
        history_raw_hours=raw_hours,
        migrate=migrate,
    )


async def _start(net: TestNet, url: str | None, raw_hours: int = 24, migrate: Literal["on", "off"] = "on") -> RunningNode:
    return await net.start(MetricsService, cast("NodeSettings", _settings(net, url, raw_hours, migrate)))


def _history(running: RunningNode) -> HistoryModule:
    assert isinstance(running.service, MetricsService)
    return running.service._history


async def _drawn(history: HistoryModule, begin: datetime, now: datetime) -> tuple[float | None, ...]:
    request = api.GetHistory(("ai_platform_node_up",), begin, now, 15)
    (line,) = (await history.get_history(request, _NO_CALL)).lines
    return line.values


async def test_history_survives_a_postgresql_outage(
    net: TestNet, postgres: PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "AGAIN_SECONDS", 0.02)
    running = await _start(net, postgres_url)
    history = _history(running)
    now = begin = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
    history._writer._clock = lambda: now

    async def look(times: int) -> None:
        nonlocal now
        for _ in range(times):
            now += timedelta(seconds=15)
            await history._writer.look()

    def is_well() -> bool:
        return history._store is not None and not history._trouble

    await until(is_well)
    await look(4)
    await until(lambda: history._writer.waiting == 0)
    postgres.kill()
    await look(4)
    health = await running.node.health()
    (check,) = [check for check in health.checks if check.name == "postgresql"]
    assert (check.ok, check.needed) == (False, False)
    assert "gap" in check.detail
    assert "ai_platform_node_up" in await cast("MetricsService", running.service).metrics_text()
    with pytest.raises(errors.Unavailable):
        await _drawn(history, begin, now)
    assert history._writer.waiting == 4
    postgres.ensure_running()
    await until(is_well)
    await until(lambda: history._writer.waiting == 0)
    await look(1)
    await until(lambda: history._writer.waiting == 0)
    # The module may have taken a sample before the first one here.
    assert (await _drawn(history, begin, now))[1:] == (1.0,) * 8, "nothing is missing"


async def test_service_starts_without_postgresql(net: TestNet, postgres: PostgresServer, postgres_url: str) -> None:
    postgres.kill()
    try:
        running = await _start(net, postgres_url)
        history = _history(running)
        assert [(check.name, check.ok, check.needed) for check in await history.checks()] == [
            ("postgresql", False, False),
            ("history", True, False),
        ]
        assert "ai_platform_node_up" in await cast("MetricsService", running.service).metrics_text()
    finally:
        postgres.ensure_running()


@pytest.mark.parametrize(("is_set", "raw_hours"), [(False, 24), (True, 0)])
async def test_service_without_a_database_is_healthy(net: TestNet, postgres_url: str, is_set: bool, raw_hours: int) -> None:
    history = _history(await _start(net, postgres_url if is_set else None, raw_hours))
    assert await history.checks() == ()
    now = datetime.now(UTC)
    with pytest.raises(errors.NotFound, match="this mesh has no metrics history") as refused:
        await _drawn(history, now - timedelta(hours=1), now)
    assert "DATABASE_URL" in refused.value.hint


async def test_with_migrate_off_it_refuses_to_start_on_an_older_schema(net: TestNet, postgres_url: str) -> None:
    async with HistoryStore.open(postgres_url):
        pass
    connection = await asyncpg.connect(postgres_url)
    assert await connection.execute("DELETE FROM metrics.migrations WHERE number = 1") == "DELETE 1"
    await connection.close()
    running = await _start(net, None)
    settings = _settings(net, postgres_url, raw_hours=0, migrate="off")
    with pytest.raises(errors.BadSettings, match=r"too old for this version: 0001_pre_history\.sql has not run, and MIGRATE=off"):
        async with MetricsService.open(settings, running.node):
            pass


async def test_with_migrate_off_it_starts_without_postgresql(net: TestNet, tmp_path: Path) -> None:
    await _start(net, f"postgresql://nobody@/none?host={tmp_path}", migrate="off")
