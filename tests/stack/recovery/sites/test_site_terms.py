"""Terms and leases: decision tables, and random schedules of three sites: at most one of them may run requests at a time."""

import heapq
import itertools
import random
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shared.api.recovery import SetSiteLease, SiteLease, SiteLeaseMode, SiteLeaseState
from stack.recovery.sites import site_terms
from stack.recovery.sites.site_terms import (
    Fence,
    FenceCheck,
    GatewayClock,
    MarkAdvisory,
    SetGatewayLease,
    SiteRecord,
    SiteState,
    StopServices,
    StoreCheck,
    TermOutcome,
    WriteAcknowledgement,
    WriteLease,
)
from tests import tiers
from tests.cases import case

AT = datetime(2026, 1, 1, tzinfo=UTC)
ADVISORY, STRICT = SiteLeaseMode.ADVISORY, SiteLeaseMode.STRICT
ACTIVE, SUSPENDED, ENDED = SiteLeaseState.ACTIVE, SiteLeaseState.SUSPENDED, SiteLeaseState.ENDED


def record(term: int, site: str = "oslo", nonce: str = "") -> SiteRecord:
    return SiteRecord(term=term, site=site, at=AT, url=f"https://{site}.example", nonce=nonce or site)


def check(
    began_at: float, announced: SiteLeaseMode | None = ADVISORY, highest: SiteRecord | None = None, *, is_marked: bool = False
) -> StoreCheck:
    return StoreCheck(began_at=began_at, announced=announced, is_marked=is_marked, highest=highest or record(1))


# --- tables


def test_names_of_objects() -> None:
    assert (site_terms.record_name(2), site_terms.lease_name(2)) == ("site/2.json", "site/2.lease")
    assert site_terms.acknowledgement_name(1) == "site/2.acknowledged"
    assert site_terms.find_highest({"site/9.json", "site/10.json", "site/11.lease", "site/12.json.tmp", "base/13.json"}) == 10
    assert site_terms.find_highest({"mesh.json"}) is None


def test_what_a_check_leads_to() -> None:
    endless, until_145 = SetGatewayLease(ACTIVE), SetGatewayLease(ACTIVE, 145.0)
    for name, mode, view, expected in (
        ("nothing announced: no lease yet", ADVISORY, check(100, None), (WriteLease(ADVISORY),)),
        ("the same if strict", STRICT, check(100, None), (WriteLease(ADVISORY),)),
        ("advisory", ADVISORY, check(100, is_marked=True), (endless, WriteLease(ADVISORY))),
        ("advisory, but the store doesn't say so yet", ADVISORY, check(100), (until_145, MarkAdvisory())),
        ("it was strict", ADVISORY, check(100, STRICT), (until_145, MarkAdvisory())),
        ("strict: first the limit, then the file", STRICT, check(100), (until_145, WriteLease(STRICT))),
        ("strict again", STRICT, check(100, STRICT), (until_145, WriteLease(STRICT))),
    ):
        with case(name):
            site, steps = site_terms.decide(SiteState(own=record(1), mode=mode), view, 104)
            assert (site.confirmed_at, steps) == (100, expected)


def test_a_store_that_fails() -> None:
    for name, mode, confirmed_at, now, steps in (
        ("advisory continues", ADVISORY, 100.0, 9999.0, ()),
        ("strict, within the lease", STRICT, 100.0, 144.9, ()),
        ("strict, after it", STRICT, 100.0, 145.0, (SetGatewayLease(SUSPENDED),)),
        ("strict, never confirmed", STRICT, None, 1.0, (SetGatewayLease(SUSPENDED),)),
    ):
        for view in (None, replace(check(now), highest=None), check(now, STRICT, record(1))):
            with case((name, view)):
                site, found = site_terms.decide(SiteState(own=record(2), mode=mode, confirmed_at=confirmed_at), view, now)
                assert (site.confirmed_at, found) == (confirmed_at, steps)
    _, steps = site_terms.decide(replace(site, own=record(1)), check(500, STRICT), 501)
    assert steps[0] == SetGatewayLease(ACTIVE, 545.0), "it resumes"


def test_a_higher_term_is_final_and_acknowledged_only_after_the_end() -> None:
    rome = record(3, "rome")
    site, steps = site_terms.decide(SiteState(own=record(1), mode=STRICT, confirmed_at=90), check(100, STRICT, rome), 101)
    assert (site.replaced_by, steps) == (rome, (SetGatewayLease(ENDED),))
    assert site_terms.decide(site, None, 110)[1] == (SetGatewayLease(ENDED),)
    assert site_terms.decide(site, check(120, STRICT), 120)[1] == (SetGatewayLease(ENDED),), "the store is back to our term"
    assert site_terms.decide(site, None, 161)[1] == (StopServices(), SetGatewayLease(ENDED)), "no gateway answers"
    fenced = replace(site, is_fenced=True)
    assert site_terms.decide(fenced, None, 110)[1] == (WriteAcknowledgement(),)
    done = replace(fenced, is_acknowledged=True)
    assert (site_terms.decide(done, None, 110)[1], site_terms.decide(done, None, 161)[1]) == ((), (StopServices(),))


def test_a_foreign_owner_of_the_own_term_replaces_this_site() -> None:
    site, steps = site_terms.decide(SiteState(own=record(1), mode=ADVISORY), check(1, highest=record(1, nonce="other")), 1)
    assert (site.replaced_by is not None, steps) == (True, (SetGatewayLease(ENDED),))


def test_the_calls_to_the_gateway() -> None:
    site, step = SiteState(own=record(1), mode=STRICT), SetGatewayLease(ACTIVE, 145.0)
    first = site_terms.lease_request(site, step, None)
    assert (first.seconds is not None, first.since) == (True, None), "only asks for the clock"
    request = site_terms.lease_request(site, step, GatewayClock(AT, 104.0))
    assert (request.term, request.seconds, request.since) == (1, 41.0, AT)
    assert site_terms.lease_request(site, SetGatewayLease(ACTIVE), GatewayClock(AT, 104.0)).seconds is None
    ended = site_terms.lease_request(replace(site, replaced_by=record(2, "rome")), SetGatewayLease(ENDED), None)
    assert (ended.state, ended.seconds, ended.replaced_by, ended.replaced_url) == (ENDED, None, "rome", "https://rome.example")


def test_who_has_won_a_term() -> None:
    own = record(2, nonce="mine")
    assert site_terms.judge_put(own, None) is TermOutcome.UNKNOWN
    assert site_terms.judge_put(own, record(2, nonce="mine")) is TermOutcome.WON
    assert site_terms.judge_put(own, record(2, nonce="other")) is TermOutcome.LOST_RACE


def test_when_a_new_site_may_answer() -> None:
    strict, advisory = {1: STRICT}, {1: ADVISORY}
    for name, own, highest, leases, ended, waited, expected in (
        ("acknowledged", 2, 2, advisory, {1}, 1, Fence.OPEN),
        ("strict waits", 2, 2, strict, set(), 59.9, Fence.WAIT),
        ("strict has waited", 2, 2, strict, set(), 60, Fence.OPEN),
        ("advisory waits for the acknowledgement", 2, 2, advisory, set(), 59.9, Fence.WAIT),
        ("advisory asks", 2, 2, advisory, set(), 60, Fence.ASK),
        ("a site without a lease file asks", 2, 2, {}, set(), 60, Fence.ASK),
        ("somebody else was faster", 2, 3, strict, {1}, 60, Fence.LOST_RACE),
        ("the site between never answered; its end proves nothing", 3, 3, advisory, {2}, 60, Fence.ASK),
        ("the site between never answered", 3, 3, advisory, {1}, 1, Fence.OPEN),
        ("the last one that answered counts", 3, 3, {1: STRICT, 2: ADVISORY}, {1}, 60, Fence.ASK),
    ):
        with case(name):
            view = FenceCheck(highest=highest, leases=leases, ended=ended)
            assert site_terms.decide_fence(own, 100, view, 100 + waited) is expected
    view = FenceCheck(highest=2, leases=advisory, ended=set())
    assert site_terms.decide_fence(2, 100, view, 101, old_site_is_off=True) is Fence.OPEN


# --- random schedules

#: The result of a failed call, or of a call whose reply was lost.
FAILED = object()
TIMEOUT = 10.0
#: Waits this many seconds, or calls the store or the site's own gateway.
Wait = float | tuple[str, Callable[[], object]]
Process = Generator[Wait, Any, None]


@dataclass
class SimulatedSite:
    name: str
    mode: SiteLeaseMode
    #: The rate of the site's monotonic clock.
    rate: float
    offset: float
    wall_offset: float = 0.0
    #: Whether the site's gateways run.
    runs: bool = False
    lease: SiteLease | None = None
    #: When the gateways drop the lease. They know how long they have had it.
    dropped_at: float | None = None
    #: Periods without access to the store.
    partitions: list[tuple[float, float]] = field(default_factory=list)
    #: Pauses of all the site's processes except the gateway.
    pauses: list[tuple[float, float]] = field(default_factory=list)
    starts: int = 0


class Schedule:
    """A store, three sites, and their events, all from one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.now = 0.0
        self.numbers = itertools.count()
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.store: dict[str, Any] = {"site/1.json": record(1, "a", "a1")}
        self.won: dict[int, list[str]] = {}
        self.opened: list[str] = []
        self.may_begin = False
        self.sites = [
            SimulatedSite(name, rng.choice((STRICT, STRICT, ADVISORY)), rng.uniform(0.995, 1.005), rng.uniform(0, 1e6)) for name in "abc"
        ]
        first, *others = self.sites
        first.runs = True
        self._start(first, record(1, "a", "a1"))
        # Faults happen around the time when another site takes over.
        crisis = rng.uniform(15, 100)
        for site in self.sites:
            begin = crisis + rng.uniform(-10, 30)
            site.partitions = [(begin, begin + rng.choice((20, 100, 1000)))] if rng.random() < (0.7 if site is first else 0.2) else []
            begin = crisis + rng.uniform(-10, 30)
            site.pauses = (
                [(begin, begin + rng.choice((20, 60, 100, 7200)) * rng.random())] if rng.random() < (0.5 if site is first else 0.2) else []
            )
            if rng.random() < 0.4:
                self.at(crisis + rng.uniform(-30, 100), lambda site=site: self._set_wall_clock(site))
        for other in others[: rng.randint(1, 2)]:
            # Often both at the same time.
            begin = crisis + rng.choice((0, 0, rng.uniform(0, 60)))
            self.at(begin, lambda other=other: self.step(other, self._promote(other), None, 0))
        if rng.random() < 0.4:
            self.at(crisis + rng.uniform(-15, 200), lambda: self._restart(first))

    def at(self, when: float, do: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self.numbers), do))

    def run(self) -> None:
        for _ in range(700):
            if not self.events or self.now > 20_000:
                break
            self.now, _, do = heapq.heappop(self.events)
            do()
            if self.may_begin:
                # All other events only let time pass, which only ends leases.
                self.may_begin = False
                running = [site.name for site in self.sites if self._may_reserve(site)]
                assert len(running) <= 1, f"{running} may run requests at {self.now}"
        for term, winners in self.won.items():
            assert len(winners) == 1, f"{winners} own the term {term}"
            assert self.store[site_terms.record_name(term)].nonce == winners[0]

    def clock(self, site: SimulatedSite) -> float:
        return self.now * site.rate + site.offset

    def _wall(self, site: SimulatedSite) -> datetime:
        return AT + timedelta(seconds=self.now + site.wall_offset)

    def _set_wall_clock(self, site: SimulatedSite) -> None:
        self.may_begin = True
        site.wall_offset += self.rng.choice((-1, 1)) * self.rng.choice((3, 30, 7200))

    def _may_reserve(self, site: SimulatedSite) -> bool:
        if not site.runs or site.lease is None:
            return site.runs
        lease, wall = site.lease, self._wall(site)
        if lease.state is not ACTIVE or lease.ends_at is None:
            return lease.state is ACTIVE
        is_over = site.dropped_at is not None and self.now >= site.dropped_at
        return lease.changed_at - timedelta(seconds=5) <= wall <= lease.ends_at and not is_over

    # --- processes

    def step(self, site: SimulatedSite, process: Process, value: object, number: int) -> None:
        """Continue a process, unless it was killed, and perform the wait or call that it yields."""
        if number and number != site.starts:
            return
        for begin, end in site.pauses:
            if begin <= self.now < end:
                self.at(end, lambda: self.step(site, process, value, number))
                return
        try:
            wait = process.send(value)
        except StopIteration:
            return
        rng = self.rng
        if isinstance(wait, float):
            self.at(self.now + wait, lambda: self.step(site, process, None, number))
            return
        what, call = wait
        result: list[object] = []
        is_cut = what == "store" and any(begin <= self.now < end for begin, end in site.partitions)
        # Some calls take effect long after their caller has given up.
        delay = rng.choice((30.0, 90.0)) * rng.random() if rng.random() < 0.05 else rng.random() * 0.3
        if not is_cut:
            self.at(self.now + delay, lambda: result.append(call()))
        fails = is_cut or delay >= TIMEOUT or rng.random() < 0.05
        wait_seconds = TIMEOUT if fails else delay + rng.random() * 0.3
        self.at(self.now + wait_seconds, lambda: self.step(site, process, FAILED if fails else result[0], number))

    def _start(self, site: SimulatedSite, own: SiteRecord) -> None:
        """Start the agent, and end the running one."""
        site.starts += 1
        self.step(site, self._agent(site, own), None, site.starts)

    def _restart(self, site: SimulatedSite) -> None:
        """Start the old site's agent again, sometimes with another mode."""
        site.mode = self.rng.choice((STRICT, ADVISORY))
        self._start(site, record(1, "a", "a1"))

    def _agent(self, site: SimulatedSite, own: SiteRecord) -> Process:
        state, clock = SiteState(own=own, mode=site.mode), None
        while True:
            began_at = self.clock(site)
            announced = yield "store", lambda: self.store.get(site_terms.lease_name(own.term))
            marked = yield "store", lambda: site_terms.advisory_name(own.term) in self.store
            highest = yield "store", self._highest
            view = None
            if FAILED not in (announced, marked, highest):
                view = StoreCheck(began_at=began_at, announced=announced, is_marked=marked, highest=highest)
            state, steps = site_terms.decide(state, view, self.clock(site))
            for step in steps:
                if isinstance(step, SetGatewayLease):
                    clock = yield from self._set_lease(site, state, step, clock)
                    is_done = clock is not None
                    state = replace(state, is_fenced=state.is_fenced or (is_done and step.state is ENDED))
                else:
                    is_done = yield from self._do(site, own.term, step)
                    is_acknowledged = state.is_acknowledged or (is_done and isinstance(step, WriteAcknowledgement))
                    state = replace(state, is_acknowledged=is_acknowledged, is_fenced=state.is_fenced or isinstance(step, StopServices))
                if not is_done:
                    break
            if view is None or view.announced is not None:
                yield site_terms.CHECK_SECONDS

    def _set_lease(
        self, site: SimulatedSite, state: SiteState, step: SetGatewayLease, clock: GatewayClock | None
    ) -> Generator[Wait, Any, GatewayClock | None]:
        """Return the gateway's clock; None if the call has failed."""
        for _ in range(2):
            reply = yield "gateway", self._setting(site, site_terms.lease_request(state, step, clock))
            if reply is FAILED:
                return None
            clock = GatewayClock(reply.now, self.clock(site))
            if reply.state is step.state:
                return clock
        return None

    def _do(self, site: SimulatedSite, term: int, step: site_terms.Step) -> Generator[Wait, Any, bool]:
        match step:
            case WriteLease(mode):
                return (yield "store", self._putting(site_terms.lease_name(term), mode)) is not FAILED
            case MarkAdvisory():
                return (yield "store", self._putting(site_terms.advisory_name(term), "")) is not FAILED
            case WriteAcknowledgement():
                return (yield "store", self._putting(site_terms.acknowledgement_name(term), "")) is not FAILED
        site.runs = False
        return True

    def _promote(self, site: SimulatedSite) -> Process:
        highest = yield "store", self._highest
        if highest is FAILED:
            return
        own = record(highest.term + 1, site.name, f"{site.name}{self.rng.random()}")
        name = site_terms.record_name(own.term)
        outcome = TermOutcome.UNKNOWN
        while outcome is TermOutcome.UNKNOWN:
            yield "store", lambda: self.store.setdefault(name, own)
            found = yield "store", lambda: self.store.get(name)
            outcome = site_terms.judge_put(own, None if found is FAILED else found)
        if outcome is TermOutcome.LOST_RACE:
            return
        self.won.setdefault(own.term, []).append(own.nonce)
        written_at, fence = self.clock(site), Fence.WAIT
        while fence is Fence.WAIT:
            yield 1.0
            seen = yield "store", lambda: dict(self.store)
            if seen is not FAILED:
                fence = site_terms.decide_fence(own.term, written_at, _fence_check(seen), self.clock(site))
        if fence is Fence.OPEN:
            self.opened.append(site.name)
            self.may_begin = site.runs = True
            # As the gateway does at its start, with SITE_TERM.
            site.lease = self._lease(site, own.term, SUSPENDED)
            self._start(site, own)

    # --- the store and the gateway

    def _highest(self) -> SiteRecord:
        term = site_terms.find_highest(self.store.keys())
        assert term is not None
        found: SiteRecord = self.store[site_terms.record_name(term)]
        return found

    def _putting(self, name: str, what: object) -> Callable[[], object]:
        return lambda: self.store.update({name: what})

    def _lease(self, site: SimulatedSite, term: int, state: SiteLeaseState, ends_at: datetime | None = None) -> SiteLease:
        wall = self._wall(site)
        return SiteLease(term=term, site=site.name, state=state, changed_at=wall, now=wall, ends_at=ends_at)

    def _setting(self, site: SimulatedSite, request: SetSiteLease) -> Callable[[], object]:
        def set_lease() -> object:
            held, wall = site.lease, self._wall(site)
            if request.seconds is not None and (request.since is None or request.since > wall):
                return self._lease(site, request.term, SUSPENDED)
            if held is None or request.term > held.term or (request.term == held.term and held.state is not ENDED):
                ends_at = None if request.seconds is None or request.since is None else request.since + timedelta(seconds=request.seconds)
                site.lease = self._lease(site, request.term, request.state, ends_at)
                self.may_begin = True
                site.dropped_at = None if ends_at is None else self.now + (ends_at - wall).total_seconds()
            elif (held.term, held.state) != (request.term, request.state):
                return FAILED
            return replace_now(site.lease, wall)

        return set_lease


def replace_now(lease: SiteLease | None, now: datetime) -> SiteLease:
    assert lease is not None
    return SiteLease(term=lease.term, site=lease.site, state=lease.state, changed_at=lease.changed_at, now=now, ends_at=lease.ends_at)


def _fence_check(seen: Mapping[str, Any]) -> FenceCheck:
    terms = range(1, 5)
    return FenceCheck(
        highest=site_terms.find_highest(seen.keys()) or 0,
        leases={
            term: ADVISORY if site_terms.advisory_name(term) in seen else seen[name]
            for term in terms
            if (name := site_terms.lease_name(term)) in seen
        },
        ended={term for term in terms if site_terms.acknowledgement_name(term) in seen},
    )


@pytest.mark.timeout(120)
def test_never_two_sites_run_requests_and_every_term_has_one_owner() -> None:
    first, opened, won = tiers.seed("SITES_SEED"), 0, 0
    number = 10_000 if tiers.is_nightly() else 500
    for seed in range(first, first + number):
        with case(seed):
            schedule = Schedule(seed)
            schedule.run()
            opened += bool(schedule.opened)
            won += len(schedule.won)
    # With fewer takeovers, the schedules would prove little.
    assert opened > number * 0.4
    assert won > number * 0.7
