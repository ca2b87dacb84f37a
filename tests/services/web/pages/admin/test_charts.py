"""The admin charts: the page in all its states, its queries, and its live updates."""

import asyncio
import gzip
import re
from datetime import datetime, timedelta
from typing import Any, cast
from urllib.parse import quote

import httpx
import pytest
from litestar.types import ASGIApp

from services.web import alert_banner, live_updates, rendering, request_context
from services.web.charts import history_queries
from services.web.charts.history_queries import HistorySpan
from services.web.pages.admin import charts
from services.web.request_context import App
from shared import errors
from shared.api import auth
from shared.types import Credential, NodeId, UserRole
from tests.services.web import servers
from tests.services.web.browser import Browser
from tests.services.web.fake_mesh import NOW
from tests.services.web.pages.admin import fake_history, followed
from tests.services.web.pages.admin.admin_mesh import WORKER, AdminMesh

PATH = "/admin/charts"
OF_MESH = ("requests", "first", "tokens", "waiting", "running")
OF_MACHINES = ("cpu", "memory", "disk", "gpu", "gpu_memory", "heat")
OF_EITHER = ("round_trips",)
#: Queries for the page of a small mesh, of a large one, and of one machine.
FEW, MANY, OF_ONE = 5, 9, 3


def shown(text: str) -> list[str]:
    """Return the charts of a page, in order."""
    return re.findall(r'<h2 id="chart-([a-z_]+)"', text)


def rows(text: str, chart: str) -> list[str]:
    """Return the names of a chart's lines."""
    section = text.partition(f'id="chart-{chart}"')[2].partition("</section>")[0]
    return re.findall(r'<tr data-id="[^"]+"[^>]*><th scope="row"><bdi[^>]*>(.*?)</bdi>', section)


def count_queries(mesh: AdminMesh) -> int:
    return mesh.called_methods().count("metrics.getHistory")


async def test_every_chart_has_its_lines(root: Browser, mesh: AdminMesh) -> None:
    mesh.keep_everything()
    mesh.add_member(WORKER)
    page = await root.get(PATH)
    assert (page.status_code, shown(page.text)) == (200, [*OF_MESH, *OF_EITHER, *OF_MACHINES])
    assert rows(page.text, "requests") == ["Completed", "Failed", "Rate limited"]
    assert rows(page.text, "waiting") == ["smollm2"]
    # The label is the name under which the machine joined.
    assert rows(page.text, "heat") == ["rig GPU 0"]
    assert "No data" not in page.text


@pytest.mark.parametrize("span", HistorySpan)
async def test_each_span_needs_few_calls_and_is_kept_in_the_url(root: Browser, mesh: AdminMesh, span: HistorySpan) -> None:
    mesh.keep_everything()
    page = await root.get(f"{PATH}?span={span}")
    assert count_queries(mesh) == FEW
    assert {request.until - request.since for request in mesh.requests_of("metrics.getHistory")} == {history_queries.STEPS[span].whole}
    assert f'<a href="{PATH}?span={span}" aria-current="true">' in page.text
    # Only the last hour is live, and the page says so for the others.
    assert ('data-live-source="/live/charts"' in page.text, "This view doesn’t update." in page.text) == (
        span is HistorySpan.HOUR,
        span is not HistorySpan.HOUR,
    )
    assert ('data-live="p0"' in page.text) == (span is HistorySpan.HOUR)


async def test_calls_are_bounded_with_too_many_machines_for_one_response(root: Browser, mesh: AdminMesh) -> None:
    mesh.keep_everything()
    for place in range(250):
        mesh.keep_machine(f"UMANY{place:07}")
    page = await root.get(PATH)
    assert count_queries(mesh) == len(history_queries.HistoryQuery) == 14
    # Charts with few enough lines are split by machine, the others by service.
    assert rows(page.text, "heat") == ["inference GPU 0"]
    assert sorted(rows(page.text, "cpu")) == ["gateway", "inference"]


async def test_known_number_of_machines_avoids_refused_queries(root: Browser, mesh: AdminMesh) -> None:
    mesh.keep_everything()
    for place in range(250):
        node = NodeId(f"UMANY{place:07}".replace("0", "A").replace("1", "B").replace("8", "C").replace("9", "D").ljust(56, "A"))
        mesh.add_member(node)
        mesh.keep_machine(node[:12])
    page = await root.get(PATH)
    assert count_queries(mesh) == MANY
    assert rows(page.text, "heat") == ["inference GPU 0"]
    assert sorted(rows(page.text, "cpu")) == ["gateway", "inference"]
    page = await root.get(f"{PATH}?node={WORKER}")
    # The page of one machine needs as few queries as in a small mesh, and is complete.
    assert count_queries(mesh) == MANY + OF_ONE
    assert rows(page.text, "heat") == ["inference GPU 0"]
    assert rows(page.text, "cpu") == ["inference"]
    assert "Unavailable:" not in page.text


async def test_too_many_gpus_are_combined_with_one_more_query(root: Browser, mesh: AdminMesh) -> None:
    mesh.keep_everything()
    mesh.most_lines = 16
    for place in range(250):
        mesh.add_member(NodeId(f"U{place:055}"))
    for place in range(20):
        mesh.keep("gpu_usage_ratio", 0.5, service="inference", node=f"UMANY{place:07}", gpu="0")
    page = await root.get(PATH)
    assert count_queries(mesh) == MANY
    assert rows(page.text, "gpu") == ["inference GPU 0"]


async def test_each_machine_has_a_page(root: Browser, mesh: AdminMesh) -> None:
    mesh.keep_everything()
    mesh.add_member(WORKER, name="rig <1>")
    mesh.add_node(WORKER)
    link = f"{PATH}?node={WORKER}"
    assert f'href="{link}" aria-label="Charts of rig &lt;1&gt; UWORKERAA"' in (await root.get("/admin/nodes")).text
    before = count_queries(mesh)
    page = await root.get(link)
    assert (shown(page.text), count_queries(mesh) - before) == ([*OF_EITHER, *OF_MACHINES], OF_ONE)
    assert rows(page.text, "cpu") == ["rig &lt;1&gt;"]
    assert f'href="{PATH}?span=week&amp;node={WORKER}"' in page.text
    assert f'data-live-source="/live/charts?node={WORKER}"' in page.text
    assert "rig &lt;1&gt;</bdi>" in page.text


async def test_unknown_machine_has_no_lines(root: Browser, mesh: AdminMesh) -> None:
    mesh.keep_everything()
    page = await root.get(f"{PATH}?node=UNKNOWN{'A' * 49}")
    assert (page.status_code, shown(page.text), rows(page.text, "cpu")) == (200, [*OF_EITHER, "cpu", "memory", "disk"], [])
    assert "No data from machines." in page.text


@pytest.mark.parametrize("node", ["<script>", "short", "U" + "A" * 80, "../../etc"])
@pytest.mark.parametrize("path", [PATH, "/live/charts"])
async def test_invalid_machine_id_is_not_queried(root: Browser, mesh: AdminMesh, path: str, node: str) -> None:
    page = await root.get(f"{path}?node={quote(node)}")
    assert (page.status_code, count_queries(mesh)) == (404, 0)
    assert "Choose one from the list of nodes." in page.text


async def test_mesh_without_history_says_how_to_enable_it(root: Browser, mesh: AdminMesh) -> None:
    mesh.refused = errors.NotFound("this mesh keeps no history of its metrics", hint="give the metrics service a DATABASE_URL")
    page = await root.get(PATH)
    assert (page.status_code, shown(page.text)) == (200, [])
    assert "doesn’t record a history" in page.text
    assert "Give the metrics service a DATABASE_URL." in page.text
    # Without a history, the page opens no stream.
    assert "data-live-source" not in page.text


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(errors.NotReachable("no node of role metrics is alive"), id="no metrics service"),
        pytest.param(errors.Unavailable("PostgreSQL does not answer", hint="see `aicli stack status`"), id="no database"),
    ],
)
async def test_page_is_shown_while_the_history_is_unreadable(root: Browser, mesh: AdminMesh, error: errors.AimeshError) -> None:
    mesh.broken["metrics"] = error
    page = await root.get(f"{PATH}?span=week")
    assert page.status_code == 200
    assert "The history is unavailable right now:" in page.text
    assert f'<a href="{PATH}?span=week">Try again</a>' in page.text


async def test_empty_history_says_when_data_will_come(root: Browser) -> None:
    assert "collects data every 15 seconds" in (await root.get(PATH)).text
    assert "The history has just started" in (await root.get(f"{PATH}?span=month")).text


async def test_charts_work_without_auth_but_without_names(root: Browser, mesh: AdminMesh) -> None:
    mesh.keep_everything()
    mesh.broken["auth.listNodes"] = errors.NotReachable("nobody there")
    assert rows((await root.get(PATH)).text, "heat") == ["inference GPU 0"]


async def test_gap_is_described_and_not_drawn_as_zero(root: Browser, mesh: AdminMesh) -> None:
    away = range(40, 54)
    mesh.keep("active_users", lambda step: None if step in away else 2.0)
    mesh.keep_machine(fake_history.NODE, cpu=lambda step: None if step in away else 0.0)
    page = await root.get(PATH)
    assert "No data from 13:25 to 13:32." in page.text
    points = re.search(r'data-value="([0-9,.]+)"', page.text.partition('id="chart-cpu"')[2].partition("<tbody")[2])
    assert points is not None
    assert [each == "" for each in points[1].split(",")] == [step in away for step in range(120)]


async def test_only_administrators_see_and_follow_them(browser: Browser, mesh: AdminMesh) -> None:
    mesh.add_person("bob", UserRole.NODE_OWNER)
    await browser.sign_in("bob", "correct horse")
    assert [(await browser.get(path)).status_code for path in (PATH, "/live/charts")] == [403, 403]
    # The nodes page doesn't link to charts that the user may not see.
    assert "/admin/charts" not in (await browser.get("/nodes")).text
    assert count_queries(mesh) == 0


async def test_page_head_is_sent_before_the_history_is_read(app: ASGIApp, mesh: AdminMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh.keep_everything()
    mesh.add_person("root", UserRole.ADMIN)
    seen, whole = asyncio.Event(), AdminMesh.call

    async def slow(self: AdminMesh, method: Any, request: Any, **options: Any) -> Any:
        if method.name == "metrics.getHistory":
            await seen.wait()
        return await whole(self, method, request, **options)

    monkeypatch.setattr(AdminMesh, "call", slow)
    text = ""
    async with servers.serving(app) as origin, httpx.AsyncClient(base_url=origin) as client, asyncio.timeout(30):
        await Browser(client).sign_in("root", "correct horse")
        async with client.stream("GET", PATH) as answer:
            async for piece in answer.aiter_text():
                text += piece
                if "30 days" in text and not seen.is_set():
                    assert (answer.status_code, shown(text)) == (200, [])
                    seen.set()
    assert shown(text) == [*OF_MESH, *OF_EITHER, *OF_MACHINES]
    assert text.count("<h1") == text.count("</html>") == 1


async def test_slow_history_times_out(root: Browser, mesh: AdminMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh.keep_everything()
    monkeypatch.setattr(charts, "WHOLE_SECONDS", 0.0)
    page = await root.get(PATH)
    assert (page.status_code, count_queries(mesh)) == (200, 0)
    assert "Choose a shorter period." in page.text


async def test_largest_page_is_light(root: Browser, mesh: AdminMesh) -> None:
    mesh.keep_everything()
    for place in range(20):
        node = f"UMANY{place:07}"
        mesh.keep_machine(node, cpu=lambda step, place=place: (place + step % 7) / 40)  # type: ignore[misc]
        for name, size in (("usage_ratio", 0.7), ("memory_used_bytes", 6e10), ("memory_total_bytes", 8e10), ("temperature_celsius", 70.0)):
            mesh.keep(f"gpu_{name}", lambda step, size=size: size * (1 + step % 9 / 40), service="inference", node=node, gpu="0")  # type: ignore[misc]
    page = await root.get(PATH)
    files = rendering.load_assets().files
    names = set(re.findall(r'"/static/[0-9a-f]+/([^"]+)"', page.text)) | {
        "js/series_table.js",
        "js/texts.js",
        "js/bindings.js",
        "js/stream.js",
    }
    whole = len(page.content) + sum(len(files[name].packed or gzip.compress(files[name].content)) for name in names)
    assert [len(rows(page.text, name)) for name in OF_MACHINES] == [12] * 6
    assert whole < 150_000, (whole, len(page.content))


# --- live updates -------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def following(site: App, mesh: AdminMesh, clock: Clock) -> charts.ChartUpdates:
    user = mesh.add_person("root", UserRole.ADMIN)
    token = mesh.add_session(user)
    page_request = request_context.PageRequest(
        app=request_context.App(site.settings, site.caller, site.sessions, site.tokens, site.renderer, clock, site.gateway),
        request=cast("request_context.HttpRequest", None),
        session=auth.LoginSession(Credential("access-root"), 600, token, user),
    )
    return charts.ChartUpdates(page_request, "")


async def test_open_page_refreshes_every_fifteen_seconds(following: charts.ChartUpdates, mesh: AdminMesh, clock: Clock) -> None:
    mesh.keep_everything()
    seen = []
    for seconds in (0, 2, 12.9, 0.1, 2, 13):
        clock.now += timedelta(seconds=seconds)
        values = await following.read()
        seen.append((count_queries(mesh), "cpu" in values))
    # The page itself contains the first values.
    assert seen == [(0, False), (0, False), (0, False), (FEW, True), (FEW, True), (2 * FEW, True)]


@pytest.mark.parametrize(("took", "pause"), [(0.2, 15), (3, 30), (120, 300)])
async def test_expensive_history_is_refreshed_less_often(
    following: charts.ChartUpdates, mesh: AdminMesh, clock: Clock, took: float, pause: float
) -> None:
    def slow(_: int) -> float:
        clock.now = began + timedelta(seconds=took)
        return 1.0

    mesh.keep("active_users", slow)
    began = clock.now = clock.now + timedelta(seconds=15)
    await following.read()
    assert count_queries(mesh) == FEW
    clock.now = began + timedelta(seconds=pause - 0.5)
    await following.read()
    assert count_queries(mesh) == FEW
    clock.now = began + timedelta(seconds=pause)
    await following.read()
    assert count_queries(mesh) == 2 * FEW


async def test_open_page_is_stale_until_the_metrics_service_is_back(following: charts.ChartUpdates, mesh: AdminMesh, clock: Clock) -> None:
    mesh.keep_everything()
    seen: list[live_updates.Values] = []
    for seconds, is_unavailable in ((15, False), (15, True), (2, True), (13, False)):
        clock.now += timedelta(seconds=seconds)
        mesh.broken = {"metrics": errors.NotReachable("nobody there")} if is_unavailable else {}
        seen.append(await following.read())
    assert [values["connection"] for values in seen] == ["", "stale", "stale", ""]
    # Old values stay, and a stale page doesn't query more often.
    assert all("cpu" in values for values in seen)
    assert count_queries(mesh) == 3 * FEW


async def test_stream_has_every_value_the_page_names(root: Browser, following: charts.ChartUpdates, mesh: AdminMesh, clock: Clock) -> None:
    mesh.keep_everything()
    mesh.add_member(WORKER)
    clock.now += timedelta(seconds=15)
    values = await following.read()
    source = (await root.get(PATH)).text.split("data-live-source", 1)[1]
    lists = re.findall(r'data-live-list="([a-z_]+)".*?</tbody>', source, re.DOTALL)
    assert lists == [*OF_MESH, *OF_EITHER, *OF_MACHINES]
    parts = []
    for name in lists:
        row = re.search(rf'<tbody data-live-list="{name}".*?</tbody>', source, re.DOTALL)
        assert row is not None
        source = source.replace(row[0], "")
        parts.append((cast("list[dict[str, str]]", values[name])[0], row[0]))
    for known, part in [(values, source), *parts]:
        named = set(re.findall(r'data-live(?:-show|-list)?="([a-z0-9_]+)"', part))
        named |= {each.partition(":")[2] for pair in re.findall(r'data-live-attr="([^"]+)"', part) for each in pair.split()}
        assert named
        assert named - set(lists) - set(known) == set()


async def test_stream_is_for_administrators_only(app: ASGIApp, mesh: AdminMesh) -> None:
    mesh.keep_everything()
    mesh.add_person("root", UserRole.ADMIN)
    values = await followed.first_event(app, "/live/charts", "root")
    # The page itself contains the first values; the stream adds what all admin pages show.
    assert values == {"connection": ""} | alert_banner.values(alert_banner.NOTHING)
