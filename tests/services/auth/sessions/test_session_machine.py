"""Sessions on a real Valkey compared with a model, through any sequence of events: whoever holds which token, a session is open for one."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from services.auth.sessions.session_store import (
    GRACE_SECONDS,
    HALFWAY_SECONDS,
    ClosedSession,
    OpenedSession,
    SessionOver,
    SessionStore,
    StoredLogin,
)
from shared.api.auth import SessionKind, Step
from shared.stores.cache import Cache
from shared.types import TenantId, UserId
from tests import tiers
from tests.services.auth.sessions.test_session_store import Clock

USERS = [UserId(UUID(int=number)) for number in (1, 2)]
MAX_SECONDS = 43_200
numbers = st.integers(0, 50)


@dataclass
class Known:
    id: str
    user: UserId
    kind: SessionKind
    step: Step
    #: All tokens of its family, the valid one last.
    tokens: list[str]
    opened_at: float
    ends_at: float | None
    team: TenantId | None = None
    spent_at: float | None = None


@dataclass
class Model:
    now: float
    open: list[Known] = field(default_factory=list)
    #: Tokens that open nothing any more.
    dead: list[str] = field(default_factory=list)

    def end(self, *ended: Known) -> None:
        for one in ended:
            self.open.remove(one)
            self.dead += one.tokens

    def expire(self) -> None:
        self.end(*(one for one in self.open if one.ends_at is not None and self.now >= one.ends_at))

    def end_of(self, kind: SessionKind, step: Step) -> float | None:
        if step is not Step.DONE:
            return self.now + HALFWAY_SECONDS
        return self.now + MAX_SECONDS if kind is SessionKind.BROWSER else None


class Machine(RuleBasedStateMachine):
    runner: asyncio.Runner
    cache: Cache

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.model = Model(self.clock.now)
        self.sessions = SessionStore(self.cache, idle_seconds=3600, longest_seconds=MAX_SECONDS, clock=self.clock)
        for user in USERS:
            self.run(self.sessions.end_all(user))

    def run(self, what: Any) -> Any:
        return self.runner.run(what)

    def some(self, number: int) -> Known:
        return self.model.open[number % len(self.model.open)]

    def _replaced(self, known: Known, found: OpenedSession | None) -> None:
        assert found is not None
        assert found.session.id != known.id
        self.model.dead += known.tokens
        known.id, known.tokens, known.spent_at = found.session.id, [found.token], None

    @precondition(lambda self: len(self.model.open) < 6)
    @rule(number=numbers, kind=st.sampled_from(SessionKind), step=st.sampled_from((Step.DONE, Step.DONE, Step.ENTER_CODE)))
    def open(self, number: int, kind: SessionKind, step: Step) -> None:
        user = USERS[number % 2]
        made: OpenedSession = self.run(self.sessions.open(StoredLogin(user_id=user, kind=kind, step=step)))
        known = Known(made.session.id, user, kind, step, [made.token], self.model.now, self.model.end_of(kind, step))
        self.model.open.append(known)

    @precondition(lambda self: self.model.open)
    @rule(number=numbers, late=st.booleans())
    def wait(self, number: int, *, late: bool) -> None:
        """Until the next bound of a session, or a second longer."""
        known = self.some(number)
        bounds = (known.ends_at, None if known.spent_at is None else known.spent_at + GRACE_SECONDS)
        until = min((bound for bound in bounds if bound is not None and bound >= self.model.now), default=self.model.now + HALFWAY_SECONDS)
        self.clock.now = self.model.now = until + late
        self.model.expire()

    @precondition(lambda self: self.model.open)
    @rule(number=numbers, age=st.integers(0, 3))
    def resume(self, number: int, age: int) -> None:
        known = self.some(number)
        token = known.tokens[-1 - age % len(known.tokens)]
        found = self.run(self.sessions.resume(token))
        if known.kind is SessionKind.PROGRAM:
            assert found is SessionOver.OTHER_KIND
        else:
            assert (found.token, found.session.id) == (token, known.id)

    @precondition(lambda self: self.model.open)
    @rule(number=numbers, age=st.sampled_from((0, 1, 1, 2)))
    def refresh(self, number: int, age: int) -> None:
        """``age``: how many refreshes ago the token was valid."""
        known = self.some(number)
        age %= len(known.tokens)
        found = self.run(self.sessions.refresh(known.tokens[-1 - age]))
        if known.kind is SessionKind.BROWSER:
            assert found is SessionOver.OTHER_KIND
        elif age == 0:
            known.tokens.append(found.token)
            known.spent_at = self.model.now
        elif age == 1 and known.spent_at is not None and self.model.now - known.spent_at <= GRACE_SECONDS:
            assert found.token == known.tokens[-1], "the answer that was lost"
        else:
            assert found == ClosedSession(known.id, known.user), "two callers have it"
            self.model.end(known)

    @precondition(lambda self: any(one.kind is SessionKind.PROGRAM for one in self.model.open))
    @rule(number=numbers, seconds=st.sampled_from((0, GRACE_SECONDS, GRACE_SECONDS + 1)))
    def lose_an_answer(self, number: int, seconds: float) -> None:
        programs = [one for one in self.model.open if one.kind is SessionKind.PROGRAM]
        index = self.model.open.index(programs[number % len(programs)])
        self.refresh(index, 0)
        self.clock.now = self.model.now = self.model.now + seconds
        self.model.expire()
        if index < len(self.model.open) and self.model.open[index] in programs:
            self.refresh(index, 1)

    @precondition(lambda self: any(one.step is not Step.DONE for one in self.model.open))
    @rule(number=numbers)
    def complete(self, number: int) -> None:
        halfway = [one for one in self.model.open if one.step is not Step.DONE]
        known = halfway[number % len(halfway)]
        session = self.run(self.sessions.find(known.id))
        self._replaced(known, self.run(self.sessions.complete(session)))
        known.step, known.ends_at = Step.DONE, self.model.end_of(known.kind, Step.DONE)
        assert self.run(self.sessions.complete(session)) is None, "once"

    @precondition(lambda self: self.model.open)
    @rule(number=numbers, team=st.sampled_from((None, TenantId(UUID(int=7)))))
    def switch_team(self, number: int, team: TenantId | None) -> None:
        known = self.some(number)
        self._replaced(known, self.run(self.sessions.switch_team(self.run(self.sessions.find(known.id)), team)))
        known.team = team

    @precondition(lambda self: self.model.open)
    @rule(number=numbers, age=st.integers(0, 3), by_token=st.booleans())
    def end(self, number: int, age: int, *, by_token: bool) -> None:
        known = self.some(number)
        if by_token:
            found = self.run(self.sessions.end_by_token(known.tokens[-1 - age % len(known.tokens)]))
            assert found == ClosedSession(known.id, known.user)
        else:
            assert not self.run(self.sessions.end(next(user for user in USERS if user != known.user), known.id)), "not a stranger's"
            assert self.run(self.sessions.end(known.user, known.id))
        self.model.end(known)

    @precondition(lambda self: self.model.open)
    @rule(number=numbers, keeps=st.booleans())
    def end_all(self, number: int, *, keeps: bool) -> None:
        kept = self.some(number)
        ended = [one for one in self.model.open if one.user == kept.user and not (keeps and one is kept)]
        assert self.run(self.sessions.end_all(kept.user, kept.id if keeps else None)) == len(ended)
        self.model.end(*ended)

    @precondition(lambda self: self.model.dead)
    @rule(number=numbers)
    def try_a_dead_token(self, number: int) -> None:
        token = self.model.dead[number % len(self.model.dead)]
        for use in (self.sessions.resume, self.sessions.refresh):
            assert self.run(use(token)) is SessionOver.ENDED
        assert self.run(self.sessions.end_by_token(token)) is None

    @invariant()
    def it_is_as_in_the_model(self) -> None:
        for user in USERS:
            complete = {one.id for one in self.model.open if one.user == user and one.step is Step.DONE}
            listed = self.run(self.sessions.list_of(user))
            assert {one.id for one in listed} == complete
            opened = [one.opened_at for one in listed]
            assert opened == sorted(opened, reverse=True)
        for known in self.model.open:
            found = self.run(self.sessions.find(known.id))
            assert (found.user_id, found.kind, found.step, found.team_id) == (known.user, known.kind, known.step, known.team)


@pytest.fixture
def machine(valkey_url: str) -> Iterator[type[Machine]]:
    with asyncio.Runner() as runner:
        context = Cache.open(valkey_url)
        Machine.runner, Machine.cache = runner, runner.run(context.__aenter__())
        yield Machine
        runner.run(context.__aexit__(None, None, None))


def test_sessions_are_as_in_the_model(machine: type[Machine]) -> None:
    most = 200 if tiers.is_nightly() else 40
    checks = settings(max_examples=most, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
    run_state_machine_as_test(machine, settings=checks)
