"""The backup agent's report: who may send and read it, that every replica uses the newest one, and the gauges made from it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from features.backup import contract
from features.backup.auth.backup_reports import BackupReports, export
from features.backup.auth.store import StoredReport
from features.backup.contract import BackupEntry, BackupReport, BackupState, RestoreTest
from features.backup.settings import BackupStateSettings
from services.auth.service import AuthService
from services.auth.settings import AuthSettings
from shared import errors
from shared.telemetry import Metrics
from shared.types import NodeId, Peer, Role
from tests.cases import case
from tests.services.auth.surroundings import Surroundings

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
AGENT = Peer(Role.BACKUP, NodeId("U" * 56))
GAUGES = (
    "backup_report_age_seconds", "backup_age_seconds", "backup_verified_age_seconds", "backup_test_ok", "backup_store_failing_seconds",
    "wal_slot_bytes", "wal_slot_most_bytes", "recovery_log_store_behind_seconds",
)  # fmt: skip


def entry(hours_ago: float, *, verified: float | None = None) -> BackupEntry:
    verified_at = None if verified is None else NOW - timedelta(hours=verified)
    return BackupEntry(
        name=f"{hours_ago}", at=NOW - timedelta(hours=hours_ago), size_bytes=9, seconds=1.5, verified_at=verified_at
    )  # fmt: skip


def report(**changed: Any) -> BackupReport:
    return msgspec.structs.replace(BackupReport(site="here", term=3, to="s3://bucket/prefix"), **changed)


def value(metrics: Metrics, name: str, site: str | None = None) -> float | None:
    return metrics.registry.get_sample_value(f"ai_platform_{name}", {} if site is None else {"site": site})


def exported(metrics: Metrics) -> set[str]:
    return {family.name.removeprefix("ai_platform_") for family in metrics.registry.collect() if family.samples}


@pytest.fixture
def with_backups(settings: AuthSettings) -> AuthSettings:
    return msgspec.structs.replace(settings, more=(BackupStateSettings(backup_state=BackupState.ON),))


@pytest.fixture
async def replicas(with_backups: AuthSettings) -> AsyncIterator[tuple[Surroundings, Surroundings]]:
    """Two services with one database."""
    async with AsyncExitStack() as stack:
        worlds = (Surroundings(), Surroundings())
        for world in worlds:
            world.service = await stack.enter_async_context(AuthService.open(with_backups, world.as_node()))
        yield worlds


async def send(world: Surroundings, sent: BackupReport) -> None:
    await world.ask(contract.report_backup, contract.ReportBackup(sent), peer=AGENT)


async def measure(world: Surroundings) -> None:
    await reports_of(world).measure()


def reports_of(world: Surroundings) -> BackupReports:
    return world.dispatcher.find(contract.report_backup.name, AGENT).function.__self__


async def test_every_replica_shows_and_exports_the_newest_report(replicas: tuple[Surroundings, Surroundings]) -> None:
    first, second = replicas
    for world in replicas:
        before = await world.administer(contract.get_backups, contract.GetBackups())
        assert msgspec.structs.replace(before, age_seconds=None) == contract.Backups(state=BackupState.ON)
    await send(first, report(term=1))
    await send(second, report(term=2, backups=(entry(1),)))
    for world in replicas:
        found = await world.administer(contract.get_backups, contract.GetBackups())
        assert found.report == report(term=2, backups=(entry(1),))
        assert found.age_seconds is not None
        assert 0 <= found.age_seconds < 60
        await measure(world)
        assert value(world.metrics, "backup_missing") == 0
    assert value(first.metrics, "backup_age_seconds") == pytest.approx(value(second.metrics, "backup_age_seconds"), abs=60)


async def test_before_the_first_report_ages_count_from_the_start(replicas: tuple[Surroundings, Surroundings]) -> None:
    """Otherwise no alert would fire if the agent never started, or never made a backup."""
    for world in (*replicas, *replicas):
        await measure(world)
    for world in replicas:
        for gauge in GAUGES[:3]:
            age = value(world.metrics, gauge)
            assert age is not None, gauge
            assert 0 <= age < 60, gauge
        assert exported(world.metrics).isdisjoint((*GAUGES[3:], "wal_lag_seconds"))
        found = await world.administer(contract.get_backups, contract.GetBackups())
        assert (found.report, found.reported_at) == (None, None)
        assert found.age_seconds is not None, "doctor says that the agent has never reported"
        assert 0 <= found.age_seconds < 60


@pytest.mark.parametrize("state", [BackupState.OFF, BackupState.MISSING])
async def test_without_backups_there_are_no_gauges_and_no_report(settings: AuthSettings, state: BackupState) -> None:
    world = Surroundings()
    async with AuthService.open(
        msgspec.structs.replace(settings, more=(BackupStateSettings(backup_state=state),)), world.as_node()
    ) as service:
        world.service = service
        with pytest.raises(errors.BadRequest, match=f"BACKUP_STATE={state}") as refused:
            await send(world, report())
        assert "BACKUP_STATE=on" in refused.value.hint
        assert await world.administer(contract.get_backups, contract.GetBackups()) == contract.Backups(state=state)
        async with asyncio.timeout(10):
            await reports_of(world).run()
        assert exported(world.metrics).isdisjoint((*GAUGES, "wal_lag_seconds"))
        assert value(world.metrics, "backup_missing") == (state is BackupState.MISSING)


async def test_only_the_agent_reports_and_only_administrators_read(replicas: tuple[Surroundings, Surroundings]) -> None:
    world, _ = replicas
    for role in set(Role) - {Role.BACKUP}:
        with case(role), pytest.raises(errors.NotAllowed, match=r"auth\.reportBackup"):
            await world.ask(contract.report_backup, contract.ReportBackup(report()), peer=Peer(role, AGENT.node))
    with pytest.raises(errors.NotAllowed, match=r"auth\.getBackups"):
        await world.ask(contract.get_backups, contract.GetBackups(), peer=AGENT)
    await world.register()
    token = (await world.login()).access_token
    with pytest.raises(errors.NotAllowed) as refused:
        await world.ask(contract.get_backups, contract.GetBackups(), token)
    assert "administrator" in refused.value.hint
    with pytest.raises(errors.NotAuthenticated, match="needs a credential"):
        await world.ask(contract.get_backups, contract.GetBackups())


def test_a_report_with_bad_input_is_refused() -> None:
    good = msgspec.to_builtins(contract.ReportBackup(report(backups=(entry(1),))))
    assert msgspec.convert(good, contract.ReportBackup).report.backups == (entry(1),)
    a_backup = good["report"]["backups"][0]
    for wrong in (
        {"site": ""}, {"site": "s" * 201}, {"term": 0}, {"to": "t" * 1001}, {"walLagSeconds": -1}, {"walSlotBytes": -1},
        {"storeFailingSince": "2026-11-25T12:00:00"}, {"backups": [a_backup] * 101}, {"backups": [a_backup | {"sizeBytes": -1}]},
        {"lastTest": {"ok": True}}, {"replacedBy": {"site": "b", "term": 0, "at": "2026-11-25T12:00:00Z"}},
    ):  # fmt: skip
        with case(wrong), pytest.raises(msgspec.ValidationError):
            msgspec.convert({"report": good["report"] | wrong}, contract.ReportBackup)


def test_without_a_report_or_a_backup_ages_count_from_the_start() -> None:
    since, day = NOW - timedelta(days=2), 86_400
    for stored, ages in (
        (StoredReport(since=since, now=NOW), [2 * day, 2 * day, 2 * day]),
        (StoredReport(since=since, now=NOW, reported_at=NOW, report=report()), [0, 2 * day, 2 * day]),
        (StoredReport(since=since, now=NOW, reported_at=NOW, report=report(backups=(entry(24),))), [0, day, 2 * day]),
    ):
        with case(ages):
            metrics = Metrics("auth")
            export(stored, metrics)
            assert [value(metrics, gauge) for gauge in GAUGES[:3]] == ages


def test_gauges_of_a_report() -> None:
    metrics = Metrics("auth")
    full = report(
        wal_lag_seconds=7.5, wal_slot_bytes=10, wal_slot_most_bytes=100, log_behind_seconds=4.0,
        store_failing_since=NOW - timedelta(seconds=25), last_test=RestoreTest(at=NOW, ok=False, seconds=9, why="a digest differs"),
        backups=(entry(2), entry(26, verified=25), entry(50, verified=1)),
    )  # fmt: skip
    stored = StoredReport(since=NOW - timedelta(days=9), now=NOW, reported_at=NOW - timedelta(seconds=5), report=full)
    export(stored, metrics)
    assert [value(metrics, gauge) for gauge in GAUGES] == [5, 2 * 3600, 3600, 0, 25, 10, 100, 4]
    assert value(metrics, "wal_lag_seconds", "here") == 7.5
    # After a restore, the next report is from another site, so its lag is unknown. The agent's clock is ahead.
    later = report(site="far", term=4, backups=(entry(-1),))
    export(StoredReport(since=NOW, now=NOW, reported_at=NOW, report=later), metrics)
    assert [value(metrics, "wal_lag_seconds", site) for site in ("here", "far")] == [None, None]
    assert value(metrics, "backup_store_failing_seconds") == 0
    assert value(metrics, "backup_age_seconds") == 0
