"""The agent's loop with a store in a folder, without a database: what it makes, tests, prunes, and survives."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from features.backup.contract import BackupReport, ReportBackup
from features.backup.stack import catalog, layout, sealing, site_term
from features.backup.stack.agent import agent_schedule, backup_agent, base_backup, recovery_log_copy
from features.backup.stack.agent.backup_agent import Agent
from features.backup.stack.backup_place import BackupPlace
from features.backup.stack.layout import BackupManifest, LogPart, RestoreTests
from features.backup.stack.site_term import SiteRecord
from shared import errors
from shared.identity import node_keys
from shared.identity.node_keys import NodeKey
from shared.node.settings import NodeSettings
from shared.stores.objects import StoreUnavailable
from shared.timing.backoff import Backoff
from stack import control, secret_files
from tests.features.backup.stack.catalogs import SEGMENT, backup, moment, passed
from tests.features.backup.stack.places import brittle, make_home, make_place, open_object

OWN = SiteRecord(term=1, site="here", at=moment(0), nonce="a")


class Source:
    """A database whose log ends at the start of a segment."""

    def __init__(self, hour: int) -> None:
        self.hour = hour

    async def position(self) -> Any:
        return SimpleNamespace(at=moment(self.hour), lsn=self.hour * SEGMENT, timeline=1)


class Backups:
    """Replaces base_backup.make."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.made: list[str] = []
        self.error: errors.AimeshError | None = None
        #: Used instead of the source's times.
        self.times: dict[str, datetime] = {}

    async def make(self, place: BackupPlace, _source: object, *, label: str) -> BackupManifest:
        if self.error is not None:
            raise self.error
        made = msgspec.structs.replace(backup(self.source.hour, term=1), **self.times)
        await put_backup(place, made)
        self.made.append(made.name)
        return made


async def put_backup(place: BackupPlace, made: BackupManifest) -> None:
    name = layout.manifest_object(made.name)
    await place.store.put(name, layout.sign(name, made, place.key))


def make_agent(place: BackupPlace, source: Source | None) -> Agent:
    return Agent(place, source, OWN, NodeSettings(node_key_file=place.home.key("backup")))  # type: ignore[arg-type]


@pytest.fixture
def source() -> Source:
    return Source(3)


@pytest.fixture
def backups(source: Source, monkeypatch: pytest.MonkeyPatch) -> Backups:
    found = Backups(source)
    monkeypatch.setattr(base_backup, "make", found.make)
    return found


@pytest.fixture
def place(tmp_path: Path) -> BackupPlace:
    return make_place(tmp_path)


async def names(place: BackupPlace, prefix: str = "") -> list[str]:
    return sorted([found.name async for found in place.store.list(prefix)])


# --- backups


async def test_a_backup_is_made_when_it_is_due_and_only_then(place: BackupPlace, source: Source, backups: Backups) -> None:
    running = make_agent(place, source)
    for source.hour in (3, 4, 26, 27, 28):
        await running._maintain()
    assert backups.made == ["20261101T030000Z-1", "20261102T030000Z-1"]


async def test_a_gap_makes_a_backup_at_once_until_one_has_succeeded(place: BackupPlace, source: Source, backups: Backups) -> None:
    running = make_agent(place, source)
    await running._maintain()
    running._has_gap, backups.error = True, StoreUnavailable("away")
    source.hour = 4
    with pytest.raises(StoreUnavailable, match="away"):
        await running._maintain()
    backups.error = None
    await running._maintain()
    await running._maintain()
    assert len(backups.made) == 2


@pytest.mark.parametrize("prune", [True, False])
async def test_old_backups_go_after_a_new_one_if_the_agent_may_delete(
    tmp_path: Path, source: Source, backups: Backups, prune: bool
) -> None:
    place = make_place(tmp_path, backup_prune=prune)
    old, source.hour = backup(0), 100 * 24
    await put_backup(place, old)
    await put_backup(place, backup(92 * 24))
    for number in (1, 2):
        await recovery_log_copy.write(place, LogPart("auth", number, number), b"%d\n" % number)
    await make_agent(place, source)._maintain()
    assert (layout.manifest_object(old.name) in await names(place, "base")) is not prune
    assert len(await names(place, "log/auth")) == (1 if prune else 2)


async def test_a_stack_whose_provider_copies_the_database_has_backups_without_it(place: BackupPlace, backups: Backups) -> None:
    now = datetime.now(UTC)
    backups.times = {"started_at": now, "finished_at": now}
    running = make_agent(place, None)
    await running._maintain()
    await running._maintain()
    assert len(backups.made) == 1


async def test_damaged_objects_prevent_no_new_backup(place: BackupPlace, source: Source, backups: Backups) -> None:
    await place.store.put(layout.manifest_object(backup(1).name), b"{}")
    await place.store.put(layout.TESTS, layout.sign(layout.TESTS, passed(), NodeKey(node_keys.new_seed())))
    running = make_agent(place, source)
    await running._maintain()
    await running._maintain()
    assert running._catalog is not None
    assert [each.name for each in running._catalog.backups] == backups.made == ["20261101T030000Z-1"]
    with pytest.raises(sealing.DamagedObject, match=r"base/20261101T010000Z-1/manifest\.json is truncated"):
        await catalog.read(place.store, place.mesh)


# --- program logs


async def test_the_program_logs_of_a_day_are_copied_once(place: BackupPlace, source: Source, backups: Backups) -> None:
    place.home.log("auth").write_text("2026-10-31 one\n  more\n2026-11-01 two\n")
    place.home.log("auth").with_suffix(".log.1").write_text("2026-10-30 old\n2026-10-31 zero\n")
    place.home.log("web").write_text("2026-11-01 two\n")
    running = make_agent(place, source)
    await running._maintain()
    name = layout.program_log_object(date(2026, 10, 31), "auth")
    assert await names(place, "logs") == [name]
    assert open_object(place, name, await place.store.get(name)) == b"2026-10-31 zero\n2026-10-31 one\n  more\n"
    await running._maintain()
    await make_agent(place, source)._maintain()
    assert brittle(place).written.count(name) == 1


# --- restore tests


@pytest.fixture
def verify(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make `aicli stack verify` end with this status and output, after it has written the result into the store."""

    def end(place: BackupPlace, status: int, said: str = "", result: RestoreTests | None = None) -> None:
        async def run() -> tuple[int, str]:
            if result is not None:
                await place.store.put(layout.TESTS, layout.sign(layout.TESTS, result, place.key))
            return status, said

        monkeypatch.setattr(backup_agent, "_run_verify", run)
        monkeypatch.setattr(agent_schedule, "is_test_due", lambda *_: True)

    return end


async def after_test(place: BackupPlace, source: Source) -> Agent:
    running = make_agent(place, source)
    await running._maintain()
    await running._test()
    return running


async def test_the_result_of_a_restore_test_is_known_at_once(
    place: BackupPlace, source: Source, backups: Backups, verify: Callable[..., None]
) -> None:
    result = passed(backup(3), at=moment(4))
    verify(place, 0, result=result)
    running = await after_test(place, source)
    assert running._catalog is not None
    assert running._catalog.tests == result


async def test_a_refused_restore_test_is_a_failed_one_and_forgets_none_that_passed(
    place: BackupPlace, source: Source, backups: Backups, verify: Callable[..., None]
) -> None:
    before = passed(backup(3), at=moment(0))
    await place.store.put(layout.TESTS, layout.sign(layout.TESTS, before, place.key))
    verify(place, 2, "error: wal/1 is missing")
    running = await after_test(place, source)
    assert running._catalog is not None
    tests = running._catalog.tests
    assert tests is not None
    assert (tests.ok, tests.why, tests.passed) == (False, "error: wal/1 is missing", before.passed)


async def test_a_restore_test_that_could_not_run_is_tried_again(
    place: BackupPlace, source: Source, backups: Backups, verify: Callable[..., None]
) -> None:
    verify(place, 1, "the store does not answer")
    with pytest.raises(errors.Unavailable, match="status 1: the store does not answer"):
        await after_test(place, source)
    assert layout.TESTS not in await names(place)


# --- reports


class Mesh:
    """Records reports, and otherwise answers like a gateway that is starting."""

    def __init__(self) -> None:
        self.reports: list[BackupReport] = []

    async def call(self, _method: object, request: Any, **_: object) -> None:
        if not isinstance(request, ReportBackup):
            raise errors.NotReachable("no gateway is available")
        self.reports.append(request.report)


async def test_a_report_says_since_when_the_store_fails(place: BackupPlace, source: Source, backups: Backups) -> None:
    running, mesh = make_agent(place, source), Mesh()
    await running._report()
    running._rpc = mesh  # type: ignore[assignment]
    for is_away in (False, True, True, False):
        brittle(place).is_away = is_away
        await running._check_term()
        await running._report()
    since = [report.store_failing_since for report in mesh.reports]
    assert since[0] is since[3] is None
    assert since[1] is not None
    assert since[1] == since[2]
    assert [report.store_error for report in mesh.reports] == ["", "the store is away", "the store is away", ""]
    assert {report.to for report in mesh.reports} == {place.settings.backup_to}


# --- another site has taken over


async def take_over(place: BackupPlace) -> None:
    record = SiteRecord(term=2, site="there", at=moment(1), nonce="b")
    await place.store.put(site_term.record_name(2), layout.sign(site_term.record_name(2), record, place.key))


@contextlib.asynccontextmanager
async def running(place: BackupPlace) -> AsyncIterator[Agent]:
    """The whole agent of a stack whose provider copies the database. No node answers on the mesh."""
    node = NodeSettings(node_key_file=place.home.key("backup"), nats_url="nats://127.0.0.1:1")
    node.node_key_file.write_bytes(node_keys.new_seed())
    found, stop = Agent(place, None, await site_term.ensure_own(place), node), asyncio.Event()
    task = asyncio.create_task(found.run(stop))
    yield found
    stop.set()
    async with asyncio.timeout(10):
        await task


async def test_a_replaced_site_writes_no_backup_from_its_start(place: BackupPlace, backups: Backups) -> None:
    await site_term.ensure_own(place)
    await take_over(place)
    async with running(place) as found, asyncio.timeout(5):
        while not (found._writers and all(writer.done() for writer in found._writers)):  # noqa: ASYNC110 - no event is set
            await asyncio.sleep(0.005)
    assert backups.made == []
    assert await names(place, "base") == []


async def test_a_site_that_is_replaced_writes_nothing_from_then_on(place: BackupPlace, backups: Backups) -> None:
    async with running(place) as found:
        async with asyncio.timeout(5):
            while not backups.made:  # noqa: ASYNC110 - no event is set
                await asyncio.sleep(0.005)
        assert not any(writer.done() for writer in found._writers)
        await take_over(place)
        await found._check_term()
        await asyncio.wait(found._writers, timeout=1)
        assert all(writer.cancelled() for writer in found._writers)


async def test_a_replaced_site_stops_its_stack_and_does_not_start_again(place: BackupPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[tuple[Path, control.Order]] = []

    async def send(socket: Path, order: control.Order) -> None:
        orders.append((socket, order))

    monkeypatch.setattr(control, "send", send)
    found = Agent(place, None, await site_term.ensure_own(place), NodeSettings(node_key_file=place.home.key("backup")))
    await found._check_term()
    site_term.ensure_not_replaced(place.home)
    assert orders == []
    await take_over(place)
    await found._check_term()
    assert orders == [(place.home.control_socket, control.Stop())]
    with pytest.raises(errors.BadSettings, match="replaced by there"):
        site_term.ensure_not_replaced(place.home)
    with pytest.raises(errors.BadSettings, match="another site has taken over"):
        await found.back_up_once()


# --- the loop


async def test_failed_work_is_repeated_with_growing_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup_agent, "_BACKOFF", Backoff(0.001, 0.002))
    outcomes: list[Exception | None] = [StoreUnavailable("away"), OSError("disk"), errors.NotReachable("gone"), None]
    done = asyncio.Event()

    async def work() -> None:
        error = outcomes.pop(0)
        if not outcomes:
            done.set()
        if error is not None:
            raise error

    task = asyncio.create_task(backup_agent._repeat(3600, work, "work"))
    async with asyncio.timeout(5):
        await done.wait()
    await asyncio.sleep(0)
    assert not task.done()
    task.cancel()


async def test_work_that_became_due_is_done_at_once() -> None:
    soon, rounds = asyncio.Event(), asyncio.Semaphore(0)

    async def work() -> None:
        rounds.release()

    task = asyncio.create_task(backup_agent._repeat(3600, work, "work", soon=soon))
    async with asyncio.timeout(5):
        await rounds.acquire()
        soon.set()
        await rounds.acquire()
    task.cancel()


# --- the process


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The variables of an agent that uses the store of ``make_place``."""
    home = make_home(tmp_path / "home")
    secret_files.ensure(home)
    variables = {
        "AIMESH_HOME": str(home.root), "MESH_NAME": "home", "NODE_KEY_FILE": str(home.key("backup")), "BACKUP_TO": str(tmp_path / "store"),
        "BACKUP_RECIPIENTS": make_place(tmp_path).mesh.recipients[0],
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(backup_agent.os, "umask", lambda _: 0)
    return tmp_path


async def test_the_store_of_another_mesh_is_refused(environment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_place(environment, name="other", key=NodeKey(node_keys.new_seed()))
    await other.store.put(layout.MESH, layout.sign(layout.MESH, msgspec.structs.replace(other.mesh, mesh="theirs"), other.key))
    assert await asyncio.to_thread(backup_agent.main) == 2
    said = capsys.readouterr().err
    assert "the mesh theirs" in said
    assert "choose an empty folder or prefix" in said


def test_wrong_settings_are_refused(environment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("BACKUP_RECIPIENTS", "ssh-rsa AAAA")
    assert backup_agent.main() == 2
    assert "BACKUP_RECIPIENTS" in capsys.readouterr().err


async def test_a_second_agent_of_the_same_home_is_refused(
    environment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(backup_agent.file_lock, "hold", partial(backup_agent.file_lock.hold, patience_seconds=0))
    async with backup_agent.file_lock.hold(environment / "home" / "run" / "backup"):
        assert await asyncio.to_thread(backup_agent.main) == 2
    assert "another process uses" in capsys.readouterr().err


def test_a_day_is_over_only_in_utc() -> None:
    assert agent_schedule.day_to_copy(moment(0) - timedelta(seconds=1)) == date(2026, 10, 30)
