import csv
import io
import json
import zipfile

import httpx
import pytest

from services.web import features
from shared import errors
from shared.api.files import FileFacts, FilePurpose
from shared.api.jobs import JobFacts, JobKind, JobState
from tests.services.web.browser import Browser, forms_of
from tests.services.web.fake_mesh import FakeMesh
from tests.services.web.fake_organisations import NOW

AWAY = errors.NotReachable("no node of that role is alive")
HERE = "/settings/data"


@pytest.fixture
async def alice(mesh: FakeMesh, browser: Browser) -> Browser:
    mesh.add_account("alice", "correct horse")
    await browser.sign_in("alice", "correct horse")
    return browser


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
    assert list(files) == [
        "README.txt",
        "account.json",
        "requests.csv",
        "usage.json",
        "jobs.json",
        *(f"{name}.json" for name in OF_FEATURES),
        "files.json",
    ]
    assert json.loads(files["account.json"]) == [{"username": "alice"}]
    rows = list(csv.DictReader(io.StringIO(files["requests.csv"].decode(), newline="")))
    assert [row["model"] for row in rows] == ["smollm2", '\'=HYPERLINK("https://evil.example")']
    assert (rows[0]["cost_credits"], rows[0]["completion_tokens"], rows[0]["created_at"]) == ("1.5", "9", "2026-11-20T14:05:00+00:00")
    assert json.loads(files["usage.json"])["total"]["requests"] == 2


async def test_archive_has_the_stored_files_and_names_those_that_are_damaged(alice: Browser, mesh: FakeMesh) -> None:
    for number, content in enumerate((b"one", b"two", b"three")):
        facts = FileFacts(f"file-{'abc'[number] * 26}", "größe.txt", FilePurpose.BATCH, len(content), NOW)
        mesh.files.append((facts, content if number != 1 else b"t"))
    files = unpacked(await export(alice))
    names = [f"files/file-{letter * 26}-größe.txt" for letter in "abc"]
    assert [file["id"] for file in json.loads(files["files.json"])] == [name[6:37] for name in names]
    assert [files[name] for name in names] == [b"one", b"t", b"three"]
    assert f"{names[1]}-MISSING.txt" in files
    assert len(files) == 7 + 3 + 1


async def test_archive_has_all_jobs_of_the_user(alice: Browser, mesh: FakeMesh) -> None:
    expected = [f"batch_{letter * 26}" for letter in "edcba"]
    mesh.most_jobs = 2
    mesh.jobs += [JobFacts(job, JobKind.BATCH, "/v1/embeddings", JobState.COMPLETED, NOW, NOW, output_file="file-1") for job in expected]
    found = json.loads(unpacked(await export(alice))["jobs.json"])
    assert [job["id"] for job in found] == expected
    assert found[0].items() >= {"state": "completed", "endpoint": "/v1/embeddings", "outputFile": "file-1"}.items()


async def test_export_is_confirmed_before_its_first_byte(alice: Browser, mesh: FakeMesh) -> None:
    mesh.is_stale = True
    confirm_page = await export(alice)
    assert confirm_page.status_code == 403
    assert "Confirm it’s you" in confirm_page.text
    answer = await alice.submit(confirm_page, f"{HERE}/export", confirm_password="correct horse")
    assert "README.txt" in unpacked(answer)


async def test_unavailable_gateway_leaves_a_note_in_the_archive(alice: Browser, mesh: FakeMesh) -> None:
    mesh.broken["gateway"] = AWAY
    files = unpacked(await export(alice))
    assert list(files) == [
        "README.txt",
        "account.json",
        "requests-MISSING.txt",
        "usage-MISSING.txt",
        "jobs-MISSING.txt",
        *(f"{name}-MISSING.txt" for name in OF_FEATURES),
        "files-MISSING.txt",
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
