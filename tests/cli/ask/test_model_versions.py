"""`aicli models push` and its like, with a fake mesh; `test_pushed_models` pushes to real gateways."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

from cli.ask import blob_transfers
from cli.output.exit_codes import ExitCode
from shared import errors
from shared.api import deployments, gateway, models
from shared.api.deployments import Deployment
from shared.api.gateway import HttpPart, HttpRequest
from shared.api.method import Nothing
from shared.api.models import ModelVersion, VersionState
from shared.config_documents import DeploymentDocument
from shared.models import manifest
from shared.types import ModelName, TenantId
from tests.cli.ask.model_mesh import VERSION, ModelMesh
from tests.cli.fake_mesh import Shell


@pytest.fixture
def mesh(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> ModelMesh:
    return ModelMesh(shell, monkeypatch)


def test_push_uploads_what_is_missing_and_waits_for_the_check(shell: Shell, mesh: ModelMesh) -> None:
    (shell.folder / "model.gguf").write_bytes(b"a" * 2500)
    done = shell("models", "push", "model.gguf", "tiny", "--license", "MIT", "--source", "hf:me/tiny")
    assert (done.exit_code, done.stdout) == (0, "tiny@1 is ready, stable\n"), done.output
    version = manifest.read(mesh.manifest)
    assert [(file.path, file.size) for file in version.files] == [("model.gguf", 2500)]
    config = manifest.read_config(mesh.stored[version.config.digest])
    assert (config.statement.license, config.statement.source) == ("MIT", "hf:me/tiny")
    assert mesh.offsets[:3] == [0, 1000, 2000]
    # Again, with another license: only the config is new.
    mesh.offsets.clear()
    assert shell("models", "push", "model.gguf", "tiny", "--license", "Apache-2.0").exit_code == 0
    assert mesh.offsets == [0]


def test_a_push_continues_where_its_connection_broke(shell: Shell, mesh: ModelMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    (shell.folder / "model.gguf").write_bytes(b"b" * 2500)
    mesh.broken = 3
    assert shell("models", "push", "model.gguf", "tiny").exit_code == 0
    assert mesh.offsets[:6] == [0, 0, 0, 0, 1000, 2000]
    # Not forever.
    mesh.broken = 1000
    (shell.folder / "model.gguf").write_bytes(b"c" * 2500)
    refused = shell("models", "push", "model.gguf", "tiny")
    assert "the connection broke" in refused.stderr
    assert mesh.broken == 1000 - blob_transfers.MAX_FAILURES


def test_a_gateway_may_be_lost_between_pieces(shell: Shell, mesh: ModelMesh) -> None:
    (shell.folder / "model.gguf").write_bytes(b"b" * 1500)
    mesh.lost = 3
    assert shell("models", "push", "model.gguf", "tiny").exit_code == 0
    mesh.lost = blob_transfers.MAX_FAILURES
    assert "the gateway was restarted" in shell("models", "push", "model.gguf", "tiny").stderr


def test_nothing_is_read_for_a_mesh_that_keeps_no_models(shell: Shell, mesh: ModelMesh) -> None:
    (shell.folder / "model.gguf").write_bytes(b"b" * 1500)
    shell.mesh.answer(models.find_model_blobs, errors.Unavailable("this mesh has no store for models"))
    done = shell("models", "push", "model.gguf", "tiny")
    assert "this mesh has no store" in done.stderr
    assert "hashing" not in done.stderr


def test_a_version_is_bounded_before_its_files_are_read(shell: Shell, mesh: ModelMesh) -> None:
    with (shell.folder / "sparse.gguf").open("wb") as sparse:
        sparse.truncate(manifest.MAX_BYTES + 1)
    done = shell("models", "push", "sparse.gguf", "tiny")
    assert (done.exit_code, "too much for a version" in done.stderr) == (ExitCode.USAGE, True)
    (shell.folder / "many").mkdir()
    for number in range(manifest.MAX_FILES + 1):
        (shell.folder / "many" / f"{number}.gguf").write_bytes(b"a")
    assert "257 files with 257 bytes are too much for a version" in shell("models", "push", "many", "tiny").stderr
    assert mesh.offsets == []


def test_a_version_has_one_number(shell: Shell, mesh: ModelMesh) -> None:
    asked = list[models.PromoteModel]()
    shell.mesh.answer(models.promote_model, lambda request: asked.append(request) or mesh.version())
    for words in (("tiny",), ("tiny", "7"), ("tiny@7",)):
        assert shell("models", "promote", *words).exit_code == 0
    assert [request.version for request in asked] == [None, 7, 7]
    assert shell("models", "promote", "tiny@7", "8").exit_code == ExitCode.USAGE
    assert shell("models", "promote", "tiny@canary").exit_code == ExitCode.USAGE
    assert shell("models", "versions", "tiny@1").exit_code == 0


def test_a_channel_is_withdrawn(shell: Shell, mesh: ModelMesh) -> None:
    asked = list[models.WithdrawModel]()
    shell.mesh.answer(models.withdraw_model, lambda request: asked.append(request) or mesh.version())
    assert "requests for tiny@stable use no version" in shell("models", "promote", "tiny", "--none").stdout
    assert shell("models", "promote", "tiny", "--none", "--channel", "canary").exit_code == 0
    assert asked == [models.WithdrawModel(ModelName("tiny")), models.WithdrawModel(ModelName("tiny"), "canary")]
    for words in (("tiny@7",), ("tiny", "7"), ("tiny", "--wait")):
        assert shell("models", "promote", *words, "--none").exit_code == ExitCode.USAGE


def test_push_and_promote_say_what_is_left_to_do(shell: Shell, mesh: ModelMesh) -> None:
    (shell.folder / "model.gguf").write_bytes(b"a")
    deployed: tuple[Deployment, ...] = ()
    shell.mesh.answer(deployments.list_deployments, lambda _request: deployments.Deployments(deployed))
    shell.mesh.answer(models.promote_model, lambda _request: mesh.version())
    deploy = "Put it on machines, if you are an administrator: aicli models deploy tiny\n"
    assert deploy in shell("models", "push", "model.gguf", "tiny").stderr
    assert deploy in shell("models", "promote", "tiny").stderr
    deployed = (Deployment(ModelName("tiny@canary"), DeploymentDocument(), (), 0),)
    assert "deploy" not in shell("models", "promote", "tiny").stderr
    deployed = ()
    canary = msgspec.structs.replace(mesh.version(), channels=("canary",), organization=TenantId(UUID(int=3)))
    shell.mesh.answer(models.promote_model, lambda _request: canary)
    assert f"aicli models deploy tiny@canary --organization {UUID(int=3)}\n" in shell("models", "promote", "tiny").stderr
    unserved = msgspec.structs.replace(mesh.version(), channels=(), state=VersionState.READY)
    shell.mesh.answer(models.list_model_versions, lambda _request: models.ModelVersions((unserved,)))
    shell.mesh.answer(models.complete_model_version, lambda _request: unserved)
    assert "Let requests use it: aicli models promote tiny@1\n" in shell("models", "push", "model.gguf", "tiny").stderr


def test_a_push_names_its_channel_and_owner(shell: Shell, mesh: ModelMesh) -> None:
    (shell.folder / "model.gguf").write_bytes(b"a")
    begun, completed = list[models.FindModelBlobs](), list[models.CompleteModelVersion]()

    def find(request: models.FindModelBlobs) -> models.BlobUploads:
        begun.append(request)
        return mesh.find(request)

    def complete(request: models.CompleteModelVersion) -> ModelVersion:
        completed.append(request)
        return mesh.complete(request)

    shell.mesh.answer(models.find_model_blobs, find)
    shell.mesh.answer(models.complete_model_version, complete)
    assert shell("models", "push", "model.gguf", "tiny", "--channel", "canary", "--organization", str(UUID(int=3))).exit_code == 0
    assert (begun[0].model, begun[0].organization) == ("tiny", UUID(int=3))
    assert (completed[0].channel, completed[0].organization) == ("canary", UUID(int=3))


def test_a_folder_is_pushed_with_its_paths_and_without_links(shell: Shell, mesh: ModelMesh) -> None:
    folder = shell.folder / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.gguf").write_bytes(b"a")
    (folder / "sub" / "b.json").write_bytes(b"{}")
    assert shell("models", "push", "model", "tiny@1").exit_code == 0
    assert [file.path for file in manifest.read(mesh.manifest).files] == ["a.gguf", "sub/b.json"]
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "folder link").symlink_to("/etc")
    (folder / "nothing").touch()
    for name in ("folder link", "link", "nothing"):
        assert f"{name} is missing, empty or no regular file" in shell("models", "push", "model", "tiny").stderr
        (folder / name).unlink()
    (folder / "A.gguf").write_bytes(b"b")
    assert "two files have the path" in shell("models", "push", "model", "tiny").stderr


def test_a_refused_version_is_a_failure_with_the_reason(shell: Shell, mesh: ModelMesh, tmp_path: Path) -> None:
    (shell.folder / "model.gguf").write_bytes(b"d")
    mesh.states = [VersionState.CHECKING, VersionState.REFUSED]
    done = shell("models", "push", "model.gguf", "tiny")
    assert (done.exit_code, done.stdout) == (1, "tiny@1 is refused, stable: it is no model\n")
    assert shell("models", "push", "model.gguf", "tiny@stable").exit_code == ExitCode.USAGE
    assert shell("models", "push", "missing.gguf", "tiny").exit_code == ExitCode.USAGE


def test_a_version_is_retired_by_its_number_or_digest(shell: Shell, mesh: ModelMesh) -> None:
    asked: list[models.RetireModelVersion] = []

    def retire(request: models.RetireModelVersion) -> ModelVersion:
        asked.append(request)
        return VERSION

    shell.mesh.answer(models.retire_model_version, retire)
    for name in ("tiny@1", f"tiny@{mesh.version().digest}"):
        assert shell("models", "retire", name).exit_code == 0
    assert asked == [models.RetireModelVersion(ModelName("tiny"), 1)] * 2
    for name in ("tiny", "tiny@stable"):
        assert shell("models", "retire", name).exit_code == ExitCode.USAGE


def test_the_gateways_reason_for_refusing_a_piece_is_shown(shell: Shell, mesh: ModelMesh) -> None:
    async def refuse(_request: HttpRequest) -> AsyncIterator[HttpPart]:
        yield HttpPart(b'{"error": {"code": "insufficient_storage", "message": "the upload needs', 507)
        yield HttpPart(b' 8 GiB", "hint": "free disk space"}}')

    shell.mesh.stream_script(gateway.serve_http, refuse, Nothing())
    (shell.folder / "model.gguf").write_bytes(b"e")
    refused = shell("models", "push", "model.gguf", "tiny")
    assert (refused.exit_code, "the upload needs 8 GiB" in refused.stderr) == (1, True)
