"""`aicli models export`, and pushes of what it wrote, with a fake mesh; `test_strangers` has skopeo and a registry."""

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from cli.ask import blob_transfers
from cli.output.exit_codes import ExitCode
from shared.api import model_trust, models
from shared.api.gateway import HttpPart, HttpRequest
from shared.api.models import ModelVersions, VersionState
from shared.models import image_layout, manifest, trust_bundle
from tests.cli.ask.model_mesh import VERSION, ModelMesh
from tests.cli.fake_mesh import Shell
from tests.shared.models.publishers import Publisher, named

MODEL = b"m" * 2500


@pytest.fixture
def mesh(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> ModelMesh:
    """With the version tiny@1."""
    mesh = ModelMesh(shell, monkeypatch)
    (shell.folder / "model.gguf").write_bytes(MODEL)
    assert shell("models", "push", "model.gguf", "tiny", "--license", "MIT").exit_code == 0
    mesh.offsets.clear()
    return mesh


def blobs(folder: Path) -> dict[str, bytes]:
    return {f"sha256:{each.name}": each.read_bytes() for each in (folder / "blobs" / "sha256").iterdir()}


def test_an_export_has_the_version_and_pushes_as_the_same(shell: Shell, mesh: ModelMesh) -> None:
    done = shell("models", "export", "tiny", "out")
    assert (done.exit_code, "skopeo copy oci:out:tiny-1 docker://" in done.stdout) == (0, True), done.output
    assert blobs(shell.folder / "out") == mesh.stored
    assert sorted(each.name for each in (shell.folder / "out").iterdir()) == ["blobs", "index.json", "oci-layout"]
    index = (shell.folder / "out" / "index.json").read_bytes()
    assert image_layout.choose(index, "tiny-1").digest == manifest.digest_of(mesh.manifest)
    # Again: nothing is read but the manifest.
    mesh.offsets.clear()
    assert shell("models", "export", "tiny@1", "out").exit_code == 0
    assert (mesh.offsets, (shell.folder / "out" / "index.json").read_bytes()) == ([0], index)
    before = mesh.manifest
    for source in ("out", "oci:out", "oci:out:tiny-1"):
        mesh.stored.clear()
        mesh.uploads.clear()
        assert shell("models", "push", source, "other").exit_code == 0
        assert mesh.manifest == before
    # Another license is another version.
    assert shell("models", "push", "out", "other", "--license", "Apache-2.0").exit_code == 0
    assert mesh.manifest != before
    assert manifest.read(mesh.manifest).files == manifest.read(before).files


def test_an_export_is_signed_and_pushed_with_its_signature(shell: Shell, mesh: ModelMesh) -> None:
    publisher, out = Publisher(), shell.folder / "out"
    (shell.folder / "publisher.key").write_bytes(publisher.private)
    for _ in range(2):
        assert shell("models", "export", "tiny", "out", "--sign-key", "publisher.key").exit_code == 0
    signature = trust_bundle.read((out / "model.sig").read_bytes())
    assert signature.is_by(publisher.key.public_key())
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "model.sig"}
    assert signature.files == set(named(files))
    assert signature.covers(manifest.read(mesh.manifest))
    shell.mesh.answer(model_trust.sign_model_version, VERSION)
    before = mesh.manifest
    done = shell("models", "push", "oci:out", "tiny", "--signature", "out/model.sig")
    assert (done.exit_code, mesh.manifest) == (0, before), done.output
    (request,) = [call.request for call in shell.mesh.calls if isinstance(call.request, model_trust.SignModelVersion)]
    assert request.signature == (out / "model.sig").read_bytes()


def test_a_signature_within_a_folder_is_no_file_of_its_model(shell: Shell, mesh: ModelMesh) -> None:
    folder = shell.folder / "folder"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(MODEL)
    (folder / "model.sig").write_bytes(trust_bundle.sign(Publisher().key, "folder", named({"model.gguf": MODEL})))
    shell.mesh.answer(model_trust.sign_model_version, VERSION)
    assert shell("models", "push", "folder", "tiny", "--signature", "folder/model.sig").exit_code == 0
    assert [file.path for file in manifest.read(mesh.manifest).files] == ["model.gguf"]


def test_an_export_continues_where_it_broke(shell: Shell, mesh: ModelMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh.broken = 1
    assert shell("models", "export", "tiny", "out").exit_code == 0
    shutil.rmtree(shell.folder / "out")
    # The command is killed after its first piece.
    real = blob_transfers._receive

    async def receive(connection: object, digest: str, start: int, length: int) -> tuple[bytes, int]:
        if start:
            raise KeyboardInterrupt
        return await real(connection, digest, start, length)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(blob_transfers, "_receive", receive)
        assert shell("models", "export", "tiny", "out").exit_code != 0
    assert not (shell.folder / "out" / "index.json").exists()
    mesh.offsets.clear()
    assert shell("models", "export", "tiny", "out").exit_code == 0
    assert mesh.offsets.count(1000) == 1
    assert blobs(shell.folder / "out") == mesh.stored


def test_a_damaged_blob_is_not_exported(shell: Shell, mesh: ModelMesh) -> None:
    digest = manifest.digest_of(MODEL)
    mesh.stored[digest] = b"x" + MODEL[1:]
    refused = shell("models", "export", "tiny", "out")
    assert (refused.exit_code != 0, f"under {digest}" in refused.stderr) == (True, True)
    assert digest not in blobs(shell.folder / "out")
    assert not (shell.folder / "out" / "index.json").exists()
    mesh.stored[digest] = MODEL
    assert shell("models", "export", "tiny", "out").exit_code == 0


def test_a_full_disk_is_said_before_the_first_byte(shell: Shell, mesh: ModelMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=100))
    refused = shell("models", "export", "tiny", "out")
    assert "the export needs 0.0 MiB, but 0.0 MiB are free in" in refused.stderr
    assert mesh.offsets == [0]


@pytest.mark.parametrize(
    ("state", "is_deleted"), [(VersionState.REVOKED, False), (VersionState.CHECKING, False), (VersionState.READY, True)]
)
def test_only_what_may_be_loaded_is_exported(shell: Shell, mesh: ModelMesh, state: VersionState, is_deleted: bool) -> None:
    version = msgspec.structs.replace(VERSION, state=state, is_deleted=is_deleted)
    shell.mesh.answer(models.list_model_versions, ModelVersions((version,)))
    assert "export another version" in shell("models", "export", "tiny@1", "out").stderr
    assert "there is no version tiny@canary" in shell("models", "export", "tiny@canary", "out").stderr
    assert not (shell.folder / "out").exists()


def test_an_image_of_another_tool_is_pushed_with_its_files(shell: Shell, mesh: ModelMesh) -> None:
    folder = shell.folder / "image"
    (folder / "blobs" / "sha256").mkdir(parents=True)

    def add(data: bytes) -> dict[str, object]:
        digest = manifest.digest_of(data)
        (folder / image_layout.blob(digest)).write_bytes(data)
        return {"mediaType": "application/vnd.docker.ai.gguf.v3", "digest": digest, "size": len(data)}

    text = json.dumps({"schemaVersion": 2, "config": add(b"{}"), "layers": [add(b"other")]}).encode()
    entry = add(text) | {"mediaType": manifest.MANIFEST_TYPE}
    (folder / "oci-layout").write_bytes(image_layout.LAYOUT)
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    assert shell("models", "push", "image", "other").exit_code == 0
    (file,) = manifest.read(mesh.manifest).files
    assert (file.path, file.digest) == ("model.gguf", manifest.digest_of(b"other"))


def test_layouts_that_cannot_be_pushed_are_refused(shell: Shell, mesh: ModelMesh) -> None:
    assert shell("models", "export", "tiny", "out").exit_code == 0
    before = mesh.manifest

    def refusal(source: str) -> str:
        done = shell("models", "push", source, "other")
        assert done.exit_code == ExitCode.USAGE
        return done.stderr

    assert "tiny-1: which one" in refusal("oci:out:other")
    assert "can't be read" in refusal("oci:nothing")
    assert "skopeo copy docker://registry.example.org/team/m:1 oci:DIR" in refusal("oci://registry.example.org/team/m:1")
    model = shell.folder / "out" / image_layout.blob(manifest.digest_of(MODEL))
    model.write_bytes(MODEL[1:])
    assert "is no file with 2500 bytes" in refusal("out")
    model.unlink()
    model.symlink_to(shell.folder / "model.gguf")
    assert "is no file with 2500 bytes" in refusal("out")
    changed = shell.folder / "out" / image_layout.blob(manifest.digest_of(before))
    changed.write_bytes(before[:-1] + b" ")
    assert "the image layout has sha256:" in refusal("out")
    assert mesh.manifest == before


def test_a_mesh_that_answers_nonsense_is_not_believed(shell: Shell, mesh: ModelMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    async def send(_data: bytes, _request: HttpRequest) -> AsyncIterator[HttpPart]:
        yield HttpPart(b"", 206)

    monkeypatch.setattr(mesh, "send", send)
    refused = shell("models", "export", "tiny", "out")
    assert (refused.exit_code != 0, "came instead of" in refused.stderr) == (True, True)
