import json

from features.files.contract import FileFacts, FilePurpose
from shared import errors
from tests.services.web.browser import Browser
from tests.services.web.fake_mesh import FakeMesh
from tests.services.web.fake_organisations import NOW
from tests.services.web.pages.account.test_own_data import export, unpacked


async def test_archive_has_the_stored_files_and_names_those_that_are_damaged(alice: Browser, mesh: FakeMesh) -> None:
    for number, content in enumerate((b"one", b"two", b"three")):
        facts = FileFacts(f"file-{'abc'[number] * 26}", "größe.txt", FilePurpose.BATCH, len(content), NOW)
        mesh.files.append((facts, content if number != 1 else b"t"))
    files = unpacked(await export(alice))
    names = [f"files/file-{letter * 26}-größe.txt" for letter in "abc"]
    assert [file["id"] for file in json.loads(files["files.json"])] == [name[6:37] for name in names]
    assert [files[name] for name in names] == [b"one", b"t", b"three"]
    assert f"{names[1]}-MISSING.txt" in files
    assert len([name for name in files if name.startswith("files/")]) == 3 + 1


async def test_unavailable_gateway_leaves_a_note_in_place_of_the_list(alice: Browser, mesh: FakeMesh) -> None:
    mesh.broken["gateway"] = errors.NotReachable("no node of that role is alive")
    assert [name for name in unpacked(await export(alice)) if name.startswith("files")] == ["files-MISSING.txt"]
