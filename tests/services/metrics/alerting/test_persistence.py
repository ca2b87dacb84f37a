"""Alerts on a real PostgreSQL: one replica leads, another takes over, all show the same; and without PostgreSQL the leader continues."""

import asyncio
import math
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from services.metrics.alerting import persistence, rule_watch, sample_window
from services.metrics.alerting.alert_state import ENDED_SECONDS, OUTAGE_SECONDS, StoredAlertState
from services.metrics.alerting.alert_store import AlertStore, Leadership
from services.metrics.alerting.alerting_module import AlertingModule
from services.metrics.alerting.persistence import AlertPersistence
from services.metrics.alerting.rule_watch import RuleWatch
from services.metrics.alerting.rules import all_rules, evaluation, objectives
from services.metrics.alerting.rules.expressions import Aggregate, Increase, walk
from services.metrics.alerting.sample_window import SampleWindow
from services.metrics.alerting.worker_attendance import WorkerAttendance
from services.metrics.export import prometheus_merge
from services.metrics.export.prometheus_merge import MetricSource
from services.metrics.settings import MetricsSettings
from shared import errors
from shared.api import alerts as api
from shared.telemetry import Metrics
from shared.types import NodeId
from tests.servers import PostgresServer
from tests.services.metrics.alerting.alert_replicas import CALL, DRIFTING, LONG_QUEUE, ONE, TWO, WELL, Mesh, Replicas
from tests.services.metrics.alerting.chat import Chat
from tests.services.web.servers import serving
from tests.testnet import until


async def test_alert_acknowledgement_and_silence_survive_a_restart(mesh: Mesh, replicas: Replicas) -> None:
    first = await replicas.start()
    mesh.text = DRIFTING
    await first.look()
    [alert] = (await first.alerts()).alerts
    await first.watch.acknowledge_alert(api.AcknowledgeAlert(alert.id), CALL)
    silence = await first.watch.silence_alerts(api.SilenceAlerts(3600, "cpu_high", {"node": "UAAA"}, 'it\0 "compiles"'), CALL)
    await first.round()

    second = await replicas.restart(first)
    assert (await second.alerts()).silences == (silence,)
    await second.look(3)
    assert second.sent_counts == (0, 0), "told before"
    [again] = (await second.alerts()).alerts
    assert (again.id, again.since, again.seen_by) == (alert.id, alert.since, "operator")
    mesh.text = WELL
    await second.look()
    assert second.sent_counts == (0, 1)

    third = await replicas.restart(second)
    await third.look()
    assert third.sent_counts == (0, 0)
    assert await third.shown() == [("ledger_drift", "over", "operator")]


async def test_hold_time_survives_a_restart(mesh: Mesh, replicas: Replicas) -> None:
    mesh.text = LONG_QUEUE
    first = await replicas.start()
    await first.look(4)
    second = await replicas.restart(first)
    await second.look()
    assert (first.sent_counts, second.sent_counts) == ((0, 0), (1, 0)), "a minute has passed since it began"


async def test_notices_queued_by_one_channel_are_sent_by_the_next_leader(mesh: Mesh, replicas: Replicas) -> None:
    mesh.text = DRIFTING
    first = await replicas.start()
    first.mail.takes = False
    await first.look(2)
    second = await replicas.restart(first)
    await second.look()
    assert (len(second.chat.got), [len(notice.began) for notice in second.mail.got]) == (0, [1])
    mesh.text = WELL
    second.chat.takes = False
    await second.look()
    third = await replicas.restart(second)
    await third.look()
    assert ([len(notice.ended) for notice in third.chat.got], len(third.mail.got)) == ([1], 0)


async def test_nothing_is_written_while_there_are_no_alerts(mesh: Mesh, replicas: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    replica = await replicas.start()
    await replica.look()
    written: list[int] = []

    async def noted(_leader: Leadership, changed: Sequence[StoredAlertState], _everything: object) -> None:
        written.append(len(changed))

    assert replica.keeper.store is not None
    monkeypatch.setattr(replica.keeper.store, "write", noted)
    await replica.look(10)
    assert written == []
    mesh.text = DRIFTING
    await replica.look()
    assert written == [1, 1], "that it began, and that it was told"


async def test_old_rows_are_deleted(mesh: Mesh, replicas: Replicas, store: AlertStore) -> None:
    mesh.text = DRIFTING
    replica = await replicas.start()
    await replica.watch.silence_alerts(api.SilenceAlerts(60), CALL)
    await replica.look()
    mesh.text = WELL
    mesh.now += 3 * ENDED_SECONDS
    await replica.look(2)
    mesh.now += ENDED_SECONDS
    await replica.look()
    assert await store.alerts(0) == []
    assert (await store.silences(0)).ids == frozenset()


async def test_alerts_start_over_after_an_hour_without_a_leader(mesh: Mesh, replicas: Replicas) -> None:
    mesh.text = LONG_QUEUE
    first = await replicas.start()
    await first.look(8)
    mesh.now += OUTAGE_SECONDS
    second = await replicas.restart(first)
    await second.look(8)
    assert (first.sent_counts, second.sent_counts) == ((1, 0), (1, 1)), "its end an hour ago, and that it began again"


# --- two replicas -------------------------------------------------------------------------------------------------------


async def test_one_replica_leads_and_both_show_the_same_alerts(mesh: Mesh, replicas: Replicas) -> None:
    one, two = await replicas.start(ONE), await replicas.start(TWO)
    mesh.text = LONG_QUEUE
    for _ in range(6):
        await one.look()
        await two.look()
    assert (one.keeper.leads, two.keeper.leads) == (True, False)
    assert (one.sent_counts, two.sent_counts) == ((1, 0), (0, 0))
    assert await one.alerts() == await two.alerts()
    mesh.text = WELL
    await one.look()
    await two.round()
    assert await two.shown() == [("queue_depth_high", "over", "")]
    assert (one.sent_counts, two.sent_counts) == ((1, 1), (0, 0))


async def test_silences_and_acknowledgements_work_on_any_replica(mesh: Mesh, replicas: Replicas) -> None:
    one, two = await replicas.start(ONE), await replicas.start(TWO)
    made = await two.watch.silence_alerts(api.SilenceAlerts(3600, "ledger_drift"), CALL)
    await two.round()
    mesh.text = DRIFTING
    await one.look(3)
    assert one.sent_counts == (0, 0), "nobody is told of it"
    await two.round()
    [alert] = (await two.alerts()).alerts
    assert alert.silenced
    await two.watch.acknowledge_alert(api.AcknowledgeAlert(alert.id), CALL)
    await two.round()
    await one.look()
    await two.round()
    assert await one.shown() == await two.shown() == [("ledger_drift", "firing", "operator")]
    await two.watch.end_silence(api.EndSilence(made.id), CALL)
    await two.round()
    await one.look()
    assert (await one.silences(), one.sent_counts) == (set(), (1, 0))


async def test_new_leader_sends_nothing_twice(mesh: Mesh, replicas: Replicas) -> None:
    one, two = await replicas.start(ONE), await replicas.start(TWO)
    mesh.text = DRIFTING
    await one.look()
    await two.round()
    await replicas.cut(one)
    await two.look(3)
    assert (two.keeper.leads, two.sent_counts) == (True, (0, 0))
    mesh.text = WELL
    await two.look()
    assert (one.sent_counts, two.sent_counts) == ((1, 0), (0, 1))


async def test_leader_that_lost_its_lock_sends_nothing(mesh: Mesh, replicas: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = await replicas.start(ONE), await replicas.start(TWO)
    await one.look()

    async def hangs_meanwhile() -> str:
        """The leader has confirmed its lock and pauses while it collects. Meanwhile the other replica leads and sends."""
        await replicas.cut(one)
        await two.look()
        return mesh.text

    mesh.text = DRIFTING
    monkeypatch.setattr(one.watch, "_text", hangs_meanwhile)
    with pytest.raises(errors.Unavailable, match="does not answer"):
        await one.look()
    monkeypatch.undo()
    assert (one.sent_counts, two.sent_counts) == ((0, 0), (1, 0))
    await replicas.reconnect(one)
    await one.look()
    assert (one.keeper.leads, one.sent_counts) == (False, (0, 0))


async def test_leader_keeps_the_lead_after_a_dropped_session_if_the_lock_is_free(mesh: Mesh, replicas: Replicas) -> None:
    one = await replicas.start(ONE)
    mesh.text = DRIFTING
    await one.look()
    await replicas.cut(one)
    await replicas.reconnect(one)
    await one.look()
    mesh.text = WELL
    await one.look()
    assert (one.keeper.leads, one.sent_counts) == (True, (1, 1))


# --- a rolling upgrade from replicas that all evaluate ----------------------------------------------------------------------


async def test_no_replica_leads_beside_an_older_version_and_its_alerts_continue(
    mesh: Mesh, replicas: Replicas, store: AlertStore, postgres_url: str
) -> None:
    before = await replicas.start(ONE)
    mesh.text = DRIFTING
    await before.look()
    # Older replicas each wrote their own node.
    admin = await asyncpg.connect(postgres_url)
    await admin.execute("UPDATE metrics.alarms SET node = 'UOLD'; DELETE FROM metrics.leader_state")
    await replicas.cut(before)

    mesh.replicas = [NodeId("UOLD")]
    new = await replicas.start(TWO)
    await new.look(2)
    assert (new.keeper.leads, await new.shown()) == (False, [("ledger_drift", "firing", "")])
    [alert] = (await new.alerts()).alerts
    await new.watch.acknowledge_alert(api.AcknowledgeAlert(alert.id), CALL)
    await new.round()
    assert await new.shown() == [("ledger_drift", "firing", "operator")]
    mesh.replicas = [TWO]
    await new.look(2)
    assert (new.keeper.leads, new.sent_counts) == (True, (0, 0)), "told by the old one"
    assert await admin.fetchval("SELECT array_agg(node) FROM metrics.alarms") == ["leader"]

    mesh.replicas = [NodeId("UOLD")]
    with pytest.raises(errors.Unavailable, match="older version"):
        await new.round()
    await admin.close()


async def test_workers_known_to_an_older_replica_are_missed(replicas: Replicas, store: AlertStore, postgres_url: str) -> None:
    admin = await asyncpg.connect(postgres_url)
    folder = Path(persistence.__file__).parents[1] / "migrations"
    insert = (folder / "0004_pre_leader.sql").read_text().partition("INSERT INTO")
    await admin.execute("SET search_path = metrics")
    at = datetime.fromtimestamp(replicas.mesh.now, UTC)
    for replica, age, gone_at in (("UOLD", 60, None), ("UNEW", 5, at)):
        await admin.execute(
            "INSERT INTO attendance VALUES ($1, 'UANN', 'punched', $2, 'why', $3)", replica, gone_at, at - timedelta(seconds=age)
        )
    await admin.execute(insert[1] + insert[2])
    await admin.close()
    one = await replicas.start(ONE)
    [member] = one.watch.attendance.members().values()
    assert (member.node, member.path, member.gone_at, member.why) == ("UANN", "punched", at, "why")


# --- the windows of rules -----------------------------------------------------------------------------------------------


class Counting:
    """A metrics service that counts requests, a gateway that measures, and a worker that reports wrong counts and crashes."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.nodes = {"UM": Metrics("metrics"), "UG": Metrics("gateway"), "UW": Metrics("inference")}
        self.looks = 0
        self._merger = prometheus_merge.Merger()

    def show(self) -> None:
        sources = [
            MetricSource(one.render(), {"service": service, "node": node})
            for (node, one), service in zip(self.nodes.items(), ("metrics", "gateway", "inference"), strict=True)
        ]
        self.mesh.text = prometheus_merge.render(self._merger.merge(sources))

    def work(self, seconds: float) -> None:
        self.mesh.now += seconds
        self.looks += 1
        metrics, gateway, worker = self.nodes.values()
        calls = seconds / 5
        metrics.completed_requests.labels(status="success", model="m").inc(calls)
        metrics.completed_requests.labels(status="error", model="m").inc(calls / 50)
        gateway.cost.labels(model="m").inc(100 * calls)
        for number in range(3):
            gateway.ttft_seconds.labels(model="m").observe(0.2 + 4 * (number == 0))
            worker.ttft_seconds.labels(model="m").observe(9)
        if self.looks % 40 == 0:
            worker.engine_restarts.labels(model="m").inc()
            gateway.wrong_counts.labels(node="UW").inc()
        self.show()


def seen_by(book: SampleWindow) -> dict[str, float]:
    """Return every growth that a rule uses."""
    return {
        f"{rule.name} {part.of.of.name} {part.of.of.where} {part.of.window} {key}": value
        for rule in all_rules.ALL
        for part in walk(rule.when)
        if isinstance(part, Aggregate) and isinstance(part.of, Increase)
        for key, value in evaluation.evaluate(part, book).items()
        if value
    }


async def test_stored_window_gives_the_same_growth_after_a_restart(mesh: Mesh, replicas: Replicas) -> None:
    counting = Counting(mesh)
    first = await replicas.start()
    throughout = SampleWindow(all_rules.ALL)
    # Rare samples for more than three days, more frequent ones in the last hours, and real intervals at the end.
    for seconds in [1800.0] * 140 + [300.0] * 60 + [60.0] * 60 + [15.0] * 20:
        counting.work(seconds)
        found_now = list(sample_window.read_samples(mesh.text, throughout.wanted))
        for book in (throughout, first.watch.sample_window):
            book.take(found_now, mesh.now)
    mesh.now += 1
    await replicas.cut(first)  # the connection may have been idle for too long
    await replicas.reconnect(first)
    await first.look()
    firing = {(one.rule.name, dict(one.labels).get("window")) for one in first.watch.alert_states.firing()}
    assert ("availability_burn", "3d") in firing

    second = await replicas.restart(first)
    counting.work(15)
    await second.round(looks=True)
    throughout.take(sample_window.read_samples(mesh.text, throughout.wanted), mesh.now)
    expected, found = seen_by(throughout), seen_by(second.watch.sample_window)
    assert set(found) == set(expected)
    assert len(found) > 30
    for what, value in expected.items():
        assert math.isclose(found[what], value, rel_tol=0.001), what
    assert {(one.rule.name, dict(one.labels).get("window")) for one in second.watch.alert_states.firing()} == firing
    assert second.sent_counts == (0, 0), "nothing fires or ends because of the restart"
    assert [rule for rule in objectives.RULES if (rule.name, dict(rule.labels)["window"]) in firing]


async def test_window_written_by_another_version_is_ignored(replicas: Replicas, postgres_url: str, mesh: Mesh) -> None:
    first = await replicas.start()
    await first.look()
    admin = await asyncpg.connect(postgres_url)
    await admin.execute("UPDATE metrics.leader_state SET body = 'something else' WHERE name = 'window'")
    await admin.close()
    second = await replicas.restart(first)
    await second.look()
    assert second.keeper.leads


# --- PostgreSQL outages -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def living(mesh: Mesh, url: str, node: NodeId = ONE, webhook: str | None = None) -> AsyncIterator[AlertingModule]:
    settings = MetricsSettings(node_key_file=Path("/nowhere"), port=0, database_url=url, alert_webhook_url=webhook)
    alerts = AlertingModule(settings, node, mesh.read, WorkerAttendance(), replicas=lambda: mesh.replicas, clock=lambda: mesh.now)
    task = asyncio.create_task(alerts.run())
    try:
        yield alerts
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persistence, "EVERY_SECONDS", 0.02)
    monkeypatch.setattr(persistence, "_SOON_SECONDS", 0.02)
    monkeypatch.setattr(persistence, "_AGAIN_SECONDS", 0.02)
    monkeypatch.setattr(rule_watch, "EVERY_SECONDS", 0.02)


@pytest.mark.usefixtures("_quick")
async def test_alert_survives_a_postgresql_outage(postgres: PostgresServer, postgres_url: str, mesh: Mesh) -> None:
    chat = Chat()
    mesh.text = DRIFTING
    async with (
        serving(chat) as hook,
        living(mesh, postgres_url, ONE, hook) as one,
    ):
        await until(lambda: one._persistence.leads)
        await until(lambda: len(chat.got) == 1)
        async with living(mesh, postgres_url, TWO, hook) as two:
            await until(two.watch.alert_states.firing)
            postgres.kill()
            try:
                await until(lambda: bool(one._persistence._trouble and two._persistence._trouble))
                mesh.now += 60
                [check] = [check for check in await one.checks() if check.name == "alerts"]
                assert (check.ok, check.needed) == (False, False)
                assert "a restart would lose silences" in check.detail
                # Without PostgreSQL, new alerts are sent once. Followers show what they read last, with its age.
                mesh.text = DRIFTING.replace("ledger_drift_micro", "ledger_drift_micro_gone")
                await until(lambda: len(chat.got) == 2)
                mesh.text, mesh.now = DRIFTING, mesh.now + 15
                await until(lambda: len(chat.got) == 3)
                ours, theirs = [await each.watch.list_alerts(api.ListAlerts(), CALL) for each in (one, two)]
                assert (ours.as_of, theirs.as_of) == (None, datetime.fromtimestamp(mesh.now - 75, UTC))
                assert [alert.state for alert in ours.alerts] == ["firing", "over"]
                assert [alert.state for alert in theirs.alerts] == ["firing"]
                made = await one.watch.silence_alerts(api.SilenceAlerts(3600, "disk_low"), CALL)
                await one.watch.acknowledge_alert(api.AcknowledgeAlert(ours.alerts[0].id), CALL)
            finally:
                postgres.ensure_running()
            await until(lambda: not one._persistence._trouble and not two._persistence._trouble)
            await until(lambda: [silence.id for silence in two.watch.alert_states.silences()] == [made.id])
            await until(lambda: [alert.seen_by for alert in two.watch.alert_states.firing()] == ["operator"])
            assert (one._persistence.leads, two._persistence.leads) == (True, False), "the last leader knows what came meanwhile"
            mesh.text = WELL
            mesh.now += 15
            await until(lambda: not one.watch.alert_states.firing())
            await until(lambda: len(chat.got) == 4)
    assert [got["status"] for got in chat.got] == ["firing", "resolved", "firing", "resolved"]


@pytest.mark.usefixtures("_quick")
async def test_service_started_without_postgresql_continues_from_the_stored_state(
    postgres: PostgresServer, postgres_url: str, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persistence, "REMEMBERING_SECONDS", 30.0)
    mesh.text = DRIFTING
    async with living(mesh, postgres_url) as before:
        await until(before.watch.alert_states.firing)
        old = await before.watch.silence_alerts(api.SilenceAlerts(3600, "cpu_high"), CALL)
        async with AlertStore.open(postgres_url, all_rules.ALL) as store:
            for _ in range(3000):
                if (await store.silences(0)).ids and await store.alerts(0):
                    break
                await asyncio.sleep(0.01)
    postgres.kill()
    try:
        async with living(mesh, postgres_url) as alerts:
            await until(lambda: "does not answer" in alerts._persistence._trouble)
            assert not alerts.watch.alert_states.firing(), "it waits for what was known before"
            mesh.now += 60
            await until(alerts.watch.alert_states.firing)
            postgres.ensure_running()
            await until(lambda: not alerts._persistence._trouble)
            assert {one.id for one in alerts.watch.alert_states.silences()} == {old.id}
            [alert] = alerts.watch.alert_states.firing()
            assert alert.since == mesh.now - 60
    finally:
        postgres.ensure_running()


async def test_without_postgresql_the_first_live_replica_takes_over(mesh: Mesh, replicas: Replicas) -> None:
    one, two = await replicas.start(ONE), await replicas.start(TWO)
    for each in (one, two):
        each.session = None
        await each.round()
    assert (one.keeper.leads, two.keeper.leads) == (True, False)
    mesh.replicas = [TWO]
    await two.round()
    assert two.keeper.leads


async def test_without_a_database_only_one_of_several_replicas_leads(mesh: Mesh) -> None:
    one, two = (
        AlertPersistence(RuleWatch(mesh.read, lambda: mesh.now), node, lambda: mesh.replicas, lambda: mesh.now, has_database=False)
        for node in (ONE, TWO)
    )
    for each in (one, two):
        await each.round(None, looks=True)
    assert (one.leads, two.leads) == (True, False)
    mesh.replicas = [TWO]
    await two.round(None, looks=True)
    assert two.leads


async def test_after_an_outage_the_previous_leader_reconnects_first(mesh: Mesh, replicas: Replicas) -> None:
    one, two = await replicas.start(ONE), await replicas.start(TWO)
    await replicas.cut(one)
    await replicas.cut(two)
    await replicas.reconnect(two)
    assert not two.keeper.leads
    await replicas.reconnect(one)
    assert one.keeper.leads
    await replicas.cut(one)
    mesh.replicas = [TWO]
    await replicas.reconnect(two)
    assert two.keeper.leads


async def test_unsaved_silence_is_kept_and_written_again(mesh: Mesh, replicas: Replicas, store: AlertStore) -> None:
    replica = await replicas.start()
    made = await replica.watch.silence_alerts(api.SilenceAlerts(3600, "cpu_high"), CALL)
    await replica.look()
    await store.delete_silences_before(mesh.now + 1e6)
    assert (await store.silences(mesh.now)).ids == frozenset()
    await replica.look()
    assert (await store.silences(mesh.now)).ids == {made.id}


async def test_service_without_a_database_is_healthy(mesh: Mesh) -> None:
    alerts = AlertingModule(MetricsSettings(node_key_file=Path("/nowhere"), port=0), ONE, mesh.read, WorkerAttendance())
    assert [(check.name, check.ok) for check in await alerts.checks()] == [("alert rules", True)]


async def test_missing_schema_privilege_is_reported(postgres: PostgresServer, postgres_url: str) -> None:
    name = f"nobody_much_{secrets.token_hex(4)}"
    admin = await asyncpg.connect(postgres_url)
    await admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
    await admin.close()
    database = postgres_url.partition("?")[0].rpartition("/")[2]
    url = postgres.server.url(name, "x").replace("/aimesh?", f"/{database}?")
    with pytest.raises(errors.BadSettings, match="denies access"):
        async with AlertStore.open(url, all_rules.ALL):
            pass
