"""The alert banner is cached: no page waits for it, and there are few calls."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from services.web import alert_banner
from services.web.alert_banner import MIN_POLL_SECONDS, REMEMBERED_SECONDS, AlertPoller
from shared import errors
from shared.api.alerts import Alert, Alerts
from shared.node.lifecycle import background
from shared.types import Credential
from tests.stopwatch import HANG_SECONDS

NOW = datetime(2026, 11, 20, 14, 5, tzinfo=UTC)


def alert(summary: str = "No worker is up", severity: str = "page", state: str = "firing", *, silenced: bool = False) -> Alert:
    return Alert("1", "no_worker", severity, {}, state, NOW, None, 1.0, summary, "", "docs/runbooks/no_worker.md", silenced)


@pytest.mark.parametrize(
    ("found", "words", "names"),
    [
        pytest.param([], "", "", id="nothing"),
        pytest.param([alert()], "1 alert:", "No worker is up", id="one"),
        pytest.param([alert(severity="critical")], "1 alert:", "No worker is up", id="a critical one"),
        pytest.param([alert(severity="warning"), alert(severity="ticket")], "", "", id="what can wait"),
        pytest.param([alert(state="pending"), alert(state="over")], "", "", id="what does not fire"),
        pytest.param([alert(silenced=True)], "", "", id="it is silenced"),
        pytest.param([alert("A"), alert("B", silenced=True), alert("C")], "2 alerts:", "A, C", id="two of three"),
        pytest.param([alert("A"), alert("A"), alert("B")], "3 alerts:", "A, B", id="the same words once"),
        pytest.param([alert(each) for each in "ABCDE"], "5 alerts:", "A, B, C, and 2 more", id="many"),
        pytest.param([alert(each) for each in "ABC"], "3 alerts:", "A, B, C", id="as many as are named"),
    ],
)
def test_banner_text(found: list[Alert], words: str, names: str) -> None:
    assert alert_banner.of(found) == alert_banner.AlertBanner(words=words, names=names)
    assert alert_banner.values(alert_banner.of(found)) == {"banner": words, "banner_names": names}


NO_ALERTS = Alerts((), ())
TOKEN = Credential("of ada")


def one(summary: str = "No worker is up") -> Alerts:
    return Alerts((Alert("1", "no_worker", "page", {}, "firing", NOW, None, 1.0, summary, "", "", silenced=False),), ())


@dataclass
class Metrics:
    """A fake mesh whose answer waits for a gate."""

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


async def polled(lookout: AlertPoller, metrics: Metrics) -> None:
    """Request the banner and wait for the answer."""
    metrics.answered.clear()
    lookout.want(TOKEN)
    async with asyncio.timeout(HANG_SECONDS):
        await metrics.answered.wait()
    await asyncio.sleep(0)


async def test_banner_is_empty_at_first_and_polled_only_on_demand() -> None:
    async with looking(one()) as (lookout, metrics):
        await asyncio.sleep(0)
        assert metrics.credentials == []
        assert lookout.banner().words == ""
        await polled(lookout, metrics)
        assert lookout.banner().words == "1 alert:"
        assert metrics.credentials == [TOKEN]


async def test_many_pages_cause_one_poll() -> None:
    async with looking(one(), NO_ALERTS) as (lookout, metrics):
        await polled(lookout, metrics)
        for _ in range(100):
            lookout.want(TOKEN)
            await asyncio.sleep(0)
        assert len(metrics.credentials) == 1
        metrics.now += MIN_POLL_SECONDS
        await polled(lookout, metrics)
        assert len(metrics.credentials) == 2
        assert lookout.banner().words == ""


async def test_hanging_service_blocks_no_page_and_is_polled_once_at_a_time() -> None:
    async with looking(one()) as (lookout, metrics):
        metrics.gate.clear()
        lookout.want(TOKEN)
        await asyncio.sleep(0)
        for _ in range(10):
            metrics.now += MIN_POLL_SECONDS
            lookout.want(TOKEN)
            assert lookout.banner().words == ""
            await asyncio.sleep(0)
        assert len(metrics.credentials) == 1
        assert metrics.deadlines[0] < MIN_POLL_SECONDS


async def test_cached_banner_expires_without_a_newer_answer() -> None:
    async with looking(one(), errors.NotReachable("no"), errors.NotAuthenticated("over"), NO_ALERTS) as (lookout, metrics):
        await polled(lookout, metrics)
        for _ in range(2):
            metrics.now += MIN_POLL_SECONDS
            await polled(lookout, metrics)
            assert lookout.banner().words == "1 alert:"
        metrics.now += REMEMBERED_SECONDS
        assert lookout.banner().words == ""
        # A failure doesn't stop the polling.
        await polled(lookout, metrics)
        assert len(metrics.credentials) == 4


async def test_alerts_read_by_a_page_update_the_cache() -> None:
    lookout = AlertPoller(lambda: 7.0)
    lookout.note(one())
    assert lookout.banner().names == "No worker is up"
    lookout.note(NO_ALERTS)
    assert lookout.banner().names == ""
