"""The Capacity page: pools, their charts, and the calls of their hooks."""

from datetime import timedelta

from features.autoscaling import contract
from features.autoscaling.contract import PoolScaling, ScaleCallEntry, ScaleCallState, Scaling
from features.autoscaling.lists import POOLS
from features.autoscaling.web import pages
from services.web.charts.history_queries import HistorySpan
from shared import errors
from shared.api import metrics
from shared.api.metrics import History, HistoryLine
from shared.types import UserRole
from tests.services.web.browser import Browser
from tests.services.web.fake_mesh import NOW
from tests.services.web.pages.admin.admin_mesh import AdminMesh

PATH = "/admin/capacity"
POOL = PoolScaling(
    pool="l4", ready=2, starting=1, wanted=4, reason="4 requests/s and 9 waiting need 4", waiting=9, oldest_seconds=12.4,
    cost_per_hour=1.98, as_of=NOW, fresh=True, min=1, max=5, hook="exec",
)  # fmt: skip
STALE = PoolScaling(pool="t4", reason="quiet", as_of=NOW - timedelta(minutes=5), max=3)
CALLS = (
    ScaleCallEntry("l4", NOW, 3, 4, "load <b>", ScaleCallState.RUNNING, 1),
    ScaleCallEntry("l4", NOW, 2, 3, "load", ScaleCallState.FAILED, 3, "ended with 1: <no quota>"),
)


def history(*lines: HistoryLine) -> History:
    return History(NOW - timedelta(hours=1), 30, 15, lines)


WANTED = HistoryLine(pages.WANTED, {"pool": "l4"}, (None, 3.0, 4.0))
READY = HistoryLine(pages.REPLICAS, {"pool": "l4", "state": "ready"}, (None, 2.0, 2.0))


def test_lines_are_in_order_and_of_their_pool() -> None:
    other = HistoryLine(pages.REPLICAS, {"pool": "t4", "state": "ready"}, (1.0,))
    view = pages.describe(Scaling((POOL, STALE)), history(READY, other, WANTED), HistorySpan.HOUR)
    assert [(chart.pool, [(line.label, line.points, line.latest) for line in chart.lines]) for chart in view.charts] == [
        ("l4", [("Wanted", ",3,4", "4"), ("Ready", ",2,2", "2")]),
        ("t4", [("Ready", "1,,", "1")]),
    ]
    assert (view.cost, view.since, view.step_seconds) == ("1.98", str(int(NOW.timestamp()) - 3600), 30)


def test_states_of_pools() -> None:
    full, given_up = PoolScaling(pool="a", denied=2, fresh=True), PoolScaling(pool="b", given_up=True, fresh=True)
    view = pages.describe(Scaling((POOL, full, given_up, STALE)), history(), HistorySpan.DAY)
    state, reason = (next(column.show for column in POOLS.columns if column.title == title) for title in ("State", "Reason"))
    assert [state(pool) for pool in view.pools] == ["OK", "Limited", "Given up", "No data"]
    assert reason(view.pools[3]) == "no data since 2026-11-20 14:00:00 UTC, so nothing changes; last: quiet"
    assert view.without_charts == "no data for this period yet"


async def test_everything_is_shown(root: Browser, mesh: AdminMesh) -> None:
    mesh.scaling = Scaling((POOL, STALE), CALLS, "POOLS_FILE: line 4: min 6 is more than max 5")
    text = (await root.get(PATH)).text
    for part in (
        'data-label="Starting">1<', ">1 to 5<", ">9<", ">12 s<", ">1.98<", "9 waiting need 4", "3 → 4", ">Running<", ">Failed<",
        "ended with 1: &lt;no quota&gt;", "load &lt;b&gt;", "line 4: min 6", "1.98 per hour",
    ):  # fmt: skip
        assert part in text, part


async def test_without_pools_it_says_what_to_do(root: Browser) -> None:
    text = (await root.get(PATH)).text
    assert "POOLS_FILE" in text
    assert "<table" not in text


async def test_without_metrics_or_history(root: Browser, mesh: AdminMesh) -> None:
    mesh.broken[metrics.get_history.name] = errors.NotFound("this mesh has no metrics history", hint="set DATABASE_URL")
    mesh.scaling = Scaling((POOL,))
    text = (await root.get(PATH)).text
    assert "No charts: This mesh has no metrics history; set DATABASE_URL." in text
    assert "No hook has been called yet" in text
    mesh.broken[contract.get_scaling.name] = errors.NotReachable("no metrics service answers", hint="start it")
    assert "No metrics service answers." in (await root.get(PATH)).text


async def test_only_administrators_open_it(browser: Browser, mesh: AdminMesh) -> None:
    mesh.add_person("bob", UserRole.NODE_OWNER)
    await browser.sign_in("bob", "correct horse")
    answer = await browser.get(PATH)
    assert answer.status_code == 403
    assert "Only administrators can open this page" in answer.text
    assert "metrics.getScaling" not in mesh.called_methods()
