"""A standby of a real PostgreSQL, and its behavior when the store cannot be followed; other tests run the commands on whole stacks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from shared import errors
from stack import settings, stack_home
from stack.recovery import layout, sealing
from stack.recovery.layout import RestoreRefused, Segment
from stack.recovery.sites import replaced, site_claim
from stack.recovery.sites.site_terms import SiteRecord
from stack.recovery.takeover import standby, standby_plan
from stack.recovery.takeover.standby_plan import StandbyRecord
from tests import servers
from tests.backups import SEGMENT, BackupMaker
from tests.stacks import until

pytestmark = pytest.mark.timeout(60)


class Case:
    """A site whose log is in a store, and the home of another site."""

    def __init__(self, maker: BackupMaker, folder: Path) -> None:
        self.maker = maker
        self.home = stack_home.locate({"AIMESH_HOME": str(folder / "aimesh")})
        self.identity = folder / "identity"
        self.identity.write_text(f"# signed by: {maker.key.id}\n{maker.identity}\n")
        self.said: list[str] = []

    async def fill(self) -> None:
        await self.maker.begin()
        await self.maker.run("CREATE TABLE entries (number bigint)", database="aimesh")
        await self.add(1)
        await self.back_up()

    async def back_up(self) -> None:
        secrets = {"secrets/recovery.nk": self.maker.key.seed, "secrets/backup_identity": self.maker.own_identity.encode()}
        recorded = f"MESH_NAME=home\nSITE_NAME=first\nPROMOTE_COMMAND=old\nBACKUP_RECIPIENTS={self.maker.recipients[0]}\n"
        await self.maker.base(secrets=secrets, files={"stack.env": recorded.encode()})

    async def add(self, number: int) -> None:
        await self.maker.run(f"INSERT INTO entries VALUES ({number})", database="aimesh")

    async def record(self) -> StandbyRecord:
        name = standby_plan.record_name("second")
        return layout.read_signed(name, await self.maker.store.get(name), StandbyRecord, {self.maker.key.id})

    async def run(self, *, replaces: bool = False) -> None:
        shown = standby.StandbyOutput(lambda *_: None, self.said.append)
        environment = {"SITE_NAME": "second", "BACKUP_SHIP_SECONDS": "1"}
        await standby.run(self.home, str(self.maker.folder), self.identity, replaces=replaces, environment=environment, shown=shown)

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.run())
        try:
            yield
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def until_reached(self, moment: datetime) -> StandbyRecord:
        async def has_reached() -> StandbyRecord | None:
            with contextlib.suppress(errors.NotFound):
                found = await self.record()
                return found if found.until is not None and found.until >= moment else None
            return None

        return await until(has_reached, seconds=20, what=f"the standby is as of {moment}; it said {self.said}")


async def segments_of(maker: BackupMaker) -> list[Segment]:
    """Return the segments on the primary's disk."""
    names = [path.name for path in (maker.server.server.data / "pg_wal").iterdir()]
    return [each for name in names if (each := layout.parse_segment(f"wal/{name[:8]}/{name}.zst.age", SEGMENT)) is not None]


@pytest.fixture
def server() -> Iterator[servers.PostgresServer]:
    with servers.running(servers.PostgresServer) as running:
        yield running


@pytest.fixture
async def case(server: servers.PostgresServer, tmp_path: Path) -> Case:
    made = Case(BackupMaker(tmp_path / "store", server), tmp_path)
    await made.fill()
    return made


@pytest.mark.nightly("recovery")
async def test_an_unfinished_segment_is_replayed_as_it_grows(case: Case) -> None:
    async with case.following():
        for number in (2, 3, 4):
            await case.add(number)
            state = await case.maker.ship()
            reached = await case.until_reached(state.until)
            assert reached.lsn >= state.lsn
        await case.maker.run("SELECT pg_switch_wal()", database="aimesh")
        await case.add(5)
        state = await case.maker.ship()
        await case.until_reached(state.until)
    log = (case.home.postgres / "recovery.log").read_text()
    assert "PANIC" not in log
    assert case.said


@pytest.mark.nightly("recovery")
async def test_a_stopped_standby_continues_without_a_new_backup(case: Case) -> None:
    async with case.following():
        await case.until_reached((await case.maker.ship()).until)
    await case.add(2)
    facts = standby.read_facts(case.home)
    assert facts is not None
    (case.maker.folder / layout.part_object(str(facts.backup), layout.DATA)).unlink()
    async with case.following():
        await case.until_reached((await case.maker.ship()).until)


@pytest.mark.nightly("recovery")
async def test_behind_a_gap_it_begins_again_with_the_newest_backup(case: Case) -> None:
    async with case.following():
        await case.until_reached((await case.maker.ship()).until)
        await case.maker.run("SELECT pg_switch_wal()", "CREATE TABLE more ()", "SELECT pg_switch_wal()", database="aimesh")
        await case.add(2)
        case.maker.shipped |= {min(each for each in await segments_of(case.maker) if each.number * SEGMENT >= case.maker.marks[-1][1])}
        await case.back_up()
        await case.until_reached((await case.maker.ship()).until)
    assert any("the newest backup is fetched" in each for each in case.said), case.said


@pytest.mark.nightly("recovery")
async def test_a_standby_is_refused_in_a_home_with_something_and_where_the_mesh_is(case: Case) -> None:
    case.home.root.mkdir()
    (case.home.root / "stack.env").write_text("MESH_NAME=home\n")
    with pytest.raises(RestoreRefused, match="is not empty"):
        await case.run()
    owner = SiteRecord(term=3, site="second", at=datetime.now(UTC), nonce="a")
    await case.maker.store.put("site/3.json", layout.sign("site/3.json", owner, case.maker.key))
    case.home.run.mkdir()
    site_claim.save(case.home, owner)
    with pytest.raises(RestoreRefused, match="owns the mesh, in term 3"):
        await case.run(replaces=True)
    case.identity.write_text(f"{sealing.new_identity()}\n")
    site_claim.save(case.home, msgspec.structs.replace(owner, term=2))
    with pytest.raises(RestoreRefused, match="this identity does not open the backup"):
        await case.run(replaces=True)
    assert (case.home.root / "stack.env").read_text() == "MESH_NAME=home\nSITE_TERM=2\n"


@pytest.mark.nightly("recovery")
async def test_the_old_home_is_kept_and_the_settings_of_this_site_win(case: Case) -> None:
    case.home.root.mkdir()
    (case.home.root / "mine").write_text("kept")
    task = asyncio.create_task(case.run(replaces=True))
    await case.until_reached((await case.maker.ship()).until)
    with pytest.raises(RestoreRefused, match="is kept up to date by process"):
        await case.run()
    with pytest.raises(errors.BadSettings, match="is a standby of another site"):
        replaced.ensure_not_replaced(case.home)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    (old,) = case.home.root.parent.glob("aimesh.before-restore-*")
    assert (old / "mine").read_text() == "kept"
    recorded = settings.read_recorded(case.home)
    assert (recorded["SITE_NAME"], recorded["BACKUP_TO"]) == ("second", str(case.maker.folder))
    assert "PROMOTE_COMMAND" not in recorded, "that of the other site"
