"""The Backups page: what needs attention first, the list, the sites, and what to do without backups."""

import re
from datetime import timedelta

import pytest

from features.backup import contract
from features.backup.contract import Backups, BackupState, RestoreTest, SiteTerm
from features.backup.web import pages as page
from shared import errors
from shared.types import UserRole
from tests.cases import case
from tests.features.backup.web.backup_samples import NEWEST, VERIFIED, backups
from tests.services.web.browser import Browser
from tests.services.web.fake_mesh import NOW
from tests.services.web.pages.admin.admin_mesh import AdminMesh

PATH = "/admin/backups"
OTHER = SiteTerm(site="south", term=4, at=NOW)
FAILED = RestoreTest(at=NOW, ok=False, seconds=9, why="a digest differs")


def test_the_most_urgent_state_is_shown() -> None:
    """Most cases also have the less urgent problems that follow."""
    failing = {"store_failing_since": NOW, "store_error": "403 Forbidden", "last_test": FAILED, "backups": ()}
    for found, word, tone, text in (
        (Backups(state=BackupState.OFF), "No backups", "warn", "lose everything"),
        (Backups(state=BackupState.MISSING), "No backups", "warn", "lose everything"),
        (Backups(state=BackupState.ON), "Waiting", "warn", "aicli stack logs backup"),
        (Backups(state=BackupState.ON, age_seconds=120), "Waiting", "warn", "aicli stack logs backup"),
        (Backups(state=BackupState.ON, age_seconds=121), "Agent down", "bad", "has never reported"),
        (backups(121, replaced_by=OTHER, **failing), "Replaced", "bad", "south took over with term 4 at 20 Nov 2026, 14:05 UTC"),
        (backups(121, **failing), "Agent down", "bad", "2 min ago"),
        (backups(120, **failing), "Store failing", "bad", "403 Forbidden"),
        (backups(last_test=FAILED, backups=()), "Test failed", "bad", "a digest differs"),
        (backups(last_test=None, backups=()), "No backup yet", "warn", "isn’t complete"),
        (backups(), "OK", "good", "the store works"),
    ):
        with case(word):
            view = page.describe(found)
            assert (view.word, view.tone) == (word, tone)
            assert text in view.sentence


async def test_everything_in_the_report_is_shown(root: Browser, mesh: AdminMesh) -> None:
    mesh.backups = backups()
    text = (await root.get(PATH)).text
    for word in (
        "from 13 Nov 2026, 14:05:00 UTC", "to 20 Nov 2026, 14:04:56 UTC", "s3://backups/aimesh", "before &lt;1.4&gt;", NEWEST.name,
        VERIFIED.name, "not yet", "19 Nov 2026, 18:05 UTC",
        ">4 s<", ">95 s<",
        "<code>aicli stack restore</code>", "<bdi>s3://backups/aimesh</bdi>",
    ):  # fmt: skip
        assert word in text, word
    assert text.index(NEWEST.name) < text.index(VERIFIED.name)
    # The page is read-only.
    assert not re.findall(r'<form[^>]*action="/admin/backups', text)


@pytest.mark.parametrize("state", [BackupState.OFF, BackupState.MISSING])
async def test_without_backups_it_says_how_to_turn_them_on(root: Browser, mesh: AdminMesh, state: BackupState) -> None:
    mesh.backups = Backups(state=state)
    text = (await root.get(PATH)).text
    for word in ("No backups", "aicli stack backup keygen", "BACKUP_TO=", "BACKUP_RECIPIENTS="):
        assert word in text
    assert "<table" not in text
    assert re.search(r'data-live-show="without_backups">.*There are no backups', (await root.get("/admin")).text)


async def test_health_does_not_warn_with_backups_or_without_an_answer(root: Browser, mesh: AdminMesh) -> None:
    mesh.backups = backups()
    assert 'data-live-show="without_backups" hidden>' in (await root.get("/admin")).text
    mesh.broken[contract.get_backups.name] = errors.NotReachable("nobody there")
    mesh.backups = Backups(state=BackupState.MISSING)
    assert 'data-live-show="without_backups" hidden>' in (await root.get("/admin")).text


async def test_it_says_that_auth_does_not_answer(root: Browser, mesh: AdminMesh) -> None:
    mesh.broken[contract.get_backups.name] = errors.NotReachable("no auth service answers", hint="start it")
    answer = await root.get(PATH)
    assert "No auth service answers." in answer.text
    assert "Unknown" in answer.text


async def test_only_administrators_open_it(browser: Browser, mesh: AdminMesh) -> None:
    mesh.add_person("bob", UserRole.NODE_OWNER)
    await browser.sign_in("bob", "correct horse")
    answer = await browser.get(PATH)
    assert answer.status_code == 403
    assert "Only administrators can open this page" in answer.text
    assert "auth.getBackups" not in mesh.called_methods()


async def test_unknown_figures(root: Browser, mesh: AdminMesh) -> None:
    mesh.backups = backups(
        wal_lag_seconds=None, recoverable_from=None, last_test=None, backups=(),
        store_failing_since=NOW - timedelta(minutes=2),
    )  # fmt: skip
    text = (await root.get(PATH)).text
    assert text.count('<p class="big none">–</p>') == 2
    assert "no reason given" in text
    assert "Make one now with <code>aicli stack backup</code>" in text
