"""Workers that disappear are missed, also across a restart of the metrics service, which saves the known workers in PostgreSQL."""

import time
from datetime import UTC, datetime

import msgspec
import pytest

from services.metrics import leader, leader_state
from services.metrics.alerting import alerting_module
from services.metrics.alerting.alerting_module import AlertingModule
from services.metrics.collection.attendance_duty import AttendanceDuty
from services.metrics.collection.worker_attendance import AttendedWorker, WorkerAttendance
from services.metrics.leader_state import Database, State
from services.metrics.service import MetricsService
from services.metrics.settings import MetricsSettings
from shared.protocol import directory
from shared.telemetry.instrument import node_label
from shared.telemetry.instruments import Instruments
from shared.types import NodeId, Role
from tests.services.metrics.replicas import Replicas
from tests.services.metrics.test_service import Gateway, Worker
from tests.testnet import MESH, RunningNode, TestNet, until

ANN = AttendedWorker(NodeId("UANN"), "punched")


def attendance(*members: AttendedWorker) -> WorkerAttendance:
    made = WorkerAttendance()
    made.recall(members, datetime.now(UTC))
    return made


async def saved(database: Database) -> list[AttendedWorker]:
    return msgspec.json.decode(await leader_state.read(database, State.WORKERS) or b"[]", type=list[AttendedWorker])


async def test_leader_saves_the_workers_when_they_change_and_the_next_one_recalls_them(database: Database, replicas: Replicas) -> None:
    replica = await replicas.start()
    known = attendance(ANN)
    duty = AttendanceDuty(known)
    await duty.round(replica.session, database, leads=False)
    assert await saved(database) == []
    await duty.round(replica.session, database, leads=True)
    assert await saved(database) == [ANN]
    next_one = WorkerAttendance()
    recalling = AttendanceDuty(next_one)
    for _ in range(2):
        await recalling.round(replica.session, database, leads=False)
    assert list(next_one.members().values()) == [ANN]
    known.look((), lambda node: True, datetime.now(UTC))
    await duty.round(replica.session, database, leads=True)
    assert await saved(database) == []


async def test_after_an_outage_of_an_hour_no_worker_is_recalled(database: Database, replicas: Replicas) -> None:
    replica = await replicas.start()
    assert replica.session is not None
    await leader_state.write(replica.session, State.WORKERS, msgspec.json.encode([ANN]), time.time() - 3700)
    found = WorkerAttendance()
    await AttendanceDuty(found).round(replica.session, database, leads=False)
    assert found.members() == {}


# --- on a real mesh -----------------------------------------------------------------------------------------------------


def _alerts(running: RunningNode) -> AlertingModule:
    assert isinstance(running.service, MetricsService)
    return running.service._alerting


def _gone(running: RunningNode) -> list[str]:
    """The workers that the alerts report as missing."""
    return [dict(one.labels)["node"] for one in _alerts(running).state.active if one.name == "worker_gone" and one.changed_at is not None]


async def _missing_in_text(running: RunningNode) -> list[str]:
    assert isinstance(running.service, MetricsService)
    lines = (await running.service.metrics_text()).splitlines()
    return [line for line in lines if line.startswith(f"{Instruments.node_up.name}{{") and float(line.rpartition(" ")[2]) == 0]


async def test_restarted_service_reports_the_missing_worker_everywhere(
    net: TestNet, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerting_module, "EVERY_SECONDS", 0.05)
    monkeypatch.setattr(leader, "EVERY_SECONDS", 0.05)
    monkeypatch.setattr(directory, "GONE_AFTER_SECONDS", 3.0)
    monkeypatch.setattr("services.metrics.collection.mesh_survey.KEPT_SECONDS", 0.02)
    key, hours = net.server.key("metrics", Role.METRICS), [0.0]
    settings = MetricsSettings(
        node_key_file=key, port=0, prometheus_port=0, mesh=MESH, nats_url=net.server.url, database_url=postgres_url
    )  # fmt: skip

    async def start() -> RunningNode:
        running = await net.start(MetricsService, settings)
        _alerts(running)._clock = lambda: time.time() + hours[0]
        return running

    _, stays, stops, dies = [await net.start(kind) for kind in (Gateway, Worker, Worker, Worker)]
    label = node_label(dies.node.id)
    first = await start()
    await until(lambda: len(first.node.directory.usable(Role.WORKER)) == 3)
    await stops.stop()
    await dies.cut()
    await until(lambda: "worker_gone" in [one.name for one in _alerts(first).state.active], seconds=10)
    hours[0] += 70
    await until(lambda: _gone(first) == [label])
    await until(lambda: "worker_gone" in [one.name for one in _alerts(first)._written.active if one.is_told])
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
    assert "worker_gone" in [one.name for one in _alerts(second).state.ended]
