"""An item of background work that fails ends nothing: it is logged, counted and put aside, and one replica at a time tries it again."""

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from services.gateway import store
from services.gateway.rpc_api.deferred_rpc import DeferredRpc
from shared import errors
from shared.api import deferral as api
from shared.background import items
from shared.background.deferred_rows import DeferredRows
from shared.background.item_kinds import COUNTED_ELSEWHERE, MONEY, ItemKind
from shared.background.items import BackgroundItems, TakenItem
from shared.rpc import RpcCall
from shared.rpc.audit_reporting import AuditReporting
from shared.stores.database import Database
from shared.telemetry import Metrics
from tests.services.gateway.fakes import PERSON
from tests.services.gateway.log_lines import Lines

KEPT = [kind for kind in ItemKind if kind not in COUNTED_ELSEWHERE]


class Site:
    """One service whose item ``odd`` fails."""

    def __init__(self, opened: Database, url: str) -> None:
        self.url, self.rows, self.metrics = url, DeferredRows(opened, "gateway"), Metrics("gateway")
        self.items = BackgroundItems(self.rows, self.metrics)
        self.handled: list[str] = []
        self.error: Exception | None = ValueError("the row of ada: sk-secret")

    async def handle(self, item: str) -> None:
        await asyncio.sleep(0)
        self.handled.append(item)
        if item == "odd" and self.error is not None:
            raise self.error

    async def round(self, kind: ItemKind = ItemKind.ERASURE) -> list[str]:
        self.handled.clear()
        await self.items.each(kind, ["first", "odd", "last"], self.handle, lambda item: item)
        return list(self.handled)

    def value(self, name: str, kind: ItemKind) -> float | None:
        return self.metrics.registry.get_sample_value(f"ai_platform_{name}", {"kind": kind.value})

    async def execute(self, sql: str) -> None:
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(f"SET search_path = gateway; {sql}")
        finally:
            await connection.close()

    async def let_it_be_due(self) -> None:
        await self.execute("UPDATE deferred_items SET next_at = now() WHERE next_at IS NOT NULL")


@pytest.fixture
async def site(postgres_url: str) -> AsyncIterator[Site]:
    async with store.opened(postgres_url) as opened:
        yield Site(opened, postgres_url)


@pytest.mark.parametrize("kind", ItemKind)
async def test_an_odd_item_of_any_kind_ends_nothing(site: Site, kind: ItemKind, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Lines(monkeypatch)
    assert await site.round(kind) == ["first", "odd", "last"]
    assert site.value("item_failures_total", kind) == 1
    found = lines.of("an item failed") if kind in COUNTED_ELSEWHERE else lines.of("an item failed and was put aside")
    assert len(found) == 1
    assert "'item': 'odd'" in found[0]
    kept = await site.rows.list(None, 10)
    assert [(one.kind, one.id, one.tries) for one in kept] == ([] if kind in COUNTED_ELSEWHERE else [(kind, "odd", 1)])
    for text in (str(found), *(one.error for one in kept)):
        assert "ValueError at test_deferred_items.py:" in text
        assert "ada" not in text
    assert await site.round(kind) == (["first", "odd", "last"] if kind in COUNTED_ELSEWHERE else ["first", "last"])


async def test_three_replicas_do_not_each_retry_it(site: Site) -> None:
    await site.round()
    await site.let_it_be_due()
    site.handled.clear()
    others = [BackgroundItems(site.rows, Metrics("gateway")) for _ in range(3)]
    await asyncio.gather(*(each.each(ItemKind.ERASURE, ["odd"], site.handle, str) for each in others))
    assert site.handled == ["odd"]
    (kept,) = await site.rows.list(None, 10)
    assert kept.tries == 2


async def test_an_item_that_succeeds_is_forgotten(site: Site) -> None:
    await site.round()
    await site.let_it_be_due()
    site.error = None
    assert await site.round() == ["first", "odd", "last"]
    assert await site.rows.list(None, 10) == ()


async def test_an_item_rests_after_ten_tries_until_somebody_retries_it(site: Site) -> None:
    pauses = []
    for _ in range(items.MAX_TRIES):
        await site.let_it_be_due()
        await site.round()
        (kept,) = await site.rows.list(None, 10)
        if kept.next_at is not None:
            pauses.append(kept.next_at - kept.since)
    # The time of the test itself comes on top.
    assert [2 ** round(math.log2(pause.total_seconds() / 10)) for pause in pauses] == [2**n for n in range(items.MAX_TRIES - 1)]
    assert (kept.tries, kept.next_at) == (items.MAX_TRIES, None)
    assert await site.round() == ["first", "last"]
    assert await site.rows.retry("payment", None) == 0
    assert await site.rows.retry(ItemKind.ERASURE, "odd") == 1
    site.error = None
    assert await site.round() == ["first", "odd", "last"]


@pytest.mark.parametrize("kind", KEPT)
async def test_an_administrator_learns_of_money_at_once_and_of_the_rest_when_it_rests(site: Site, kind: ItemKind) -> None:
    await site.items.measure()
    assert site.value("deferred_items", kind) == 0
    await site.round(kind)
    await site.items.measure()
    assert site.value("deferred_items", kind) == (kind in MONEY)
    await site.execute("UPDATE deferred_items SET next_at = NULL")
    await site.items.measure()
    assert site.value("deferred_items", kind) == 1


async def test_what_is_gone_does_not_wait_for_ever(site: Site) -> None:
    await site.round(ItemKind.PAYMENT)
    await site.execute("UPDATE deferred_items SET next_at = now() - interval '25 hours'")
    await site.items.measure()
    assert await site.rows.list(None, 10) == ()


@pytest.mark.parametrize("away", [errors.Unavailable("PostgreSQL does not answer"), errors.NotReachable("auth")])
async def test_a_peer_that_is_away_is_not_the_fault_of_an_item(site: Site, away: errors.AimeshError) -> None:
    site.error = away
    with pytest.raises(type(away), match=away.message):
        await site.round()
    assert site.handled == ["first", "odd", "last"], "one item does not hold up the others"
    assert await site.rows.list(None, 10) == ()


async def test_drain_goes_on_behind_an_odd_item(site: Site) -> None:
    waiting = ["odd", "first", "last"]

    async def take(taken: TakenItem) -> bool:
        kept = {one.id for one in await site.rows.list(None, 10)}
        due = [item for item in waiting if item not in kept]
        if not due:
            return False
        taken.id = due[0]
        await site.handle(due[0])
        waiting.remove(due[0])
        return True

    await site.items.drain(ItemKind.RENEWAL, take)
    assert (site.handled, waiting) == (["odd", "first", "last"], ["odd"])


async def test_a_failure_before_an_item_is_known_is_the_rounds(site: Site) -> None:
    async def take(taken: TakenItem) -> bool:
        raise ValueError("no item yet")

    with pytest.raises(ValueError, match="no item yet"):
        await site.items.drain(ItemKind.RENEWAL, take)


async def test_an_administrator_lists_and_retries_over_rpc(site: Site) -> None:
    acts: list[str] = []
    nowhere: Any = None
    rpc, call = (
        DeferredRpc(site.rows, AuditReporting(nowhere, on_act=acts.append)),
        RpcCall(nowhere, deadline=0.0, credential=None, idempotency_key=None),
    )
    call.found = PERSON
    await site.round(ItemKind.PAYMENT)
    listed = (await rpc.list(api.ListDeferredItems(), call)).items
    assert [(one.service, one.kind, one.id) for one in listed] == [("gateway", "payment", "odd")]
    assert await rpc.retry(api.RetryDeferredItems("notice"), call) == api.RetriedItems(0)
    assert acts == []
    assert await rpc.retry(api.RetryDeferredItems("payment", "odd"), call) == api.RetriedItems(1)
    assert acts == ["deferred.retry"]
