import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from features.backup.stack import layout, site_term
from features.backup.stack.layout import RestoreRefused, StoreMesh
from features.backup.stack.part import PART
from features.backup.stack.site_term import SiteRecord
from shared import errors
from shared.identity import node_keys
from shared.identity.node_keys import NodeKey
from shared.stores import objects
from shared.stores.objects import ObjectStore, StoreUnavailable
from shared.types import MeshName
from stack import stack_home, stack_plan, up_down
from stack.stack_home import StackHome
from tests.features.backup.stack.places import make_place

KEY = NodeKey(node_keys.new_seed())
MESH = StoreMesh(format=1, mesh=MeshName("home"), system="1", keys=(KEY.id,), recipients=(), own_recipient="")


@pytest.fixture
async def store(tmp_path: Path) -> ObjectStore:
    made = objects.open_store(str(tmp_path / "store"), {})
    await site_term.take(made, MESH, KEY, site_term.new_record(1, "first"))
    return made


@pytest.fixture
def home(tmp_path: Path) -> StackHome:
    found = stack_home.locate({"AIMESH_HOME": str(tmp_path / "home")})
    stack_home.ensure_folders(found)
    return found


async def test_of_two_at_once_one_gets_the_term(store: ObjectStore) -> None:
    records = [site_term.new_record(2, name) for name in ("second", "third")]
    ends = await asyncio.gather(*(site_term.take(store, MESH, KEY, record) for record in records), return_exceptions=True)
    winner = ends.index(None)
    lost = ends[1 - winner]
    assert isinstance(lost, RestoreRefused)
    assert lost.message == f"the site {records[winner].site} has taken term 2 meanwhile"
    # After a crash, the same site claims it again.
    await site_term.take(store, MESH, KEY, records[winner])


async def test_a_term_that_was_superseded_while_the_restore_was_killed_is_lost(store: ObjectStore) -> None:
    record = site_term.new_record(2, "second")
    await site_term.take(store, MESH, KEY, record)
    await site_term.take(store, MESH, KEY, site_term.new_record(3, "later"))
    with pytest.raises(RestoreRefused, match="the site later has taken term 3 meanwhile"):
        await site_term.take(store, MESH, KEY, record)


async def test_a_store_that_forgets_what_it_confirmed(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    async def forget(_name: str, _content: bytes) -> None:
        pass

    monkeypatch.setattr(store, "put_if_absent", forget)
    with pytest.raises(StoreUnavailable, match=r"confirmed site/2\.json but does not have it"):
        await site_term.take(store, MESH, KEY, site_term.new_record(2, "second"))


async def test_only_records_count_as_terms_and_ten_is_above_nine(store: ObjectStore) -> None:
    for name in ("site/11.lease", "site/12.json.tmp", "site/standby-a.json", "site/0.json"):
        await store.put(name, b"")
    for term in (9, 10):
        await site_term.take(store, MESH, KEY, site_term.new_record(term, "later"))
    highest = await site_term.find_highest(store, MESH)
    assert highest is not None
    assert highest.term == 10


async def test_the_first_home_of_a_store_takes_the_first_term_and_keeps_it(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    own = await site_term.ensure_own(place)
    assert (own.term, await site_term.find_highest(place.store, place.mesh)) == (1, own)
    assert await site_term.ensure_own(place) == own == await site_term.read_confirmed(place)


async def test_a_home_whose_first_term_was_not_put_puts_it_at_its_next_start(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    own = site_term.new_record(1, "here")
    stack_home.write_struct(place.home.own_site, own)
    assert await site_term.ensure_own(place) == own == await site_term.find_highest(place.store, place.mesh)


async def test_a_store_that_belongs_to_another_site_is_refused(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    await site_term.ensure_own(place)
    place.home.own_site.unlink()
    with pytest.raises(errors.BadSettings, match=r"belongs to the site .* \(term 1\), and this home has no term"):
        await site_term.ensure_own(place)
    with pytest.raises(errors.BadSettings, match="has not taken this site's term yet"):
        await site_term.read_confirmed(place)


@pytest.mark.parametrize("term", [1, 2])
async def test_a_home_that_was_replaced_makes_no_backup(tmp_path: Path, term: int) -> None:
    place = make_place(tmp_path)
    await site_term.ensure_own(place)
    other = site_term.new_record(term, "rome")
    await place.store.put(site_term.record_name(term), layout.sign(site_term.record_name(term), other, place.key))
    with pytest.raises(errors.BadSettings, match=rf"rome has taken over \(term {term}, and this one has 1\)"):
        await site_term.read_confirmed(place)


async def test_a_replaced_site_does_not_start(tmp_path: Path, home: StackHome) -> None:
    site_term.ensure_not_replaced(home)
    at = datetime(2026, 11, 25, 2, 50, tzinfo=UTC)
    site_term.record_replaced(home, SiteRecord(term=2, site="rome", at=at, nonce="1"))
    before = sorted(home.root.rglob("*"))
    with pytest.raises(errors.BadSettings, match="this site was replaced by rome at 2026-11-25 02:50:00 UTC") as caught:
        await up_down.up(home, {}, tmp_path, print, lambda _settings: pytest.fail("it starts"))  # type: ignore[arg-type,return-value]
    assert "aicli stack restore latest --replace" in caught.value.hint
    assert sorted(home.root.rglob("*")) == before, "nothing was changed"


def test_an_unreadable_record_refuses_too(home: StackHome) -> None:
    (home.run / "replaced.json").write_text("{")
    with pytest.raises(errors.BadSettings, match=r"replaced\.json is damaged") as caught:
        site_term.ensure_not_replaced(home)
    assert "another site may have taken over" in caught.value.hint


def test_a_home_with_backups_and_without_its_database_starts_no_empty_one(tmp_path: Path) -> None:
    home = stack_home.locate({"AIMESH_HOME": str(tmp_path / "home")})
    stack_home.ensure_folders(home)
    server = stack_plan.postgres_of(home)
    PART.ensure_may_start(home, server)
    home.own_site.write_text("{}")
    PART.ensure_may_start(home, None)
    with pytest.raises(errors.BadSettings, match="is gone, and there are backups of it") as refusal:
        PART.ensure_may_start(home, server)
    assert "aicli stack restore latest --replace" in refusal.value.hint
    server.data.mkdir(parents=True)
    (server.data / "PG_VERSION").write_text("18")
    PART.ensure_may_start(home, server)
