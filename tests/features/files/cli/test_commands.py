"""`aicli files` against a mesh that stores what it gets."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cli.output.exit_codes import ExitCode
from features.files import contract as files
from features.files.cli import commands as files_module
from features.files.contract import FileFacts, FilePurpose
from features.files.gateway.rules.upload_form import UploadForm
from shared import errors
from shared.api import gateway
from shared.api.gateway import HttpPart, HttpRequest
from shared.api.method import Nothing
from tests.cli.fake_mesh import FakeMesh, Shell

ID = f"file-{'a' * 26}"


class StoringMesh:
    """One file, as the gateway would store it."""

    def __init__(self, mesh: FakeMesh) -> None:
        self.content = b""
        self.facts = FileFacts(ID, "a.txt", FilePurpose.USER_DATA, 0, datetime(2026, 1, 2, tzinfo=UTC))
        self.fields: dict[str, str] = {}
        self.left_out = 0
        self.refusal: bytes | None = None
        mesh.answer(files.get_file, lambda _request: self.facts)
        mesh.answer(files.delete_file, Nothing())
        mesh.answer(files.list_files, lambda _request: files.Files((self.facts,), has_more=True))
        mesh.stream_script(gateway.serve_http, self._serve, Nothing())

    async def _serve(self, request: HttpRequest) -> AsyncIterator[HttpPart]:
        if self.refusal is not None:
            yield HttpPart(self.refusal, 403)
        elif request.verb == "POST":
            form = UploadForm(dict(request.headers)[b"content-type"], ("purpose", "expires_after[anchor]", "expires_after[seconds]"))
            self.content = b"".join(form.feed(request.body))
            form.close()
            self.fields = form.fields
            self.facts = FileFacts(ID, str(form.file_name), FilePurpose(form.fields["purpose"]), len(self.content), self.facts.created_at)
            yield HttpPart(b'{"id": "%s"}' % ID.encode(), 200)
        else:
            assert request.path == f"/v1/files/{ID}/content"
            yield HttpPart(b"", 200)
            for byte in self.content[: len(self.content) - self.left_out]:
                yield HttpPart(bytes([byte]))


@pytest.fixture
def stored(shell: Shell) -> StoringMesh:
    return StoringMesh(shell.mesh)


def test_a_file_goes_up_and_comes_down_as_it_was(shell: Shell, stored: StoringMesh) -> None:
    content = bytes(range(256)) + b"\r\n--"
    (shell.folder / 'größe "1".txt').write_bytes(content)
    done = shell("files", "upload", 'größe "1".txt', "--days", "2")
    assert done.stdout == f'größe "1".txt is {ID}\n', done.stderr
    assert stored.content == content
    assert stored.fields == {"purpose": "user_data", "expires_after[anchor]": "created_at", "expires_after[seconds]": "172800"}
    again = shell("files", "download", ID)
    assert (again.exit_code, "exists" in again.stderr) == (ExitCode.FAILED, True)
    shell("files", "download", ID, "b.txt")
    assert (shell.folder / "b.txt").read_bytes() == content
    assert (shell.folder / "b.txt").stat().st_mode & 0o777 == 0o600
    made = shell("files", "upload", "b.txt", "--purpose", "batch", "-o", "json")
    assert (json.loads(made.stdout)["id"], stored.fields) == (ID, {"purpose": "batch"})


def test_a_download_that_ends_early_leaves_no_file(shell: Shell, stored: StoringMesh) -> None:
    (shell.folder / "a.txt").write_bytes(b"12345")
    shell("files", "upload", "a.txt")
    (shell.folder / "a.txt").unlink()
    stored.left_out = 2
    done = shell("files", "download", ID)
    assert (done.exit_code != 0, "3 of 5 bytes arrived" in done.stderr) == (True, True)
    assert not list(shell.folder.glob("a.txt*"))


def test_refusals_of_the_gateway_are_shown(shell: Shell, stored: StoringMesh) -> None:
    stored.refusal = b'{"error": {"code": "x", "aimesh_code": "not_allowed", "message": "your files have 5 bytes", "hint": "delete some"}}'
    (shell.folder / "a.txt").write_bytes(b"12345")
    for arguments in (("upload", "a.txt"), ("download", ID, "-")):
        done = shell("files", *arguments)
        assert done.exit_code == ExitCode.FAILED
        assert "your files have 5 bytes" in done.stderr


def test_what_is_too_large_for_the_mesh_or_missing_is_refused_at_once(
    shell: Shell, stored: StoringMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "_MAX_MESH_BYTES", 4)
    (shell.folder / "a.txt").write_bytes(b"12345")
    done = shell("files", "upload", "a.txt")
    assert "aicli login --url URL" in done.stderr
    assert "is missing" in shell("files", "upload", "none.txt").stderr
    assert "is missing" in shell("files", "upload", ".").stderr
    assert not shell.mesh.calls


def test_files_are_listed_and_deleted(shell: Shell, stored: StoringMesh, tmp_path: Path) -> None:
    done = shell("files", "list", "--purpose", "batch", "-o", "json")
    assert [file["id"] for file in json.loads(done.stdout)] == [ID]
    assert done.stderr == "these are the newest 1 files\n"
    assert [call.request for call in shell.mesh.calls] == [files.ListFiles(FilePurpose.BATCH)]
    assert ID in shell("files").stdout
    shell("files", "delete", ID, ID)
    assert [call.method for call in shell.mesh.calls].count("gateway.deleteFile") == 2
    shell.mesh.answer(files.delete_file, errors.NotFound("there is no file"))
    assert shell("files", "delete", ID).exit_code != 0
