"""The SQL of jobs compared with the tables of states, through any sequence of events: each line ends once, and is paid once."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from features.jobs.contract import JobKind, JobState, LineError
from features.jobs.gateway.rules.batch_input import NewLine
from features.jobs.gateway.store import ClaimedLine, Job, JobStore, LineResult, LineRetry, NewJob
from features.jobs.rules import states
from features.jobs.rules.states import JobEvent, LineEvent, LineState
from services.gateway import store
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.store import GatewayStore
from shared.api.auth import Principal
from shared.types import RequestId, Tier, UserId, UserRole
from tests import tiers
from tests.features.jobs.gateway.moves import move_all
from tests.services.gateway.billing.test_ledger_store import MODEL, Books, new_request, row

LINES, COST = 4, 7
#: As long as the names of gateways: a time, and the id of a node.
RUNNERS = ("1" * 70, "2" * 70)
#: Of reservations that are open.
ENDED = {LineState.DONE, LineState.FAILED, LineState.EXPIRED, LineState.CANCELLED}
numbers = st.integers(0, 50)


@dataclass
class Line:
    state: LineState = LineState.QUEUED
    request: RequestId | None = None
    runner: str = ""
    is_lost: bool = False
    lost_leases: int = 0
    #: Open reservations of attempts.
    held: set[RequestId] = field(default_factory=set)
    paid: int = 0

    def apply(self, event: LineEvent) -> bool:
        if (after := states.LINES.get((self.state, event))) is None:
            return False
        self.state = after
        return True


@dataclass
class Known:
    owner: UserId
    kind: JobKind = JobKind.BATCH
    state: JobState = JobState.VALIDATING
    outcome: JobState | None = None
    lines: list[Line] = field(default_factory=list)
    is_over: bool = False

    def apply(self, event: JobEvent) -> bool:
        after = self.outcome if (self.state, event) == (JobState.FINALIZING, JobEvent.WRITTEN) else states.JOBS.get((self.state, event))
        if after is None:
            return False
        self.state, self.outcome = after, states.OUTCOMES.get(event, self.outcome)
        return True


class Machine(RuleBasedStateMachine):
    runner: asyncio.Runner
    books: Books
    jobs: JobStore

    def __init__(self) -> None:
        super().__init__()
        self.owners = [Principal(UserId(uuid4()), name, UserRole.USER, Tier.FREE) for name in ("ann", "bob")]
        self.known: dict[UUID, Known] = {}
        #: Attempts that their runners still believe in.
        self.claimed: dict[RequestId, tuple[UUID, ClaimedLine, str]] = {}
        self.run(self.books.execute("TRUNCATE job_lines, jobs"))

    def run(self, what: Any) -> Any:
        return self.runner.run(what)

    def some(self, number: int) -> tuple[UUID, Known]:
        return list(self.known.items())[number % len(self.known)]

    def attempt(self, number: int) -> tuple[RequestId, Line]:
        request = list(self.claimed)[number % len(self.claimed)]
        job, claimed, _ = self.claimed[request]
        return request, self.known[job].lines[claimed.line]

    def is_current(self, request: RequestId, line: Line) -> bool:
        return line.state is LineState.RUNNING and line.request == request

    # --- the job

    @precondition(lambda self: len(self.known) < 4)
    @rule(number=numbers, kind=st.sampled_from((JobKind.BATCH, JobKind.BATCH, JobKind.SINGLE)))
    def create(self, number: int, kind: JobKind) -> None:
        owner = self.owners[number % 2]
        new = NewJob(
            id=uuid4(), owner=owner, kind=kind, endpoint="/v1/completions", seed=1, seconds=3600, kept_seconds=7200, model=MODEL, price_id=1
        )
        known = self.known[new.id] = Known(owner.user_id, kind)
        if kind is JobKind.SINGLE:
            known.apply(JobEvent.VALIDATED)
            known.lines = [Line()]
            made: Job = self.run(self.jobs.start(new, NewLine(0, "c0", 0, 10, b"0")))
        else:
            made = self.run(self.jobs.create(new))
        assert (made.id, made.state, made.total) == (new.id, known.state, len(known.lines))

    @precondition(lambda self: self.known)
    @rule(number=numbers, is_good=st.booleans())
    def validate(self, number: int, is_good: bool) -> None:
        job, known = self.some(number)
        if known.state is not JobState.VALIDATING:
            return
        lines = [NewLine(line, f"c{line}", line * 10, 10, bytes([line % 2])) for line in range(LINES)]
        for some in (lines[:2], lines):
            # An interrupted validation begins again.
            self.run(self.jobs.add_lines(job, some))
        if is_good:
            known.lines = [Line() for _ in range(LINES)]
            assert self.run(self.jobs.begin(job, LINES, MODEL, 1))
        else:
            self.run(self.jobs.refuse(job, [LineError("invalid_json_line", "no object", 1)]))
        assert known.apply(JobEvent.VALIDATED if is_good else JobEvent.REFUSED)

    @precondition(lambda self: self.known)
    @rule(number=numbers)
    def cancel(self, number: int) -> None:
        job, known = self.some(number)
        self.run(self.jobs.cancel(job))
        if known.apply(JobEvent.CANCEL):
            for line in known.lines:
                if line.state is LineState.QUEUED:
                    line.apply(LineEvent.CANCEL)

    @precondition(lambda self: self.known)
    @rule(number=numbers)
    def pass_window(self, number: int) -> None:
        job, known = self.some(number)
        self.run(self.books.execute(f"UPDATE jobs SET expires_at = now() - interval '1 s' WHERE id = '{job}'"))
        known.is_over = True

    @rule()
    def move(self) -> None:
        self.run(move_all(self.jobs))
        for known in self.known.values():
            event = self.due(known)
            if event is None or not known.apply(event):
                continue
            for line in known.lines:
                line.apply(LineEvent.CANCEL if event is JobEvent.STOPPED else LineEvent.EXPIRE)
                line.held.clear()

    def due(self, known: Known) -> JobEvent | None:
        if known.state is JobState.IN_PROGRESS and all(line.state in ENDED for line in known.lines):
            has_failed = known.kind is JobKind.SINGLE and known.lines[0].state is LineState.FAILED
            return JobEvent.LINE_FAILED if has_failed else JobEvent.ENDED
        if known.state is JobState.CANCELLING:
            runs = any(line.state is LineState.RUNNING and not line.is_lost for line in known.lines)
            return None if runs else JobEvent.STOPPED
        return JobEvent.EXPIRE if known.is_over else None

    @precondition(lambda self: self.known)
    @rule(number=numbers)
    def write_files(self, number: int) -> None:
        job, known = self.some(number)
        if known.state is JobState.FINALIZING:
            lines = self.run(self.jobs.results(job, -1, 100))
            assert [line.state for line in lines] == [line.state for line in known.lines]
        self.run(self.jobs.end(job))
        known.apply(JobEvent.WRITTEN)

    # --- its lines

    @rule(runner=st.sampled_from(RUNNERS), most=st.integers(1, 3))
    def claim(self, runner: str, most: int) -> None:
        requests = [new_request() for _ in range(most)]
        claimed = self.run(self.jobs.claim(MODEL, requests, runner))
        assert len({line.job_id for line in claimed}) <= 1
        waiting = [
            (job, line)
            for job, known in self.known.items()
            if known.state is JobState.IN_PROGRESS and not known.is_over
            for line in known.lines
            if line.state is LineState.QUEUED or (line.state is LineState.RUNNING and line.is_lost)
        ]
        if not claimed:
            # Lines that have lost too many leases have failed instead.
            assert all(line.lost_leases + line.is_lost >= states.MAX_LOST_LEASES for _, line in waiting) or not waiting or self.failed()
        for taken in claimed:
            line = self.known[taken.job_id].lines[taken.line]
            assert any(line is other for _, other in waiting)
            line.lost_leases += line.state is LineState.RUNNING
            assert line.apply(LineEvent.CLAIM)
            line.held.clear()
            line.request, line.runner, line.is_lost = taken.request_id, runner, False
            self.claimed[taken.request_id] = taken.job_id, taken, runner
        self.failed()

    def failed(self) -> bool:
        """Take over which lines a claim has let fail."""
        found = False
        for job, known in self.known.items():
            if known.state is JobState.IN_PROGRESS:
                for line, stored in zip(known.lines, self.run(self.jobs.results(job, -1, 100)), strict=True):
                    if stored.error_code == "lease_lost_repeatedly" and line.state in {LineState.QUEUED, LineState.RUNNING}:
                        assert line.lost_leases + line.is_lost == states.MAX_LOST_LEASES
                        line.apply(LineEvent.FAIL)
                        line.held.clear()
                        found = True
        return found

    @precondition(lambda self: self.claimed)
    @rule(number=numbers)
    def reserve(self, number: int) -> None:
        request, line = self.attempt(number)
        if self.is_current(request, line) and request not in line.held:
            owner = self.known[self.claimed[request][0]].owner
            self.run(self.books.reserve(owner, request=request, tokens=COST))
            line.held.add(request)

    @precondition(lambda self: self.claimed)
    @rule(number=numbers)
    def extend(self, number: int) -> None:
        request, line = self.attempt(number)
        runner = self.claimed[request][2]
        kept = self.run(self.jobs.extend([request], runner))
        assert kept == ({request} if self.is_current(request, line) else set())
        line.is_lost = line.is_lost and not kept

    @precondition(lambda self: self.claimed)
    @rule(number=numbers)
    def lose_lease(self, number: int) -> None:
        request, line = self.attempt(number)
        self.run(
            self.books.execute(
                f"UPDATE job_lines SET lease_until = now() - interval '1 s' WHERE request_id = '{request}' AND state = 'running'"
            )
        )
        line.is_lost = line.is_lost or self.is_current(request, line)

    @precondition(lambda self: self.claimed)
    @rule(number=numbers, is_good=st.booleans(), forgets=st.booleans())
    def finish(self, number: int, is_good: bool, forgets: bool) -> None:
        """``forgets``: the runner doesn't hear that it was written, and repeats it."""
        request, line = self.attempt(number)
        owner = self.known[self.claimed[request][0]].owner
        cost = COST if request in line.held else 0
        result = LineResult(
            request_id=request, row=row(owner, request, cost), result=b"sealed", status_code=200 if is_good else 400,
            error_code=None if is_good else "bad_request",
        )  # fmt: skip
        written = self.run(self.jobs.finish([result]))
        assert written == ({request} if self.is_current(request, line) else set())
        if written:
            assert line.apply(LineEvent.SUCCEED if is_good else LineEvent.FAIL)
            line.paid = cost
            line.held.clear()
        if not forgets:
            del self.claimed[request]

    @precondition(lambda self: self.claimed)
    @rule(number=numbers, is_uncounted=st.booleans())
    def requeue(self, number: int, is_uncounted: bool) -> None:
        request, line = self.attempt(number)
        self.run(self.jobs.requeue([LineRetry(request, 0.0, is_uncounted)]))
        if self.is_current(request, line):
            assert line.apply(LineEvent.REQUEUE)
            line.held.clear()
            line.lost_leases += line.is_lost
            line.is_lost = False
        del self.claimed[request]

    @precondition(lambda self: self.claimed)
    @rule(number=numbers)
    def stop(self, number: int) -> None:
        request, line = self.attempt(number)
        if self.known[self.claimed[request][0]].state is not JobState.CANCELLING:
            return
        self.run(self.jobs.stop([request]))
        if self.is_current(request, line):
            assert line.apply(LineEvent.CANCEL)
            line.held.clear()
        del self.claimed[request]

    # --- always

    @invariant()
    def it_is_as_in_the_model(self) -> None:
        for owner in self.owners:
            mine = [known for known in self.known.values() if known.owner == owner.user_id]
            paid = sum(line.paid for known in mine for line in known.lines)
            held = sum(COST for known in mine for line in known.lines for _ in line.held)
            assert self.run(self.books.account(owner.user_id)) == (-paid, held)
        for job, known in self.known.items():
            found = self.run(self.jobs.find(self.owner_of(known).tenant_id, job))
            assert (found.state, found.outcome) == (known.state, known.outcome)
            ended = known.state in states.OUTCOMES.values() and known.kind is JobKind.BATCH
            stored = self.run(self.jobs.results(job, -1, 100))
            if known.state is JobState.VALIDATING or ended:
                assert not stored or not ended
            elif stored:
                assert [line.state for line in stored] == [line.state for line in known.lines]
                done = sum(line.state is LineState.DONE for line in known.lines)
                assert (found.done, found.cost_micro) == (done, sum(line.paid for line in known.lines))

    def owner_of(self, known: Known) -> Principal:
        return next(owner for owner in self.owners if owner.user_id == known.owner)

    def teardown(self) -> None:
        report = self.run(self.books.report())
        assert (report.drift_micro, report.sum_micro, report.reserved_drift_micro) == (0, 0, 0), report.findings


@pytest.fixture
def machine(plain_url: str) -> Iterator[type[Machine]]:
    with asyncio.Runner() as runner:

        async def begin() -> tuple[Any, Books, JobStore]:
            context = store.opened(plain_url)
            opened = await context.__aenter__()
            ledger, requests = LedgerStore(opened), GatewayStore(opened)
            await ledger.ensure_default_price(100_000_000, 200_000_000)
            return context, Books(requests, ledger, plain_url), JobStore(opened, requests)

        context, Machine.books, Machine.jobs = runner.run(begin())
        Machine.runner = runner
        yield Machine
        runner.run(context.__aexit__(None, None, None))


def test_jobs_follow_the_tables_of_states(machine: type[Machine]) -> None:
    most = 200 if tiers.is_nightly() else 8
    checks = settings(max_examples=most, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
    run_state_machine_as_test(machine, settings=checks)


def test_what_is_not_in_the_tables_changes_nothing() -> None:
    ended = {JobState.COMPLETED, JobState.FAILED, JobState.EXPIRED, JobState.CANCELLED}
    assert {before for before, _ in states.JOBS} & ended == set()
    assert {before for before, _ in states.LINES} & ENDED == set()
    assert set(states.OUTCOMES.values()) == ended
    assert msgspec.json.encode(JobState.IN_PROGRESS) == b'"in_progress"'
