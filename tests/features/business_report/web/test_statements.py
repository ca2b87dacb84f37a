"""The page of node owners' monthly statements."""

import csv
import io

import pytest

from shared.types import UserRole
from tests.services.web.browser import Browser
from tests.services.web.pages.admin.admin_mesh import AdminMesh


@pytest.fixture
def mesh() -> AdminMesh:
    return AdminMesh()


async def sign_in(mesh: AdminMesh, browser: Browser, role: UserRole) -> Browser:
    mesh.add_person("alice", role)
    await browser.sign_in("alice", "correct horse")
    return browser


@pytest.mark.parametrize(("role", "root"), [(UserRole.ADMIN, "/admin/nodes"), (UserRole.NODE_OWNER, "/nodes")])
async def test_a_month_is_shown_with_its_neighbors(mesh: AdminMesh, browser: Browser, role: UserRole, root: str) -> None:
    alice = await sign_in(mesh, browser, role)
    assert f'href="{root}/statement"' in (await alice.get(root)).text
    text = (await alice.get(f"{root}/statement")).text
    for word in (
        "Statement for November 2026",
        ">alice<",
        ">1,221<",
        ">12.500<",
        ">3.750<",
        "power",
        f'href="{root}/statement?month=2026-10"',
    ):
        assert word in text, word
    assert "Next month" not in text
    text = (await alice.get(f"{root}/statement?month=2025-12")).text
    assert f'href="{root}/statement?month=2026-01"' in text
    assert "Statement for December 2025" in text


async def test_the_share_is_shown_if_it_is_known(mesh: AdminMesh, browser: Browser) -> None:
    alice = await sign_in(mesh, browser, UserRole.ADMIN)
    assert "50 %" in (await alice.get("/admin/nodes/statement")).text
    mesh.energy_missing = "this mesh has no metrics history"
    text = (await alice.get("/admin/nodes/statement")).text
    assert "this mesh has no metrics history." in text


async def test_only_node_owners_have_the_page(mesh: AdminMesh, browser: Browser) -> None:
    alice = await sign_in(mesh, browser, UserRole.USER)
    assert (await alice.get("/nodes/statement")).status_code == 403


async def test_an_unknown_month_says_so(mesh: AdminMesh, browser: Browser) -> None:
    alice = await sign_in(mesh, browser, UserRole.NODE_OWNER)
    assert (await alice.get("/nodes/statement?month=never")).status_code == 400


async def test_csv_contains_no_formula(mesh: AdminMesh, browser: Browser) -> None:
    mesh.statement_owner = "=HYPERLINK(1)"
    alice = await sign_in(mesh, browser, UserRole.ADMIN)
    answer = await alice.get("/admin/nodes/statement.csv?month=2026-02")
    assert 'filename="aimesh-statement-2026-02.csv"' in answer.headers["content-disposition"]
    (row,) = csv.DictReader(io.StringIO(answer.text))
    assert (row["owner"], row["requests"], row["kwh"], row["measured_by"]) == ("'=HYPERLINK(1)", "1221", "12.5", "counter, power")
