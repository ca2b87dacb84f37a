"""Alerts of replicas on a real PostgreSQL: sent at least once across restarts, by the leader only, and silenced on any replica."""

import asyncio
import math
from pathlib import Path
from typing import Any, cast

import pytest

from services.metrics import leader, leader_state
from services.metrics.alerting import alerting_module
from services.metrics.alerting.silence_store import MAX_SILENCES
from services.metrics.features import Built, MetricsPart
from services.metrics.service import MetricsService
from services.metrics.settings import MetricsSettings
from shared import errors, features
from shared.api import alerts as api
from shared.node import NodeSettings
from shared.types import Role
from tests.servers import PostgresServer
from tests.services.metrics.replicas import CALL, DRIFTING, LONG_QUEUE, ONE, TWO, WELL, FakeChannel, Mesh, Replica, Replicas
from tests.services.metrics.test_service import Gateway
from tests.testnet import MESH, RunningNode, TestNet, until


async def silenced(replica: Replica, name: str = "", **labels: str) -> api.Silence:
    return await replica.alerts.silence_alerts(api.SilenceAlerts(3600, name, labels, 'it "compiles"'), CALL)


async def test_alert_and_silence_survive_a_restart_and_nothing_is_sent_twice(mesh: Mesh, replicas: Replicas) -> None:
    first = await replicas.start()
    mesh.text = DRIFTING
    await first.look()
    silence = await silenced(first, "cpu_high", node="UAAA")
    second = await replicas.restart(first)
    assert (await second.listed()).silences == (silence,)
    await second.look(3)
    assert (first.sent, second.sent) == (["ledger_drift fires"], [])
    mesh.text = WELL
    await second.look()
    third = await replicas.restart(second)
    await third.look()
    assert (second.sent, third.sent, await third.shown()) == (["ledger_drift ended"], [], [("ledger_drift", "over")])


async def test_hold_time_survives_a_restart(mesh: Mesh, replicas: Replicas) -> None:
    mesh.text = LONG_QUEUE
    first = await replicas.start()
    await first.look(4)
    assert await first.shown() == [("queue_depth_high", "pending")]
    second = await replicas.restart(first)
    await second.look()
    assert (first.sent, second.sent) == ([], ["queue_depth_high fires"]), "a minute has passed since it began"


async def test_what_one_channel_did_not_send_is_sent_by_the_next_leader(mesh: Mesh, replicas: Replicas) -> None:
    mesh.text = DRIFTING
    first = await replicas.start()
    first.mail.trouble = "the server is too slow"
    await first.look(2)
    assert [(check.name, check.ok, check.detail) for check in first.alerts.checks()] == [
        ("chat", True, ""),
        ("mail", False, "the server is too slow"),
    ]
    second = await replicas.restart(first)
    await second.look()
    assert (second.chat.sent, [one.name for one in second.mail.sent]) == ([], ["ledger_drift"])


async def test_what_is_sent_while_the_state_is_written_is_written_next(
    mesh: Mesh, replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh.text = DRIFTING
    first = await replicas.start()
    first.alerts._due_at = 0.0
    await first.round()
    write = leader_state.write

    async def sends_meanwhile(*arguments: Any) -> None:
        await write(*arguments)
        await first.alerts.deliver("chat")

    monkeypatch.setattr(leader_state, "write", sends_meanwhile)
    mesh.now += 15
    first.alerts._due_at = 0.0
    await first.round()
    monkeypatch.undo()
    assert first.sent == ["ledger_drift fires"]
    first.alerts._due_at = math.inf
    await first.round()
    second = await replicas.restart(first)
    await second.look()
    assert (second.sent, len(second.mail.sent)) == ([], 1)


async def test_failed_delivery_is_tried_again_after_a_pause(mesh: Mesh, replicas: Replicas) -> None:
    mesh.text = DRIFTING
    replica = await replicas.start()
    replica.chat.trouble = "returned 500"
    await replica.look()
    replica.chat.trouble = ""
    assert await replica.alerts.deliver("chat") == 1.0
    mesh.now += 1
    assert await replica.alerts.deliver("chat") == 0.0
    assert replica.sent == ["ledger_drift fires"]
    assert await replica.alerts.deliver("chat") is None


async def test_one_replica_leads_and_both_show_the_same(mesh: Mesh, replicas: Replicas) -> None:
    one, two = await replicas.start(ONE), await replicas.start(TWO)
    mesh.text = LONG_QUEUE
    for _ in range(6):
        await one.look()
        await two.look()
    assert (one.leader.leads, two.leader.leads) == (True, False)
    assert (one.sent, two.sent) == (["queue_depth_high fires"], [])
    assert await one.listed() == await two.listed()


async def test_silence_works_on_any_replica(mesh: Mesh, replicas: Replicas) -> None:
    one, two = await replicas.start(ONE), await replicas.start(TWO)
    made = await silenced(two, "ledger_drift")
    mesh.text = DRIFTING
    await one.look(3)
    assert one.sent == [], "nobody is told of it"
    await two.round()
    assert [alert.silenced for alert in (await two.listed()).alerts] == [True]
    await two.alerts.end_silence(api.EndSilence(made.id), CALL)
    await one.look()
    assert (await one.silences(), one.sent) == ([], ["ledger_drift fires"])
    with pytest.raises(errors.NotFound, match="no silence"):
        await one.alerts.end_silence(api.EndSilence(made.id), CALL)


async def test_leader_that_lost_its_lock_sends_nothing(mesh: Mesh, replicas: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = await replicas.start(ONE), await replicas.start(TWO)
    await one.look()

    async def hangs_meanwhile(_families: object) -> str:
        """The leader has confirmed its lock and pauses while it collects. Meanwhile the other replica leads and sends."""
        await replicas.cut(one)
        await two.look()
        return mesh.text

    mesh.text = DRIFTING
    monkeypatch.setattr(one.alerts, "_collect", hangs_meanwhile)
    with pytest.raises(errors.Unavailable, match="does not answer"):
        await one.look()
    assert await one.alerts.deliver("chat") is None
    monkeypatch.undo()
    assert (one.sent, two.sent) == ([], ["ledger_drift fires"])
    await replicas.reconnect(one)
    await one.look()
    assert (one.leader.leads, one.sent) == (False, [])


async def test_leader_without_postgresql_keeps_what_was_stored(mesh: Mesh, replicas: Replicas) -> None:
    """A process that started while PostgreSQL was down led in memory. What it did not know is neither lost nor sent again."""
    mesh.text = DRIFTING
    first = await replicas.start()
    await first.look()
    await replicas.cut(first)
    second = await replicas.start(TWO)
    await replicas.cut(second)
    second.session, second.leader.leads, second.alerts._leads, second.alerts._has_loaded = None, True, True, False
    second.alerts.state = alerting_module.NoticeState()
    await replicas.reconnect(second)
    mesh.text = WELL
    await second.look()
    assert second.sent == ["ledger_drift ended"]


async def test_without_a_database_silences_are_in_memory(mesh: Mesh) -> None:
    replica = Replica(mesh, None)
    made = await silenced(replica, "ledger_drift")
    mesh.text = DRIFTING
    await replica.look()
    assert (await replica.silences(), replica.sent) == ([made.id], [])
    mesh.now += 3600
    await replica.look()
    assert (await replica.silences(), replica.sent) == ([], ["ledger_drift fires"])


async def test_a_silence_for_an_unknown_alert_is_refused(mesh: Mesh) -> None:
    with pytest.raises(errors.BadRequest, match="no alert named 'no_such'"):
        await Replica(mesh, None).alerts.silence_alerts(api.SilenceAlerts(60, "no_such"), CALL)


async def test_silences_are_bounded(mesh: Mesh) -> None:
    replica = Replica(mesh, None)
    for _ in range(MAX_SILENCES):
        await silenced(replica)
    with pytest.raises(errors.BadRequest, match="too many"):
        await silenced(replica)


# --- services on a mesh -------------------------------------------------------------------------------------------------


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerting_module, "EVERY_SECONDS", 0.05)
    monkeypatch.setattr(leader, "EVERY_SECONDS", 0.05)
    monkeypatch.setattr(leader, "_AGAIN_SECONDS", 0.02)
    monkeypatch.setattr(leader, "_GRACE_SECONDS", 0.0)


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> FakeChannel:
    """The channel of a feature of the test's own."""
    made = FakeChannel("chat")
    own = {"chats": MetricsPart(lambda _: Built(channels=[made]))}
    real = features.parts
    monkeypatch.setattr(features, "parts", lambda place, *kind: own if place == "metrics.part" else real(place, *kind))
    return made


def told(chat: FakeChannel) -> list[str]:
    return ["firing" if one.ended is None else "resolved" for one in chat.sent]


async def start(net: TestNet, key: Path, database: str | None) -> RunningNode:
    settings = MetricsSettings(node_key_file=key, port=0, prometheus_port=0, mesh=MESH, nats_url=net.server.url, database_url=database)
    return await net.start(MetricsService, cast("NodeSettings", settings))


def service(running: RunningNode) -> MetricsService:
    assert isinstance(running.service, MetricsService)
    return running.service


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("with_database", [True, False])
async def test_alert_that_fires_across_a_restart_is_sent_once(
    net: TestNet, postgres_url: str, chat: FakeChannel, monkeypatch: pytest.MonkeyPatch, with_database: bool
) -> None:
    key = net.server.key("metrics", Role.METRICS)
    for number in (1, 2):
        monkeypatch.setattr(alerting_module, "EVERY_SECONDS", 3600.0)
        running = await start(net, key, postgres_url if with_database else None)
        running.node.metrics.ledger_drift.set(5)
        monkeypatch.setattr(alerting_module, "EVERY_SECONDS", 0.05)
        alerts = service(running)._alerting
        alerts._due_at = 0.0
        await until(lambda alerts=alerts: any(one.is_told and not one.owed for one in alerts._written.active))
        if number == 1:
            await running.cut()
    running.node.metrics.ledger_drift.set(0)
    await until(lambda: told(chat)[-1] == "resolved")
    if with_database:
        assert [(check.name, check.ok) for check in await service(running).checks()][-2:] == [("alerts", True), ("chat", True)]
    assert told(chat) == (["firing", "resolved"] if with_database else ["firing", "firing", "resolved"])


@pytest.mark.usefixtures("_quick")
async def test_second_service_takes_over_when_the_leader_dies(net: TestNet, postgres_url: str, chat: FakeChannel) -> None:
    both = [await start(net, net.server.key(name, Role.METRICS), postgres_url) for name in ("metrics", "metrics-2")]
    await until(lambda: sum(service(each)._leader.leads for each in both) == 1)
    dies, stays = both if service(both[0])._leader.leads else both[::-1]
    gateway = await net.start(Gateway)
    gateway.node.metrics.ledger_drift.set(5)
    await until(lambda: len(chat.sent) == 1)
    await until(lambda: any(one.is_told and not one.owed for one in service(stays)._alerting.state.active))
    await dies.cut()
    await until(lambda: service(stays)._leader.leads)
    gateway.node.metrics.ledger_drift.set(0)
    await until(lambda: told(chat)[-1] == "resolved")
    assert [one.name for one in chat.sent] == ["ledger_drift"] * 2


@pytest.mark.usefixtures("_quick")
async def test_alerts_are_sent_while_postgresql_is_down(
    net: TestNet, postgres: PostgresServer, postgres_url: str, chat: FakeChannel
) -> None:
    running = await start(net, net.server.key("metrics", Role.METRICS), postgres_url)
    found = service(running)
    await until(lambda: found._leader.leads)
    postgres.kill()
    try:
        await until(lambda: bool(found._leader._trouble))
        [check] = found._leader.checks()
        assert (check.ok, check.needed) == (False, False)
        assert "a restart would lose what was sent" in check.detail
        running.node.metrics.ledger_drift.set(5)
        await until(lambda: len(chat.sent) == 1)
        with pytest.raises(errors.Unavailable, match="stores the silences"):
            await found._alerting.silence_alerts(api.SilenceAlerts(60), CALL)
    finally:
        await asyncio.to_thread(postgres.ensure_running)
    await until(lambda: not found._leader._trouble)
    running.node.metrics.ledger_drift.set(0)
    await until(lambda: told(chat)[-1] == "resolved")
    assert told(chat) == ["firing", "resolved"]
