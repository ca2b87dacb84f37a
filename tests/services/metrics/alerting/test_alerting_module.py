"""Restarted and concurrent metrics services on a mesh: each alert is sent once, and so is its resolution."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import asyncpg
import pytest

from services.metrics.alerting import persistence, rule_watch
from services.metrics.alerting.alert_store import AlertStore
from services.metrics.alerting.alerting_module import AlertingModule
from services.metrics.alerting.rules import all_rules
from services.metrics.service import MetricsService
from services.metrics.settings import MetricsSettings
from shared.api import alerts as api
from shared.node import NodeSettings
from shared.rpc import RpcCall
from shared.types import Role
from tests.services.metrics.alerting.chat import Chat
from tests.services.metrics.test_service import Gateway
from tests.services.web.servers import serving
from tests.testnet import MESH, RunningNode, TestNet, testnet, until

CALL = cast("RpcCall", type("OfAnOperator", (), {"found": None})())


@pytest.fixture
async def net() -> AsyncIterator[TestNet]:
    async with testnet() as running:
        yield running


async def _start(net: TestNet, key: Path, database: str | None, webhook: str) -> RunningNode:
    settings = MetricsSettings(
        node_key_file=key,
        port=0,
        prometheus_port=0,
        mesh=MESH,
        nats_url=net.server.url,
        database_url=database,
        alert_webhook_url=webhook,
    )
    return await net.start(MetricsService, cast("NodeSettings", settings))


def _alerts(running: RunningNode) -> AlertingModule:
    assert isinstance(running.service, MetricsService)
    return running.service._alerting


async def _written(database: str) -> None:
    """Wait until the notification and the silence are stored."""
    async with AlertStore.open(database, all_rules.ALL) as store:
        for _ in range(3000):
            if any(one.notified and not one.owed for one in await store.alerts(0)) and (await store.silences(0)).ids:
                return
            await asyncio.sleep(0.01)
    raise AssertionError("it was not written within 30 s")


@pytest.mark.parametrize("with_database", [True, False])
async def test_alert_that_fires_across_a_restart_is_sent_once(
    net: TestNet, postgres_url: str, monkeypatch: pytest.MonkeyPatch, with_database: bool
) -> None:
    monkeypatch.setattr(rule_watch, "EVERY_SECONDS", 0.05)
    monkeypatch.setattr(persistence, "_SOON_SECONDS", 0.02)
    key = net.server.key("metrics", Role.METRICS)
    chat = Chat()
    async with serving(chat) as url:
        first = await _start(net, key, postgres_url if with_database else None, url)
        first.node.metrics.ledger_drift.set(5)
        await until(lambda: len(chat.got) == 1)
        made = await _alerts(first).watch.silence_alerts(api.SilenceAlerts(3600, "cpu_high"), CALL)
        if with_database:
            await _written(postgres_url)
            checks = [(check.name, check.ok) for check in await _alerts(first).checks()]
            assert checks == [("alerts", True), ("alert rules", True), ("alert webhook", True)]
        await first.cut()

        second = await _start(net, key, postgres_url if with_database else None, url)
        second.node.metrics.ledger_drift.set(5)
        alert_states = _alerts(second).watch.alert_states
        await until(alert_states.firing)
        assert [one.id for one in alert_states.silences()] == ([made.id] if with_database else [])
        second.node.metrics.ledger_drift.set(0)
        await until(alert_states.ended)
        await until(lambda: chat.got[-1]["status"] == "resolved")
    assert [got["status"] for got in chat.got] == (["firing", "resolved"] if with_database else ["firing", "firing", "resolved"])


async def test_second_service_takes_over_within_seconds(net: TestNet, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule_watch, "EVERY_SECONDS", 0.05)
    monkeypatch.setattr(persistence, "EVERY_SECONDS", 0.05)
    monkeypatch.setattr(persistence, "_SOON_SECONDS", 0.02)
    monkeypatch.setattr(persistence, "_GRACE_SECONDS", 0.0)
    chat = Chat()
    async with serving(chat) as url:
        first, second = [await _start(net, net.server.key(name, Role.METRICS), postgres_url, url) for name in ("metrics", "metrics-2")]
        await until(lambda: sum(_alerts(each)._persistence.leads for each in (first, second)) == 1)
        leader, other = (first, second) if _alerts(first)._persistence.leads else (second, first)
        await until(lambda: other.node.id in [entry.node for entry in leader.node.directory.entries(Role.METRICS) if entry.alive])
        gateway = await net.start(Gateway)
        gateway.node.metrics.ledger_drift.set(5)
        await until(lambda: len(chat.got) == 1)
        await _alerts(leader).watch.silence_alerts(api.SilenceAlerts(3600, "cpu_high"), CALL)
        await until(lambda: bool(_alerts(other).watch.alert_states.silences()))
        shown = [await _alerts(each).watch.list_alerts(api.ListAlerts(), CALL) for each in (leader, other)]
        assert [[alert.name for alert in each.alerts if alert.name == "ledger_drift"] for each in shown] == [["ledger_drift"]] * 2
        await _written(postgres_url)

        admin = await asyncpg.connect(postgres_url)
        ended = await admin.fetchval(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database"
            " WHERE locktype = 'advisory' AND granted AND datname = current_database()"
        )
        await admin.close()
        assert ended == 1
        await until(lambda: sum(_alerts(each)._persistence.leads for each in (first, second)) == 1)
        await leader.cut()
        await until(lambda: _alerts(other)._persistence.leads)
        gateway.node.metrics.ledger_drift.set(0)
        await until(lambda: chat.got[-1]["status"] == "resolved")
    assert [[alert["labels"]["alertname"] for alert in got["alerts"]] for got in chat.got] == [["ledger_drift"]] * 2
