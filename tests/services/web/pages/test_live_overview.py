"""The live overview page."""

import re
from datetime import datetime, timedelta
from typing import cast

import pytest
from litestar.types import ASGIApp

from services.web import request_context
from services.web.charts.usage_chart import UsageSpan
from services.web.pages import overview
from services.web.pages.overview import LastReport, OverviewUpdates
from services.web.request_context import App
from shared import errors
from shared.api import auth, gateway
from shared.types import Credential, RequestId, RequestStatus
from tests.services.web.browser import Browser
from tests.services.web.fake_mesh import NOW, FakeMesh
from tests.services.web.fake_usage import key_of
from tests.services.web.pages.admin import followed

OLD, NEW = RequestId(key_of(1)), RequestId(key_of(2))


@pytest.mark.parametrize(
    ("took", "seconds", "newest", "due"),
    [
        pytest.param(0.01, 0, OLD, False, id="nothing is new"),
        pytest.param(0.01, 0.9, NEW, False, id="new requests, and the last report was just now"),
        pytest.param(0.01, 1, NEW, True, id="new requests, and a report is cheap"),
        pytest.param(0.5, 9, NEW, False, id="new requests, and a report is work"),
        pytest.param(0.5, 10, NEW, True, id="the gateway has rested"),
        pytest.param(5, 59, NEW, False, id="a report is very much work"),
        pytest.param(5, 60, NEW, True, id="and is made all the same"),
        pytest.param(0.01, 59, OLD, False, id="no new requests"),
        pytest.param(0.01, 60, OLD, True, id="the hours go by without requests"),
        pytest.param(0.01, 1, None, True, id="the log was emptied"),
        pytest.param(-30, 1, NEW, True, id="the clock was set back"),
    ],
)
def test_when_a_report_is_due(took: float, seconds: float, newest: RequestId | None, due: bool) -> None:
    last = LastReport(NOW, took, OLD)
    assert overview.is_due(last, newest, NOW + timedelta(seconds=seconds)) is due


def test_first_report_is_always_due() -> None:
    assert overview.is_due(None, None, NOW)


async def test_stream_has_every_value_the_page_names(app: ASGIApp, browser: Browser, mesh: FakeMesh) -> None:
    mesh.add_account("alice", "correct horse")
    mesh.log(NOW, RequestStatus.LIMITED, "rate_limited")
    mesh.limits = (gateway.LimitState("user", "requests_per_hour", 1000, 960, 2480.0),)
    mesh.notices = (gateway.AccountNotice(gateway.NoticeKind.LIMIT, "it is used up", "wait 41 min"),)
    values = await followed.first_event(app, "/live/overview?span=day", "alice")
    assert values["notices"] == [{"id": "limit", "text": "It is used up.", "hint": "Wait 41 min.", "href": "", "label": ""}]
    await browser.sign_in("alice", "correct horse")
    text = (await browser.get("/dashboard?span=day")).text
    source, rows = text.split("data-live-source", 1)[1], []
    for name in ("buckets", "limits", "recent", "notices"):
        # Names inside a list's rows refer to the row's values.
        row = re.search(rf'data-live-list="{name}".*?</(?:tbody|ul)>', source, re.DOTALL)
        assert row is not None
        source = source.replace(row[0], "")
        rows.append((values[name][0], row[0]))
    for known, part in [(values, source), *rows]:
        named = set(re.findall(r'data-live(?:-show|-list)?="([a-z0-9_]+)"', part))
        named |= {each.partition(":")[2] for pair in re.findall(r'data-live-attr="([^"]+)"', part) for each in pair.split()}
        assert named - set(known) - {"buckets", "limits", "recent", "notices"} == set()
        assert named
    assert (values["requests"], values["is_used"], values["is_unused"], len(values["buckets"])) == ("1", True, False, 24)
    assert (values["recent"][0]["code"], values["no_recent"], values["no_limits"]) == ("rate_limited", False, False)
    assert (values["limits"][0]["left"], values["connection"]) == ("960", "")


async def test_first_page_equals_the_stream(app: ASGIApp, browser: Browser, mesh: FakeMesh) -> None:
    mesh.add_account("alice", "correct horse")
    mesh.use(NOW, 3, 1234, cost=1_500_000, p95_ms=840)
    values = await followed.first_event(app, "/live/overview", "alice")
    await browser.sign_in("alice", "correct horse")
    text = (await browser.get("/dashboard")).text
    for name in ("requests", "tokens", "tokens_detail", "cost", "p95", "p95_detail", "credits"):
        assert f'data-live="{name}">{values[name]}</p>' in text, name


async def test_stream_without_the_gateway_is_stale(app: ASGIApp, mesh: FakeMesh) -> None:
    mesh.add_account("alice", "correct horse")
    mesh.broken["gateway"] = errors.NotReachable("nobody there")
    assert await followed.first_event(app, "/live/overview", "alice") == {"connection": "stale"}


async def test_visitor_cannot_follow(browser: Browser, mesh: FakeMesh) -> None:
    answer = await browser.get("/live/overview")
    # The login must not return to a stream. The page's script treats the redirect as the end of the session.
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert mesh.called_methods() == []


async def test_stream_ends_with_the_session(app: ASGIApp, browser: Browser, mesh: FakeMesh) -> None:
    mesh.add_account("alice", "correct horse")
    await browser.sign_in("alice", "correct horse")
    mesh.sessions.clear()
    assert (await browser.get("/live/overview")).headers["location"] == "/login?done=ended"


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


async def test_report_is_requested_again_only_when_due(site: App, mesh: FakeMesh) -> None:
    user = mesh.add_account("alice", "correct horse")
    token = mesh.add_session(user)
    clock = Clock()
    made = request_context.PageRequest(
        app=request_context.App(site.settings, site.caller, site.sessions, site.tokens, site.renderer, clock, site.gateway),
        # A stream no longer has its request.
        request=cast("request_context.HttpRequest", None),
        session=auth.LoginSession(Credential("access-alice"), 600, token, user),
    )
    following = OverviewUpdates(made, UsageSpan.MONTH)
    shown = []
    for seconds, new in ((0, False), (2, False), (0.5, True), (2, True), (0.5, True), (2, False), (2, False), (60, False)):
        clock.now += timedelta(seconds=seconds)
        if new:
            mesh.log(clock.now)
        values = await following.read()
        shown.append((values["requests"], mesh.called_methods().count("gateway.getUsageReport")))
    # New requests appear with the next report. Without new requests, the page asks for a report once a minute.
    assert shown == [("0", 1), ("0", 1), ("1", 2), ("2", 3), ("2", 3), ("3", 4), ("3", 4), ("3", 5)]
