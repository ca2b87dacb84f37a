"""The runbooks that alerts link to."""

import re
from pathlib import Path

import pytest

from services.web import runbooks
from shared.types import UserRole
from tests.services.web.browser import Browser
from tests.services.web.pages.admin.admin_mesh import AdminMesh

NAMES = sorted(path.stem for path in (Path(__file__).parents[5] / "docs" / "runbooks").glob("*.md"))


async def test_alert_links_to_its_runbook(root: Browser, mesh: AdminMesh) -> None:
    mesh.add_alert("no_worker")
    (link,) = re.findall(r'href="(/admin/runbooks/[^"]+)" data-live="runbook"[^>]*>no_worker<', (await root.get("/admin/alerts")).text)
    page = await root.get(link)
    assert page.status_code == 200
    assert ">no_worker</h2>" in page.text
    assert "Mitigation" in page.text


async def test_every_runbook_has_a_page_and_its_links_resolve(root: Browser) -> None:
    assert len(NAMES) > 30
    for name in NAMES:
        page = await root.get(f"/admin/runbooks/{name}")
        assert page.status_code == 200, name
        for link in re.findall(r"\]\((http[^)]*/admin/runbooks/[^)]*)\)", page.text):
            assert (await root.get(link.removeprefix("http://localhost:3000"))).status_code == 200, link
        assert not re.search(r"\]\((?!http)", page.text), f"{name} has a link that leads nowhere here"


@pytest.mark.parametrize("name", ["nothing", "..%2Fspec", "README.md"])
async def test_unknown_runbook_is_not_found(root: Browser, name: str) -> None:
    page = await root.get(f"/admin/runbooks/{name}")
    assert page.status_code == 404


async def test_only_administrators_read_runbooks(browser: Browser, mesh: AdminMesh) -> None:
    mesh.add_person("bob", UserRole.USER)
    await browser.sign_in("bob", "correct horse")
    assert (await browser.get("/admin/runbooks/no_worker")).status_code == 403


def test_paragraph_lines_are_joined_and_code_is_left_alone() -> None:
    text = "# name\n\nOne\ntwo.\n\n- an item\n  of two lines\n- another\n\n```bash\na\nb\n```\nAfter\nit.\n| a |\n| b |\n"
    assert runbooks.prepare(text, "") == ("One two.\n\n- an item of two lines\n- another\n\n```bash\na\nb\n```\nAfter it.\n| a |\n| b |\n")


def test_links_lead_to_our_pages_or_name_the_file() -> None:
    text = "# name\n\n## What\n\nSee [x](other.md#part), [y](../reference/errors.md) and [z](https://example.org)."
    assert runbooks.prepare(text, "https://ai.example.org/admin/runbooks") == (
        "# What\n\nSee [x](https://ai.example.org/admin/runbooks/other), y (`docs/reference/errors.md`) and [z](https://example.org)."
    )
