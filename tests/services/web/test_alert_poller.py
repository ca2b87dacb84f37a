"""What the top of the pages says is remembered: no page waits for it, and few questions are asked."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from services.web.alert_poller import ASK_AGAIN_SECONDS, REMEMBERED_SECONDS, AlertPoller
from shared import errors
from shared.api.alerts import Alert, Alerts
from shared.node.lifecycle import background
from shared.types import Credential
from tests.stopwatch import HANG_SECONDS

NOW = datetime(2026, 11, 20, 14, 5, tzinfo=UTC)
NOBODY = Alerts((), ())
TOKEN = Credential("of ada")


def one(summary: str = "No worker is up") -> Alerts:
    return Alerts((Alert("1", "no_worker", "page", {}, "firing", NOW, None, 1.0, summary, "", "", "", silenced=False),), ())


@dataclass
class Metrics:
    """Stands in for the mesh; an answer waits for its gate."""

    answers: list[Alerts | errors.AimeshError] = field(default_factory=list)
    credentials: list[Credential | None] = field(default_factory=list)
    deadlines: list[float] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    now: float = 1000.0

    async def call(self, _method: object, _request: object, *, deadline_seconds: float = 10, credential: Credential | None = None) -> Any:
        self.credentials.append(credential)
        self.deadlines.append(deadline_seconds)
        await self.gate.wait()
        self.answered.set()
        answer = self.answers.pop(0)
        if isinstance(answer, errors.AimeshError):
            raise answer
        return answer


@asynccontextmanager
async def looking(*answers: Alerts | errors.AimeshError) -> AsyncIterator[tuple[AlertPoller, Metrics]]:
    metrics = Metrics(list(answers))
    metrics.gate.set()
    lookout = AlertPoller(lambda: metrics.now)
    async with background() as tasks:
        tasks.create_task(lookout.run(metrics))  # type: ignore[arg-type]  # it makes no streams
        yield lookout, metrics


async def asked(lookout: AlertPoller, metrics: Metrics) -> None:
    """Somebody looks, and the answer is there."""
    metrics.answered.clear()
    lookout.want(TOKEN)
    async with asyncio.timeout(HANG_SECONDS):
        await metrics.answered.wait()
    await asyncio.sleep(0)


async def test_nothing_is_said_before_somebody_knows_and_nobody_is_asked_before_somebody_looks() -> None:
    async with looking(one()) as (lookout, metrics):
        await asyncio.sleep(0)
        assert metrics.credentials == []
        assert lookout.banner().words == ""
        await asked(lookout, metrics)
        assert lookout.banner().words == "1 alert:"
        assert metrics.credentials == [TOKEN]


async def test_a_crowd_of_pages_is_one_question() -> None:
    async with looking(one(), NOBODY) as (lookout, metrics):
        await asked(lookout, metrics)
        for _ in range(100):
            lookout.want(TOKEN)
            await asyncio.sleep(0)
        assert len(metrics.credentials) == 1
        metrics.now += ASK_AGAIN_SECONDS
        await asked(lookout, metrics)
        assert len(metrics.credentials) == 2
        assert lookout.banner().words == ""


async def test_a_service_that_does_not_answer_holds_nobody_up_and_is_not_asked_twice_at_once() -> None:
    async with looking(one()) as (lookout, metrics):
        metrics.gate.clear()
        lookout.want(TOKEN)
        await asyncio.sleep(0)
        for _ in range(10):
            metrics.now += ASK_AGAIN_SECONDS
            lookout.want(TOKEN)
            assert lookout.banner().words == ""
            await asyncio.sleep(0)
        assert len(metrics.credentials) == 1
        assert metrics.deadlines[0] < ASK_AGAIN_SECONDS


async def test_what_is_known_counts_while_there_is_no_newer_answer_and_not_for_ever() -> None:
    async with looking(one(), errors.NotReachable("no"), errors.NotAuthenticated("over"), NOBODY) as (lookout, metrics):
        await asked(lookout, metrics)
        for _ in range(2):
            metrics.now += ASK_AGAIN_SECONDS
            await asked(lookout, metrics)
            assert lookout.banner().words == "1 alert:"
        metrics.now += REMEMBERED_SECONDS
        assert lookout.banner().words == ""
        # A failure does not end the looking.
        await asked(lookout, metrics)
        assert len(metrics.credentials) == 4


async def test_what_the_page_of_alerts_has_read_is_known_everywhere() -> None:
    lookout = AlertPoller(lambda: 7.0)
    lookout.note(one())
    assert lookout.banner().names == "No worker is up"
    lookout.note(NOBODY)
    assert lookout.banner().names == ""
