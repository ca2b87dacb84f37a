import json
import re
from datetime import UTC, datetime

import pytest

from services.web.pages.admin import audit_log
from shared import errors
from shared.api.audit import AuditReport, ChainState, ExportAudit, ListAudit, Result, VerifyAudit
from tests.services.web.browser import Browser, forms_of
from tests.services.web.pages.admin.admin_mesh import AdminMesh

PATH = "/admin/audit"


def sequences(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"Details: row (\d+), chain house", text)]


async def test_rows_are_shown_with_their_details(root: Browser, mesh: AdminMesh) -> None:
    mesh.add_row(1)
    mesh.add_row(2, "session.open", Result.REFUSED, "bob")
    text = (await root.get(PATH)).text
    assert sequences(text) == [2, 1]
    for word in ("session.open", "refused", "alice", "laptop", "192.0.2.7", "<dt>kind</dt>", "ab" * 32):
        assert word in text


async def test_empty_log_says_so(root: Browser) -> None:
    assert "No matching entries." in (await root.get(PATH)).text


async def test_filters_are_sent_and_kept_in_the_fields(root: Browser, mesh: AdminMesh) -> None:
    mesh.add_row(1, result=Result.FAILED)
    page = await root.get(f"{PATH}?chain=house&actor=alice&action=key&result=failed&since=2026-02-01")
    assert mesh.requests_of("auth.listAudit") == [
        ListAudit("house", "alice", "key", Result.FAILED, datetime(2026, 2, 1, tzinfo=UTC), None, audit_log.ROWS_OF_A_PAGE)
    ]
    for field in ('value="house"', 'value="alice"', 'value="key"', 'value="2026-02-01"', '<option value="failed" selected>'):
        assert field in page.text
    assert sequences(page.text) == [1]


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        pytest.param("since=yesterday", 400, "Since is not a date such as 2026-02-01.", id="no day"),
        pytest.param("before=x", 400, "Before is not a date such as 2026-02-01.", id="no moment"),
        pytest.param("result=good", 400, "Unknown result.", id="no result"),
        pytest.param("actor=nobody", 404, "There is no user called &#39;nobody&#39;.", id="nobody"),
    ],
)
async def test_invalid_filter_is_reported(root: Browser, query: str, status: int, message: str) -> None:
    page = await root.get(f"{PATH}?{query}")
    assert page.status_code == status
    assert message in page.text


async def test_older_rows_keep_the_filters(root: Browser, mesh: AdminMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_log, "ROWS_OF_A_PAGE", 3)
    for number in range(1, 6):
        mesh.add_row(number)
    page = await root.get(f"{PATH}?result=done&chain=house")
    assert sequences(page.text) == [5, 4, 3]
    older = re.findall(r'<a href="([^"]+)" rel="next">', page.text)[0].replace("&amp;", "&")
    assert "result=done" in older
    page = await root.get(older)
    assert sequences(page.text) == [2, 1]
    assert 'rel="next"' not in page.text
    assert ">Newest</a>" in page.text


async def test_intact_log_is_reported_as_intact(root: Browser, mesh: AdminMesh) -> None:
    mesh.report = AuditReport((ChainState("house", 1200, None, "", 7), ChainState("x", 34, None, "", 1)))
    page = await root.submit(await root.get(PATH), f"{PATH}/verify")
    assert page.status_code == 200
    assert "The log is intact." in page.text
    assert "1,234 rows in 2 chains against 8 signed anchors." in page.text
    mesh.report = AuditReport((ChainState("house", 1, None, "", 1),))
    page = await root.submit(await root.get(PATH), f"{PATH}/verify")
    assert "1 row in 1 chain against 1 signed anchor." in page.text


async def test_first_bad_row_is_named(root: Browser, mesh: AdminMesh) -> None:
    mesh.report = AuditReport((ChainState("house", 12, None, "", 7), ChainState("abc", 34, 17, "the row was <edited>", 1)))
    page = await root.submit(await root.get(PATH), f"{PATH}/verify")
    assert "The log was modified." in page.text
    assert "Chain <code>abc</code>: first bad row 17. The row was &lt;edited&gt;." in page.text
    assert "<code>house</code>: row" not in page.text


async def test_too_long_log_is_verified_with_the_command(root: Browser, mesh: AdminMesh) -> None:
    page = await root.get(f"{PATH}?chain=house")
    mesh.broken["auth.verifyAudit"] = errors.DeadlineExceeded("no answer within 60 s")
    answer = await root.submit(page, f"{PATH}/verify")
    assert answer.status_code == 504
    assert "<code>aicli admin audit verify</code>, which has no time limit" in answer.text
    assert mesh.requests_of("auth.verifyAudit") == [VerifyAudit("house")]


async def test_export_is_a_file_of_json_lines(root: Browser, mesh: AdminMesh) -> None:
    for number in range(1, 4):
        mesh.add_row(number)
    page = await root.get(f"{PATH}?chain=house&since=2026-02-01")
    answer = await root.submit(page, f"{PATH}/export")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    assert answer.headers["content-disposition"] == 'attachment; filename="aimesh-audit-2026-11-20.jsonl"'
    rows = [json.loads(line) for line in answer.text.splitlines()]
    assert [(row["sequence"], row["act"]["action"], row["hash"]) for row in rows] == [(n, "key.create", "ab" * 32) for n in (1, 2, 3)]
    assert mesh.requests_of("auth.exportAudit") == [ExportAudit("house", datetime(2026, 2, 1, tzinfo=UTC))]


async def test_empty_export_is_an_empty_file(root: Browser) -> None:
    answer = await root.submit(await root.get(PATH), f"{PATH}/export")
    assert (answer.status_code, answer.content) == (200, b"")


async def test_failed_export_is_a_page_not_a_file(root: Browser, mesh: AdminMesh) -> None:
    page = await root.get(PATH)
    mesh.broken["auth.exportAudit"] = errors.Unavailable("PostgreSQL does not answer", hint="try again")
    answer = await root.submit(page, f"{PATH}/export")
    assert answer.status_code == 503
    assert "content-disposition" not in answer.headers
    assert "PostgreSQL does not answer" in answer.text


@pytest.mark.parametrize("what", ["verify", "export"])
async def test_cross_site_form_is_refused(root: Browser, mesh: AdminMesh, what: str) -> None:
    page = await root.get(PATH)
    assert (await root.submit(page, f"{PATH}/{what}", {"Sec-Fetch-Site": "cross-site"})).status_code == 403
    assert (await root.submit(page, f"{PATH}/{what}", token="forged")).status_code == 403
    assert (await root.get(f"{PATH}/{what}")).status_code == 405
    assert not {"auth.verifyAudit", "auth.exportAudit"} & set(mesh.called_methods())


async def test_text_from_others_is_escaped(root: Browser, mesh: AdminMesh) -> None:
    mesh.add_row(1, target='"><script>alert(1)</script>\u202egnp')
    text = (await root.get(PATH)).text
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
    odd = await root.client.get(PATH, params={"chain": '"><script>alert(1)'})
    assert "<script>alert" not in odd.text
    assert forms_of(odd)[f"{PATH}/verify"]["chain"] == '"><script>alert(1)'


async def test_unavailable_auth_is_reported(root: Browser, mesh: AdminMesh) -> None:
    mesh.broken["auth.listAudit"] = errors.NotReachable("no auth is reachable")
    assert (await root.get(PATH)).status_code == 503
