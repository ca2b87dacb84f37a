"""The term and the lease of a site, with stores in a folder and a fake gateway."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared import errors
from shared.api.recovery import SetSiteLease, SiteLease, SiteLeaseMode, SiteLeaseState
from shared.identity import node_keys
from shared.identity.node_keys import NodeKey
from stack import control
from stack.recovery import layout
from stack.recovery.backup_place import BackupPlace
from stack.recovery.sites import replaced, site_keeper, site_terms
from stack.recovery.sites.site_keeper import SiteKeeper
from stack.recovery.sites.site_terms import SiteAcknowledgement, SiteLeaseRecord, SiteRecord
from tests.stack.recovery.places import brittle, make_place

AT = datetime(2026, 11, 1, tzinfo=UTC)
URL = "http://here"


@dataclass
class Gateway:
    """Accepts every lease, and records the requests."""

    asked: list[SetSiteLease] = field(default_factory=list)
    is_away: bool = False

    async def call(self, _method: object, request: SetSiteLease, **_: object) -> Any:
        if self.is_away:
            raise errors.NotReachable("no gateway is available")
        self.asked.append(request)
        state = SiteLeaseState.SUSPENDED if request.seconds is not None and request.since is None else request.state
        return SiteLease(term=request.term, site=request.site, state=state, changed_at=AT, now=AT)

    @property
    def states(self) -> list[SiteLeaseState]:
        return [request.state for request in self.asked]


@pytest.fixture
def key() -> NodeKey:
    return NodeKey(node_keys.new_seed())


@pytest.fixture
def place(tmp_path: Path, key: NodeKey) -> BackupPlace:
    return make_place(tmp_path, key=key)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(site_keeper, "boot_time", lambda: now[0])
    return now


async def keeper(place: BackupPlace) -> SiteKeeper:
    return SiteKeeper(place, await site_keeper.ensure_term(place, URL))


async def take_over(place: BackupPlace, key: NodeKey, term: int = 2) -> SiteRecord:
    record = SiteRecord(term=term, site="there", at=AT, url="http://there", previous="here", nonce="n")
    name = site_terms.record_name(term)
    assert await place.store.put_if_absent(name, layout.sign(name, record, key))
    return record


async def read(place: BackupPlace, name: str, kind: type[layout.S]) -> layout.S:
    return layout.read_signed(name, await place.store.get(name), kind, place.mesh.keys)


# --- the first term


async def test_the_first_site_takes_the_first_term_once(place: BackupPlace) -> None:
    own = await site_keeper.ensure_term(place, URL)
    assert (own.term, own.site, own.url) == (1, "here", URL)
    assert await site_keeper.ensure_term(place, "http://moved") == own
    assert await read(place, "site/1.json", SiteRecord) == own
    assert site_keeper.read_own(place.home) == own


async def test_an_agent_that_was_killed_before_its_put_takes_the_same_term(place: BackupPlace) -> None:
    own = await site_keeper.ensure_term(place, URL)
    await place.store.delete(["site/1.json"])
    assert await site_keeper.ensure_term(place, URL) == own
    assert await read(place, "site/1.json", SiteRecord) == own


async def test_another_home_does_not_take_the_term_of_this_one(tmp_path: Path, key: NodeKey, place: BackupPlace) -> None:
    await site_keeper.ensure_term(place, URL)
    with pytest.raises(errors.BadSettings, match=r"belongs to the site here \(term 1\), and this home has no term") as refused:
        await site_keeper.ensure_term(make_place(tmp_path, name="other", key=key), URL)
    assert refused.value.hint is not None
    assert "aicli stack standby" in refused.value.hint


async def test_of_two_homes_at_once_one_is_replaced(tmp_path: Path, key: NodeKey, place: BackupPlace, clock: list[float]) -> None:
    """The other site wrote its record after this one had checked, and before this one wrote its own."""
    await take_over(place, key, term=1)
    own = SiteRecord(term=1, site="here", at=AT, nonce="ours")
    place.home.own_site.write_bytes(msgspec.json.encode(own))
    site = await keeper(place)
    await site.check(Gateway())
    assert site.state.replaced_by is not None
    assert site.state.replaced_by.site == "there"


def test_a_broken_record_of_the_term_is_refused(place: BackupPlace) -> None:
    place.home.own_site.write_text("{")
    with pytest.raises(errors.BadSettings, match="is damaged"):
        site_keeper.read_own(place.home)


# --- the lease


async def test_the_lease_file_comes_before_the_gateways_lease(place: BackupPlace, clock: list[float]) -> None:
    site, gateway = await keeper(place), Gateway()
    await site.check(gateway)
    assert gateway.asked == []
    assert (await read(place, "site/1.lease", SiteLeaseRecord)).mode is SiteLeaseMode.ADVISORY
    await site.check(gateway)
    assert await place.store.get("site/1.advisory") == b""
    limited = gateway.asked[-1].seconds
    assert limited is not None, "until the mark was seen"
    gateway.asked.clear()
    await site.check(gateway)
    assert [(request.state, request.seconds) for request in gateway.asked] == [(SiteLeaseState.ACTIVE, None)]


async def test_a_strict_lease_counts_from_the_gateways_clock(tmp_path: Path, clock: list[float]) -> None:
    place = make_place(tmp_path, site_lease="strict")
    site, gateway = await keeper(place), Gateway()
    await site.check(gateway)
    await site.check(gateway)
    first, second = gateway.asked
    assert first.since is None, "only for the clock"
    assert (second.since, second.seconds) == (AT, site_terms.LEASE_SECONDS)
    assert (await read(place, "site/1.lease", SiteLeaseRecord)).mode is SiteLeaseMode.STRICT


async def test_while_the_gateway_is_away_the_lease_is_not_renewed(place: BackupPlace, clock: list[float]) -> None:
    site = await keeper(place)
    await site.check(None)
    brittle(place).written.clear()
    await site.check(None)
    await site.check(Gateway(is_away=True))
    assert brittle(place).written == []
    assert site.problem == "", "the store works"


async def test_a_strict_site_without_its_store_is_suspended(tmp_path: Path, clock: list[float]) -> None:
    place = make_place(tmp_path, site_lease="strict")
    site, gateway = await keeper(place), Gateway()
    for _ in range(2):
        await site.check(gateway)
    brittle(place).is_away = True
    clock[0] += site_terms.LEASE_SECONDS
    await site.check(gateway)
    assert gateway.states[-1] is SiteLeaseState.SUSPENDED
    assert site.problem == "the store is away"
    brittle(place).is_away = False
    await site.check(gateway)
    assert (gateway.states[-1], site.problem) == (SiteLeaseState.ACTIVE, "")


# --- another site takes over


async def test_a_replaced_site_ends_its_lease_and_acknowledges_that(place: BackupPlace, key: NodeKey, clock: list[float]) -> None:
    site, gateway = await keeper(place), Gateway()
    by = await take_over(place, key)
    await site.check(gateway)
    (request,) = gateway.asked
    assert (request.state, request.replaced_by, request.replaced_url) == (SiteLeaseState.ENDED, "there", "http://there")
    # At once, because the other site waits for it.
    assert (await read(place, "site/2.acknowledged", SiteAcknowledgement)).replaced_by == by
    assert site.known == {1: site.state.own, 2: by}


async def test_a_replaced_site_stops_after_a_minute_and_does_not_start_again(
    place: BackupPlace, key: NodeKey, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway answers no call, so only the end of the services counts as an acknowledgement."""
    orders: list[control.Order] = []

    async def send(_socket: Path, order: control.Order) -> control.ControlAnswer:
        orders.append(order)
        return control.ControlAnswer(True)

    monkeypatch.setattr(control, "send", send)
    site, gateway = await keeper(place), Gateway(is_away=True)
    await take_over(place, key)
    await site.check(gateway)
    await site.acknowledge()
    assert orders == []
    assert "site/2.acknowledged" not in brittle(place).written, "the agent alone was restarted: the gateway still runs"
    clock[0] += site_terms.REFUSING_SECONDS
    await site.check(gateway)
    assert orders == [control.Stop()]
    with pytest.raises(errors.BadSettings, match="replaced by there"):
        replaced.ensure_not_replaced(place.home)
    await site.acknowledge()
    assert "site/2.acknowledged" in brittle(place).written


async def test_a_forged_term_is_not_believed(place: BackupPlace, clock: list[float]) -> None:
    site, gateway = await keeper(place), Gateway()
    await site.check(gateway)
    await take_over(place, NodeKey(node_keys.new_seed()))
    await site.check(gateway)
    assert site.state.replaced_by is None
    assert "not signed by this mesh" in site.problem
