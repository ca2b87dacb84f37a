import csv
import io
import json
import zipfile
from collections.abc import AsyncGenerator

import httpx
import pytest

from services.web import features
from shared import errors
from tests.services.web.browser import CONFIRM, Browser, forms_of
from tests.services.web.fake_mesh import FakeMesh

AWAY = errors.NotReachable("no node of that role is alive")
HERE = "/settings/data"


async def export(browser: Browser) -> httpx.Response:
    return await browser.submit(await browser.get(HERE), f"{HERE}/export")


def unpacked(answer: httpx.Response) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


#: The files of features.
OF_FEATURES = [name for part in features.parts() for name in part.archive]


async def test_archive_has_the_data_of_auth_and_gateway(alice: Browser, mesh: FakeMesh) -> None:
    mesh.add_logged_request("smollm2")
    mesh.add_logged_request('=HYPERLINK("https://evil.example")')
    answer = await export(alice)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == 'attachment; filename="aimesh-2026-11-20.zip"'
    assert answer.headers["cache-control"] == "no-store"
    files = unpacked(answer)
    assert [name for name in files if not name.startswith("files")] == [
        "README.txt",
        "account.json",
        "requests.csv",
        "usage.json",
        *(f"{name}.json" for name in OF_FEATURES),
    ]
    assert json.loads(files["account.json"]) == [{"username": "alice"}]
    rows = list(csv.DictReader(io.StringIO(files["requests.csv"].decode(), newline="")))
    assert [row["model"] for row in rows] == ["smollm2", '\'=HYPERLINK("https://evil.example")']
    assert (rows[0]["cost_credits"], rows[0]["completion_tokens"], rows[0]["created_at"]) == ("1.5", "9", "2026-11-20T14:05:00+00:00")
    assert json.loads(files["usage.json"])["total"]["requests"] == 2


async def test_archive_has_the_files_of_a_feature_and_a_note_in_place_of_one_that_is_cut_off(
    alice: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cut_off() -> AsyncGenerator[bytes]:
        yield b"half"
        raise errors.LinkLost("4 of 8 bytes arrived")

    async def whole() -> AsyncGenerator[bytes]:
        yield b"all"

    async def archive_files(_page_request: object) -> AsyncGenerator[tuple[str, AsyncGenerator[bytes]]]:
        yield "acme/1", cut_off()
        yield "acme/2", whole()

    monkeypatch.setattr(features, "parts", lambda: [features.WebPart(archive_files=archive_files)])
    files = unpacked(await export(alice))
    assert (files["acme/1"], files["acme/2"]) == (b"half", b"all")
    assert "acme/1-MISSING.txt" in files


async def test_export_is_confirmed_before_its_first_byte(alice: Browser, mesh: FakeMesh) -> None:
    mesh.is_stale = True
    confirm_page = await export(alice)
    assert confirm_page.status_code == 403
    assert CONFIRM in confirm_page.text
    answer = await alice.submit(confirm_page, f"{HERE}/export", confirm_password="correct horse")
    assert "README.txt" in unpacked(answer)


async def test_unavailable_gateway_leaves_a_note_in_the_archive(alice: Browser, mesh: FakeMesh) -> None:
    mesh.broken["gateway"] = AWAY
    files = unpacked(await export(alice))
    assert [name for name in files if not name.startswith("files")] == [
        "README.txt",
        "account.json",
        "requests-MISSING.txt",
        "usage-MISSING.txt",
        *(f"{name}-MISSING.txt" for name in OF_FEATURES),
    ]
    assert b"Export the data again" in files["usage-MISSING.txt"]


async def test_unavailable_auth_gives_503_and_no_archive(alice: Browser, mesh: FakeMesh) -> None:
    mesh.broken["auth.exportAccount"] = AWAY
    answer = await export(alice)
    assert answer.status_code == 503
    assert answer.headers["content-type"].startswith("text/html")


async def test_archive_has_no_requests_of_the_organization(alice: Browser, mesh: FakeMesh) -> None:
    page = await alice.get(HERE)
    team = mesh.add_team("Acme", mesh.accounts["alice"].user)
    mesh.acting[alice.client.cookies["aimesh_session"]] = team
    answer = await alice.submit(page, f"{HERE}/export")
    assert answer.status_code == 400
    assert "You are acting as an organization" in answer.text
    assert f"{HERE}/export" not in forms_of(answer)
    assert "auth.exportAccount" not in mesh.called_methods()


async def test_account_deletion_takes_thirty_days_and_can_be_canceled(alice: Browser, mesh: FakeMesh) -> None:
    answer = await alice.submit(await alice.get(HERE), f"{HERE}/delete")
    assert answer.headers["location"] == HERE
    page = await alice.get(HERE)
    assert "20 Dec 2026" in page.text
    assert f"{HERE}/delete" not in forms_of(page)
    kept = await alice.submit(page, f"{HERE}/keep")
    assert kept.headers["location"] == f"{HERE}?done=kept"
    assert mesh.erased_at is None
    assert "Your account won’t be deleted." in (await alice.get(f"{HERE}?done=kept")).text


async def test_unticked_box_deletes_nothing(alice: Browser, mesh: FakeMesh) -> None:
    page = await alice.submit(await alice.get(HERE), f"{HERE}/delete", sure="")
    assert page.status_code == 400
    assert "The deletion is not confirmed." in page.text
    assert mesh.erased_at is None


async def test_last_owner_cannot_be_deleted_and_reads_why(alice: Browser, mesh: FakeMesh) -> None:
    why = "others are in an organisation that only you own: Acme"
    mesh.broken["auth.requestErasure"] = errors.NotAllowed(why, hint="make one of its members an owner first")
    page = await alice.submit(await alice.get(HERE), f"{HERE}/delete")
    assert page.status_code == 403
    assert "only you own: Acme" in page.text


@pytest.mark.parametrize("act", ["export", "delete"])
async def test_cross_site_forms_are_refused(alice: Browser, mesh: FakeMesh, act: str) -> None:
    page = await alice.get(HERE)
    assert (await alice.submit(page, f"{HERE}/{act}", {"Sec-Fetch-Site": "cross-site"})).status_code == 403
    assert (await alice.submit(page, f"{HERE}/{act}", token="")).status_code == 403
    assert mesh.erased_at is None
    assert "auth.exportAccount" not in mesh.called_methods()
