"""Promoting a standby of a real PostgreSQL, up to the start of its services; other tests promote whole sites."""

import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import msgspec
import pytest

from shared.api.recovery import SiteLeaseMode
from stack import secret_files
from stack.recovery import layout
from stack.recovery.layout import LogPart, RestoreRefused
from stack.recovery.restoring.recovered_database import RecoveredDatabase
from stack.recovery.sites import replaced, site_terms
from stack.recovery.sites.site_terms import SiteAcknowledgement, SiteLeaseRecord, SiteRecord
from stack.recovery.takeover import promotion, standby
from stack.recovery.takeover.promotion import PromoteReport, PromoteStep
from tests import servers
from tests.backups import BackupMaker
from tests.stack.recovery.takeover.test_standby import Case

pytestmark = pytest.mark.timeout(90)
FIRST = SiteRecord(term=1, site="first", at=datetime.now(UTC), nonce="1")
STEPS = [
    "stop the standby", "take the term", "wait for the end of the other site", "fetch the last changes", "open the database",
    "create this site's node keys", "start the services", "run PROMOTE_COMMAND",
]  # fmt: skip


class Killed(Exception):
    """Simulates a kill -9 between two steps."""


class Promoted:
    """A standby, and what its promotion did instead of starting services."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.maker = case.maker
        self.rows: list[int] = []
        self.is_failing = False

    async def put(self, name: str, record: msgspec.Struct) -> None:
        await self.maker.store.put(name, layout.sign(name, record, self.maker.key))

    async def promote(self, *, off: bool = False, kill_after: str = "", **variables: str) -> PromoteReport:
        def show(step: PromoteStep) -> None:
            if step.what == kill_after:
                raise Killed

        return await promotion.promote(self.case.home, variables, Path.cwd(), old_site_is_off=off, show=show)

    async def revoke(self, database: RecoveredDatabase) -> None:
        connection = await asyncpg.connect(database.url)
        self.rows = [row["number"] for row in await connection.fetch("SELECT number FROM entries ORDER BY number")]
        await connection.close()
        if self.is_failing:
            raise Killed

    async def start(self, _: object) -> None:
        replaced.ensure_not_replaced(self.case.home)


@pytest.fixture
async def promoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Promoted]:
    with servers.running(servers.PostgresServer) as server:
        case = Case(BackupMaker(tmp_path / "store", server), tmp_path)
        await case.fill()
        made = Promoted(case)
        await made.put("site/1.json", FIRST)
        await made.put("site/1.lease", SiteLeaseRecord(term=1, site="first", at=FIRST.at, mode=SiteLeaseMode.ADVISORY))
        async with case.following():
            await case.until_reached((await case.maker.ship()).until)
        monkeypatch.setattr(promotion._Promotion, "_revoke", lambda _, database: made.revoke(database))
        monkeypatch.setattr(promotion, "_start_services", made.start)
        yield made


async def acknowledge(made: Promoted) -> None:
    await made.put("site/2.acknowledged", SiteAcknowledgement(site="first", at=FIRST.at, replaced_by=FIRST))


async def test_it_continues_after_a_kill_behind_each_step_and_has_the_last_commits(promoted: Promoted, tmp_path: Path) -> None:
    await acknowledge(promoted)
    await promoted.case.add(2)
    await promoted.maker.ship()  # the standby no longer runs
    home = promoted.case.home
    sent = tmp_path / "sent"
    for what in STEPS:
        promoted.is_failing = what == "open the database"
        with pytest.raises(Killed):
            await promoted.promote(kill_after=what, PROMOTE_COMMAND=f"tee {sent}")
        if promoted.is_failing:
            promoted.is_failing = False
            with pytest.raises(Killed):
                await promoted.promote(kill_after=what)
    report = await promoted.promote()
    assert promoted.rows == [1, 2]
    assert (report.term, report.site, report.command_error) == (2, "second", "")
    assert report.reached_at is not None
    assert report.reached_at >= promoted.maker.marks[-1][0]
    assert msgspec.json.decode(sent.read_bytes()) == {"site": "second", "term": 2, "url": report.url}
    assert msgspec.json.decode((home.run / "site.json").read_bytes(), type=SiteRecord).term == 2
    assert all(home.key(name).exists() for name in secret_files.NODES)
    assert [each.name async for each in promoted.maker.store.list("site/standby-")] == []


@pytest.mark.nightly("recovery")
async def test_a_site_that_does_not_answer_has_to_be_off(promoted: Promoted, monkeypatch: pytest.MonkeyPatch) -> None:
    late = [0.0]
    monkeypatch.setattr(promotion, "boot_time", lambda: late.pop() if late else site_terms.FENCE_SECONDS)
    with pytest.raises(RestoreRefused, match="the site first has not confirmed that it stopped"):
        await promoted.promote()
    assert promoted.rows == []
    assert (await promoted.promote(off=True)).term == 2


@pytest.mark.nightly("recovery")
async def test_a_strict_site_has_ended_after_a_minute(promoted: Promoted, monkeypatch: pytest.MonkeyPatch) -> None:
    await promoted.put("site/1.lease", SiteLeaseRecord(term=1, site="first", at=FIRST.at, mode=SiteLeaseMode.STRICT))
    monkeypatch.setattr(promotion, "_FENCE_LOOK_SECONDS", 0.001)
    asked: list[float] = []

    def clock() -> float:
        asked.append(0.0)
        return 10.0 * len(asked)

    monkeypatch.setattr(promotion, "boot_time", clock)
    assert (await promoted.promote()).term == 2
    assert len(asked) == 1 + site_terms.FENCE_SECONDS / 10


@pytest.mark.nightly("recovery")
async def test_another_site_that_was_faster_wins_unless_it_is_off(promoted: Promoted) -> None:
    await acknowledge(promoted)
    await promoted.put("site/2.json", msgspec.structs.replace(FIRST, term=2, site="third", nonce="2"))
    with pytest.raises(RestoreRefused, match="lost_race: the site third has taken term 2, and this one followed term 1"):
        await promoted.promote()
    facts = standby.read_facts(promoted.case.home)
    assert facts is not None, "it stays a standby"
    assert (await promoted.promote(off=True)).term == 3


@pytest.mark.nightly("recovery")
async def test_a_failing_command_is_told_and_leaves_the_site_running(promoted: Promoted) -> None:
    await acknowledge(promoted)
    report = await promoted.promote(PROMOTE_COMMAND=f"{sys.executable} -c 'import sys; sys.exit(\"no such zone\")'")
    assert report.command_error == "ended with status 1: no such zone"


@pytest.mark.nightly("recovery")
async def test_only_a_complete_standby_is_promoted(promoted: Promoted) -> None:
    facts = standby.read_facts(promoted.case.home)
    assert facts is not None
    standby.save_facts(promoted.case.home, msgspec.structs.replace(facts, backup=None))
    with pytest.raises(RestoreRefused, match="is no complete standby"):
        await promoted.promote()
    assert [each.name async for each in promoted.maker.store.list("site/2")] == [], "no term is taken"


@pytest.mark.nightly("recovery")
async def test_lines_behind_a_gap_of_the_recovery_log_are_given_up(promoted: Promoted) -> None:
    await acknowledge(promoted)
    for number in (1, 3):
        await promoted.maker.put_log("auth", number, [b"{}\n"])
    with pytest.raises(Killed):
        await promoted.promote(kill_after="open the database")
    assert (await promoted.promote()).term == 2
    assert (promoted.case.home.recovery_log / "auth.gap").exists(), "also after the second attempt, which finds no gap"
    stored = {each.name async for each in promoted.maker.store.list("log/")}
    assert LogPart("auth", 2, 1, 2).object in stored
