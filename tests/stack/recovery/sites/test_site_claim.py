import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from shared.identity import node_keys
from shared.identity.node_keys import NodeKey
from shared.stores import objects
from shared.stores.objects import ObjectStore
from shared.types import MeshName
from stack.recovery import layout
from stack.recovery.layout import RestoreRefused, StoreMesh
from stack.recovery.sites import site_claim
from stack.recovery.sites.site_terms import SiteRecord

KEY = NodeKey(node_keys.new_seed())
MESH = StoreMesh(format=1, mesh=MeshName("home"), system="1", keys=(KEY.id,), recipients=(), own_recipient="")


@pytest.fixture
async def store(tmp_path: Path) -> ObjectStore:
    made = objects.open_store(str(tmp_path), {})
    first = SiteRecord(term=1, site="first", at=datetime(2026, 11, 25, tzinfo=UTC), nonce="1")
    await made.put("site/1.json", layout.sign("site/1.json", first, KEY))
    return made


async def test_of_two_at_once_one_gets_the_term(store: ObjectStore) -> None:
    records = [await site_claim.plan_record(store, MESH, {"SITE_NAME": name}, 1) for name in ("second", "third")]
    assert {(record.term, record.previous) for record in records} == {(2, "first")}
    ends = await asyncio.gather(*(site_claim.take(store, MESH, KEY, record) for record in records), return_exceptions=True)
    winner = ends.index(None)
    lost = ends[1 - winner]
    assert isinstance(lost, RestoreRefused)
    assert lost.message == f"lost_race: the site {records[winner].site} has taken term 2 meanwhile"
    # After a crash, the same site claims it again.
    await site_claim.take(store, MESH, KEY, records[winner])


async def test_a_term_that_was_superseded_while_the_restore_was_killed_is_lost(store: ObjectStore) -> None:
    record = await site_claim.plan_record(store, MESH, {}, 1)
    await site_claim.take(store, MESH, KEY, record)
    await site_claim.take(store, MESH, KEY, await site_claim.plan_record(store, MESH, {"SITE_NAME": "later"}, 1))
    with pytest.raises(RestoreRefused, match="the site later has taken term 3 meanwhile"):
        await site_claim.take(store, MESH, KEY, record)


async def test_a_store_without_terms_continues_from_the_backup(tmp_path: Path) -> None:
    assert (await site_claim.plan_record(objects.open_store(str(tmp_path), {}), MESH, {}, 4)).term == 5
