"""A metrics service restarts while a worker is missing: the alert continues, and ends when the worker is back or was removed.

Runs on a real PostgreSQL; the last test also uses a real mesh.
"""

import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime

import msgspec
import pytest

from services.metrics.alerting import persistence, rule_watch, worker_attendance
from services.metrics.alerting.alert_state import OUTAGE_SECONDS
from services.metrics.alerting.alert_store import AlertStore, Leadership, State
from services.metrics.alerting.alerting_module import AlertingModule
from services.metrics.alerting.delivery import Delivery
from services.metrics.alerting.persistence import REMEMBERING_SECONDS, AlertPersistence
from services.metrics.alerting.rule_watch import RuleWatch
from services.metrics.alerting.rules import all_rules
from services.metrics.service import MetricsService
from services.metrics.settings import MetricsSettings
from shared.protocol import directory
from shared.protocol.directory import FORGOTTEN_AFTER, Announcement, Directory
from shared.telemetry import instruments
from shared.types import NodeId, Role
from tests.services.metrics.alerting.test_delivery import FakeChannel
from tests.services.metrics.test_service import Gateway, Worker
from tests.testnet import MESH, RunningNode, TestNet, testnet, until

STARTED = datetime(2026, 1, 2, tzinfo=UTC)
ANN, BOB, ME = NodeId("UANN"), NodeId("UBOB"), NodeId("UONE")
WELL = "\n".join(f'ai_platform_node_up{{service="{service}",node="UAAA"}} 1' for service in ("auth", "gateway", "metrics", "web"))


class RunningService:
    def __init__(self) -> None:
        self.now = STARTED.timestamp()
        self.up = {ANN, BOB}
        self.revoked: set[NodeId] = set()
        #: The leadership of the last ``Life``.
        self.opened: AbstractAsyncContextManager[Leadership] | None = None

    @property
    def moment(self) -> datetime:
        return datetime.fromtimestamp(self.now, UTC)


class Life:
    """One process lifetime of the metrics service. Its session ends with it."""

    def __init__(self, running_service: RunningService, store: AlertStore) -> None:
        self.running_service = running_service
        self.chat = FakeChannel("chat")
        self.directory = Directory(lambda: running_service.now, lambda: running_service.moment)
        self.watch = RuleWatch(self._text, lambda: running_service.now)
        self.keeper = AlertPersistence(self.watch, ME, lambda: [ME], lambda: running_service.now)
        self.keeper.delivery = Delivery([self.chat])
        self.keeper.store = store
        self.session: Leadership | None = None
        #: Called while a look waits for its text.
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    async def _text(self) -> str:
        """Return the metrics of the live nodes, as the survey does."""
        for node in self.running_service.up:
            self.directory.apply_announcement(Announcement(Role.WORKER, node, "0.1.0", STARTED), "nats")
        self.directory.tick()
        entries = self.directory.entries()
        self.watch.attendance.look(entries, self.running_service.revoked.__contains__, self.running_service.moment)
        if self.meanwhile is not None:
            await self.meanwhile()
        return "\n".join([WELL, *(f'ai_platform_node_up{{service="inference",node="{one.node}"}} 1' for one in entries if one.alive)])

    async def look(self, times: int = 1) -> None:
        for _ in range(times):
            self.running_service.now += 15
            await self.keeper.round(self.session, looks=True)
            await self.keeper.round(self.session, looks=False)

    @property
    def firing(self) -> list[tuple[str, str, float]]:
        return [(alert.rule.name, dict(alert.labels).get("node", ""), alert.since) for alert in self.watch.alert_states.firing()]

    @property
    def sent_counts(self) -> tuple[int, int]:
        """Return how many alerts and how many resolutions were sent."""
        return sum(len(notice.began) for notice in self.chat.got), sum(len(notice.ended) for notice in self.chat.got)


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[AlertStore]:
    async with AlertStore.open(postgres_url, all_rules.ALL) as opened:
        yield opened


async def restarted(running_service: RunningService, store: AlertStore) -> Life:
    if running_service.opened is not None:
        await running_service.opened.__aexit__(None, None, None)
    life = Life(running_service, store)
    running_service.opened = store.leadership()
    life.session = await running_service.opened.__aenter__()
    while not life.keeper.leads:
        await life.keeper.round(life.session, looks=False)
    return life


async def killed(running_service: RunningService, store: AlertStore) -> tuple[Life, float]:
    """Start a service and kill a worker. Returns the service, and since when the alert fires."""
    life = await restarted(running_service, store)
    await life.look(2)
    running_service.up = {BOB}
    await life.look(6)
    ((name, node, since),) = life.firing
    assert (name, node, life.sent_counts) == ("worker_gone", ANN, (1, 0))
    return life, since


async def test_alert_continues_across_a_restart_until_the_worker_is_back(store: AlertStore) -> None:
    running_service = RunningService()
    _, since = await killed(running_service, store)
    second = await restarted(running_service, store)
    await second.look(10)
    assert (second.firing, second.sent_counts) == ([("worker_gone", ANN, since)], (0, 0)), "told before"
    third = await restarted(running_service, store)
    await third.look(2)
    assert third.firing == [("worker_gone", ANN, since)]
    running_service.up = {ANN, BOB}
    await third.look()
    assert (third.firing, third.sent_counts) == ([], (0, 1))
    fourth = await restarted(running_service, store)
    await fourth.look(10)
    assert (fourth.firing, fourth.sent_counts) == ([], (0, 0))


async def test_alert_ends_when_an_administrator_revokes_the_worker(store: AlertStore) -> None:
    running_service = RunningService()
    await killed(running_service, store)
    second = await restarted(running_service, store)
    await second.look(2)
    assert [name for name, *_ in second.firing] == ["worker_gone"]
    running_service.revoked.add(ANN)
    await second.look()
    assert (second.firing, second.sent_counts) == ([], (0, 1))


async def test_alert_ends_an_hour_after_the_worker_left(store: AlertStore) -> None:
    running_service = RunningService()
    _, since = await killed(running_service, store)
    second = await restarted(running_service, store)
    await second.look()
    running_service.now = since + FORGOTTEN_AFTER.total_seconds() - 30
    await second.look()
    assert [name for name, *_ in second.firing] == ["worker_gone"]
    await second.look(2)
    assert (second.firing, second.sent_counts) == ([], (0, 1))


async def test_worker_that_dies_with_the_metrics_service_is_missed(store: AlertStore) -> None:
    running_service = RunningService()
    first = await restarted(running_service, store)
    await first.look(2)
    running_service.up = {BOB}
    running_service.now += 600
    second = await restarted(running_service, store)
    await second.look()
    began = running_service.now
    for _ in range(20):
        if not second.firing:
            await second.look()
    ((name, node, _),) = second.firing
    assert (name, node) == ("worker_gone", ANN)
    assert running_service.now - began == worker_attendance.MEETING.total_seconds() + 60, "time to meet, and a minute that the rule holds"


async def test_after_an_outage_of_hours_no_worker_is_missed_or_restored(store: AlertStore) -> None:
    running_service = RunningService()
    await killed(running_service, store)
    running_service.now += OUTAGE_SECONDS + 60
    running_service.up = set()
    second = await restarted(running_service, store)
    await second.look(20)
    assert "worker_gone" not in [name for name, *_ in second.firing]
    third = await restarted(running_service, store)
    assert third.watch.attendance.members() == {}


async def test_evaluation_without_postgresql_does_not_end_alerts_for_good(store: AlertStore) -> None:
    running_service = RunningService()
    _, since = await killed(running_service, store)
    second = Life(running_service, store)
    running_service.now += REMEMBERING_SECONDS
    await second.keeper.round(None, looks=True)
    assert (second.keeper.leads, second.firing) == (True, []), "it does not know the worker yet"
    third = await restarted(running_service, store)
    await third.look()
    assert (third.firing, third.sent_counts) == ([("worker_gone", ANN, since)], (0, 0))


async def test_workers_are_stored_only_when_they_change(store: AlertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    running_service = RunningService()
    life = await restarted(running_service, store)
    await life.look()
    written: list[list[tuple[NodeId, bool]]] = []
    write = store.write_state

    async def noted(leader: Leadership, name: State, body: bytes, now: float) -> None:
        if name is State.WORKERS:
            found = msgspec.json.decode(body, type=list[worker_attendance.AttendedWorker])
            written.append(sorted((one.node, one.gone_at is None) for one in found))
        await write(leader, name, body, now)

    monkeypatch.setattr(store, "write_state", noted)
    monkeypatch.setattr(life.keeper, "_save_after", math.inf)
    await life.look(10)
    assert written == []
    running_service.up = {BOB}
    await life.look(10)
    running_service.up = {ANN, BOB}
    await life.look(10)
    running_service.revoked = {ANN}
    await life.look(10)
    assert written == [[(ANN, False), (BOB, True)], [(ANN, True), (BOB, True)], [(BOB, True)]]


# --- on a real mesh -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def net() -> AsyncIterator[TestNet]:
    async with testnet() as running:
        yield running


def _alerts(running: RunningNode) -> AlertingModule:
    assert isinstance(running.service, MetricsService)
    return running.service._alerting


def _gone(running: RunningNode) -> list[str]:
    """The workers that the alerts report as missing."""
    return [dict(alert.labels)["node"] for alert in _alerts(running).watch.alert_states.firing() if alert.rule.name == "worker_gone"]


async def _missing_in_text(running: RunningNode) -> list[str]:
    assert isinstance(running.service, MetricsService)
    lines = (await running.service.metrics_text()).splitlines()
    return [line for line in lines if line.startswith(f"{instruments.NODE_UP.name}{{") and float(line.rpartition(" ")[2]) == 0]


async def test_restarted_service_reports_the_missing_worker_everywhere(
    net: TestNet, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rule_watch, "EVERY_SECONDS", 0.05)
    monkeypatch.setattr(persistence, "_SOON_SECONDS", 0.02)
    monkeypatch.setattr(directory, "GONE_AFTER_SECONDS", 3.0)
    monkeypatch.setattr("services.metrics.collection.mesh_survey.KEPT_SECONDS", 0.02)
    key, hours = net.server.key("metrics", Role.METRICS), [0.0]
    settings = MetricsSettings(
        node_key_file=key, port=0, prometheus_port=0, mesh=MESH, nats_url=net.server.url, database_url=postgres_url
    )  # fmt: skip

    async def start() -> RunningNode:
        running = await net.start(MetricsService, settings)
        alerts = _alerts(running)
        alerts.watch._clock = alerts._persistence._clock = lambda: time.time() + hours[0]
        return running

    _, stays, stops, dies = [await net.start(kind) for kind in (Gateway, Worker, Worker, Worker)]
    label = instruments.node_label(dies.node.id)
    first = await start()
    await until(lambda: len(first.node.directory.usable(Role.WORKER)) == 3)
    await stops.stop()
    await dies.cut()
    await until(lambda: "worker_gone" in [one.rule.name for one in _alerts(first).watch.alert_states.pending()], seconds=10)
    hours[0] += 70
    await until(lambda: _gone(first) == [label])
    await until(lambda: _is_written(first))
    await first.cut()

    second = await start()
    await until(lambda: _gone(second) == [label])
    await until(lambda: [one.node for one in second.node.directory.entries(Role.WORKER)] == [stays.node.id])
    (line,) = await _missing_in_text(second)
    assert label in line
    assert isinstance(second.service, MetricsService)
    health = await second.service._survey.health.get()
    (worker,) = [one for one in health.components if one.name == label]
    assert worker.status == "down"
    assert "without shutting down" in worker.detail
    assert _gone(second) == [label]
    await net.start(Worker, net.settings_of(dies))
    await until(lambda: _gone(second) == [])
    assert "worker_gone" in [alert.rule.name for alert in _alerts(second).watch.alert_states.ended()]


def _is_written(running: RunningNode) -> bool:
    written = _alerts(running)._persistence._written or {}
    return any(one.notified and not one.owed and one.alert.rule.name == "worker_gone" for one in written.values())
