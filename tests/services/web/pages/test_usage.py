import csv
import io
from datetime import timedelta

import httpx
import pytest

from shared import errors
from shared.api import usage_report
from shared.api.usage_report import UsageOfKey, UsageOfModel, UsageSum
from shared.types import MicroCredits, ModelName
from tests.services.web.browser import Browser
from tests.services.web.fake_mesh import NOW, FakeMesh
from tests.services.web.fake_usage import key_of

AWAY = errors.NotReachable("no node of that role is alive", hint="see `aicli stack status`")
SUM = UsageSum(1200, 7, 4000, 500, MicroCredits(2_500_000), 9, 400, 840)


@pytest.fixture
async def alice(mesh: FakeMesh, browser: Browser) -> Browser:
    """A browser in which alice is signed in."""
    mesh.add_account("alice", "correct horse")
    await browser.sign_in("alice", "correct horse")
    mesh.calls.clear()
    return browser


def report_requests(mesh: FakeMesh) -> list[usage_report.GetUsageReport]:
    return [call.request for call in mesh.calls if isinstance(call.request, usage_report.GetUsageReport)]


def rows(answer: httpx.Response) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(answer.text, newline="")))


async def test_usage_by_day_model_and_key(alice: Browser, mesh: FakeMesh) -> None:
    mesh.use(NOW, 1200, 4500, cost=2_500_000, p95_ms=840, failed=7)
    key = mesh.add_key(mesh.accounts["alice"].user, "laptop")
    mesh.used_models = (UsageOfModel(ModelName("rare"), UsageSum(1)), UsageOfModel(ModelName("smollm2"), SUM, up=3, down=1))
    mesh.used_keys = (UsageOfKey(None, UsageSum(2)), UsageOfKey(key.id, SUM), UsageOfKey(key_of(5), UsageSum(1)))
    page = await alice.get("/usage")
    assert page.status_code == 200
    assert ">1,200</p>" in page.text
    assert "7 failed, 9 cached" in page.text
    assert "3 up, 1 down" in page.text
    assert page.text.index("<bdi>smollm2</bdi>") < page.text.index("<bdi>rare</bdi>")
    assert f'href="/requests?key={key.id}"><bdi>laptop</bdi>' in page.text
    assert 'href="/requests?model=smollm2"><bdi>smollm2</bdi>' in page.text
    assert "<bdi>Signed-in session</bdi>" in page.text
    assert "<bdi>Another key (00000000)</bdi>" in page.text
    assert page.text.count('<tr data-id="2026-') == 30


@pytest.mark.parametrize(
    ("days", "shown"), [("30", 30), ("90", 90), ("365", 365), ("31", 30), ("", 30), ("-1", 30), ("٣٠", 30), ("x" * 300, 30)]
)
async def test_chosen_number_of_days_is_shown(alice: Browser, mesh: FakeMesh, days: str, shown: int) -> None:
    mesh.use(NOW, 1)
    page = await alice.client.get("/usage", params={"days": days})
    assert page.text.count('<tr data-id="202') == shown
    assert f'aria-current="true">{shown} days</a>' in page.text
    (sent,) = report_requests(mesh)
    assert sent.until - sent.since == timedelta(days=shown)


async def test_user_without_usage_is_led_to_the_playground(alice: Browser) -> None:
    page = await alice.get("/usage")
    assert 'No requests in the last 30 days. Try a model in the <a href="/playground">' in page.text
    assert "<table" not in page.text


@pytest.mark.parametrize(
    ("broken", "message"),
    [("gateway", "Usage is unavailable right now."), ("auth.listApiKeys", "Another key (00000000)")],
)
async def test_unavailable_part_is_missing_alone(alice: Browser, mesh: FakeMesh, broken: str, message: str) -> None:
    mesh.use(NOW, 1)
    mesh.used_keys = (UsageOfKey(key_of(5), SUM),)
    mesh.broken[broken] = AWAY
    page = await alice.get("/usage")
    assert page.status_code == 200
    assert message in page.text
    assert 'action="/usage.csv"' in page.text


async def test_hostile_names_are_escaped(alice: Browser, mesh: FakeMesh) -> None:
    mesh.use(NOW, 1)
    name = '<script>alert(1)</script>"&\u202e' + "x" * 200
    key = mesh.add_key(mesh.accounts["alice"].user, name)
    mesh.used_models = (UsageOfModel(ModelName(name), SUM),)
    mesh.used_keys = (UsageOfKey(key.id, SUM),)
    page = await alice.get("/usage")
    assert "<script>alert" not in page.text
    assert page.text.count("<bdi>&lt;script&gt;alert(1)") == 2
    assert 'href="/requests?model=%3Cscript%3Ealert' in page.text


async def test_csv_export_of_the_days(alice: Browser, mesh: FakeMesh) -> None:
    mesh.use(NOW, 3, 70, cost=1_500_000, p95_ms=840, failed=1)
    answer = await alice.get("/usage.csv?since=2026-11-18&until=2026-11-20")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/csv; header=present; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="aimesh-usage-2026-11-18-2026-11-20.csv"'
    found = rows(answer)
    assert [row["date"] for row in found] == ["2026-11-18", "2026-11-19", "2026-11-20"]
    assert (found[2]["requests"], found[2]["cost_credits"], found[2]["p95_ms"], found[0]["requests"]) == ("3", "1.5", "840", "0")


async def test_default_is_the_last_thirty_days(alice: Browser) -> None:
    found = rows(await alice.get("/usage.csv"))
    assert (found[0]["date"], found[-1]["date"], len(found)) == ("2026-10-22", "2026-11-20", 30)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("since=yesterday", "Since is not a date such as 2026-02-01."),
        ("since=2026-11-20&until=2026-11-19", "The first day is after the last."),
        ("since=2020-01-01&until=2026-11-19", "exceed the maximum of 750"),
        ("since=9999-12-01&until=9999-12-31", "Until is out of range."),
        ("until=0001-01-01", "Since is out of range."),
        ("since=%00&until=%27%22%3Cscript%3E", "Until is not a date"),
    ],
)
async def test_invalid_days_are_reported(alice: Browser, query: str, message: str) -> None:
    page = await alice.get(f"/usage.csv?{query}")
    assert page.status_code == 400
    assert page.headers["content-type"].startswith("text/html")
    assert message in page.text
    assert "<script>" not in page.text


async def test_typed_days_are_kept(alice: Browser) -> None:
    page = await alice.get("/usage.csv?since=2026-11-20&until=2026-11-19")
    assert 'name="since" type="date" value="2026-11-20"' in page.text
    assert 'name="until" type="date" value="2026-11-19"' in page.text


async def test_failed_export_is_an_error_page(alice: Browser, mesh: FakeMesh) -> None:
    mesh.broken["gateway"] = AWAY
    answer = await alice.get("/usage.csv")
    assert answer.status_code == 503
    assert "See <code>aicli stack status</code>." in answer.text


async def test_exports_need_a_session(browser: Browser, mesh: FakeMesh) -> None:
    for path in ("/usage.csv", "/requests.csv"):
        assert (await browser.get(path)).headers["location"] == f"/login?then={path}"
    assert "gateway.getUsageReport" not in mesh.called_methods()
