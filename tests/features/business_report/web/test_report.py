import csv
import io
import re

import pytest

from shared import errors
from shared.types import UserRole
from tests.services.web.browser import Browser
from tests.services.web.pages.admin.admin_mesh import AdminMesh

PATH = "/admin/report"


def heads(text: str) -> list[str]:
    return re.findall(r'<th role="rowheader" scope="row"[^>]*>(?:<a href="[^"]+">)?(?:<bdi>)?([^<]+)', text)


async def test_report_starts_with_days(root: Browser, mesh: AdminMesh) -> None:
    text = (await root.get(PATH)).text
    (sent,) = mesh.requests_of("gateway.getBusinessReport")
    assert ((sent.until - sent.since).days, sent.by) == (7, "day")  # type: ignore[attr-defined]
    assert heads(text) == [str(sent.since), "Total"]  # type: ignore[attr-defined]
    for word in (
        ">2.00<", "credits, 0.442 refunded", ">1,234<", "3 in 7, 2 in 24 hours, 1 in the last hour", "and 1 key created", ">75 %<",
        "3 of 4 ratings", ">1,221<", "21 failed, 5 rate limited", ">1,000,000<", "31.2 per second", ">7.65<", ">2.44<", "0.002 per request",
        "0.006 each", ">25 %<", "saved 0.04", "3 up, 1 down",
    ):  # fmt: skip
        assert word in text, word
    assert not mesh.requests_of("auth.nameUsers")


@pytest.mark.parametrize("by", ["user", "owner"])
async def test_users_have_names_and_links(root: Browser, mesh: AdminMesh, by: str) -> None:
    dana = mesh.add_person("dana", UserRole.DEVELOPER)
    text = (await root.get(f"{PATH}?by={by}&days=90")).text
    assert heads(text) == ["root", "dana", "Total"]
    assert f'href="/admin/users/{dana.id}"' in text
    mesh.broken["auth.nameUsers"] = errors.NotReachable("no auth is reachable")
    assert str(dana.id) in heads((await root.get(f"{PATH}?by={by}")).text)


async def test_unnamed_rows_say_so(root: Browser, mesh: AdminMesh) -> None:
    mesh.names = ("smollm2", None)
    assert heads((await root.get(f"{PATH}?by=model")).text) == ["smollm2", "No model", "Total"]
    mesh.names = ('{"region": "eu", "gpu": "a100"}', None)
    assert heads((await root.get(f"{PATH}?by=label")).text) == ["gpu=a100 region=eu", "No labels or node", "Total"]


async def test_choices_keep_each_other(root: Browser) -> None:
    text = (await root.get(f"{PATH}?by=model&days=30")).text
    assert '<a href="/admin/report?days=30&amp;by=model" aria-current="true">Model</a>' in text
    assert '<a href="/admin/report?days=30&amp;by=user">User</a>' in text
    assert '<a href="/admin/report?days=365&amp;by=model">365 days</a>' in text
    assert 'href="/admin/report.csv?days=30&amp;by=model"' in text


async def test_invalid_choice_is_the_default(root: Browser, mesh: AdminMesh) -> None:
    assert (await root.get(f"{PATH}?by=everything&days=-1")).status_code == 200
    (sent,) = mesh.requests_of("gateway.getBusinessReport")
    assert ((sent.until - sent.since).days, sent.by) == (7, "day")  # type: ignore[attr-defined]


async def test_empty_and_truncated_reports(root: Browser, mesh: AdminMesh) -> None:
    mesh.names = ()
    assert "No requests in the last 7 days." in (await root.get(PATH)).text
    mesh.names, mesh.more = ("a",), True
    assert "Only the most expensive rows are listed" in (await root.get(PATH)).text


async def test_csv_export_contains_no_formula(root: Browser, mesh: AdminMesh) -> None:
    mesh.names = ("=HYPERLINK(1)", None)
    answer = await root.get(f"{PATH}.csv?by=model&days=30")
    assert answer.headers["content-type"].startswith("text/csv")
    assert 'filename="aimesh-report-model-' in answer.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["model"] for row in rows] == ["'=HYPERLINK(1)", ""]
    assert {(row["requests"], row["cost_micro"], row["cost_credits"]) for row in rows} == {("1221", "2442000", "2.442")}


async def test_unavailable_services_are_left_out(root: Browser, mesh: AdminMesh) -> None:
    mesh.broken["auth.countNewAccounts"] = errors.NotReachable("no auth is reachable")
    assert "and 1 key created" not in (await root.get(PATH)).text
    mesh.broken["gateway.getBusinessReport"] = errors.NotReachable("no gateway is reachable")
    page = await root.get(PATH)
    assert (page.status_code, "The report is unavailable right now." in page.text) == (200, True)


async def test_names_are_escaped(root: Browser, mesh: AdminMesh) -> None:
    mesh.names = ("<script>alert(1)</script>",)
    text = (await root.get(f"{PATH}?by=model")).text
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
