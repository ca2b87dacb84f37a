"""`aicli models deploy`, `undeploy`, `copies`, and waiting for them and for promotions, with a fake mesh."""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

import msgspec
import pytest

from cli.ask import deployments
from cli.output.exit_codes import ExitCode
from shared.api import deployments as api
from shared.api import models
from shared.api.deployments import CopyState, Deployment, ModelCopy
from shared.api.method import Nothing
from shared.api.models import ModelVersion, ModelVersions, VersionState
from shared.config_documents import DeploymentDocument
from shared.types import ModelName, NodeId, UserId
from tests.cli.fake_mesh import Shell

LLAMA, TWO, NODE = ModelName("llama3"), ModelName("llama3@2"), NodeId("UABCDEFGHIJKLM")
DOCUMENT = DeploymentDocument(copies=1, preload=True)
VERSION = ModelVersion(LLAMA, 2, "sha256:" + "0" * 64, VersionState.READY, 5, datetime(2026, 1, 2, tzinfo=UTC), UserId(UUID(int=1)))
NEXT, SERVED = msgspec.structs.replace(VERSION, next_of=("stable",)), msgspec.structs.replace(VERSION, channels=("stable",))


class Mesh:
    """Says one after the other where the copies are, the last state again and again."""

    def __init__(self, shell: Shell) -> None:
        self.states: list[Sequence[ModelCopy]] = [()]
        self.short = 0
        self.versions = [NEXT, SERVED]
        self.deployed: list[api.DeployModel] = []
        shell.mesh.answer(api.deploy_model, self.deploy)
        shell.mesh.answer(api.list_deployments, self.list)
        shell.mesh.answer(models.promote_model, lambda _request: self.versions[0])
        shell.mesh.answer(models.list_model_versions, lambda _request: ModelVersions((self.versions.pop(0),)))

    def deploy(self, request: api.DeployModel) -> Nothing:
        self.deployed.append(request)
        return Nothing()

    def list(self, _request: api.ListDeployments) -> api.Deployments:
        copies = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return api.Deployments((Deployment(LLAMA, DOCUMENT, tuple(copies), self.short),))


@pytest.fixture
def mesh(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Mesh:
    monkeypatch.setattr(deployments, "LOOK_SECONDS", 0.0)
    return Mesh(shell)


def copy(state: CopyState, **more: object) -> ModelCopy:
    return msgspec.structs.replace(ModelCopy(NODE, state, TWO), **more)


def test_a_name_alone_is_deployed_without_a_source(shell: Shell, mesh: Mesh) -> None:
    done = shell("models", "deploy", "llama3", "--copies", "all", "--label", "gpu=yes")
    assert (done.exit_code, done.stderr) == (ExitCode.OK, "llama3 will be on all machines. See: aicli models copies llama3\n")
    assert mesh.deployed == [api.DeployModel("llama3", DeploymentDocument(copies="all", labels={"gpu": "yes"}))]


def test_waiting_shows_each_state_once_until_every_copy_is_there(shell: Shell, mesh: Mesh) -> None:
    coming = copy(CopyState.COMING, done_bytes=1 << 30, total_bytes=4 << 30)
    mesh.states = [(coming,), (coming,), (copy(CopyState.STORED),), (copy(CopyState.LOADED),)]
    done = shell("models", "deploy", "llama3", "--wait")
    assert done.exit_code == ExitCode.OK
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["llama3@2 on UABCDEFGH…"] * 3
    assert lines[0].endswith("coming, 1.0 GiB of 4.0 GiB, 25 %")


def test_waiting_ends_if_too_few_machines_can_have_it(shell: Shell, mesh: Mesh) -> None:
    mesh.states, mesh.short = [(copy(CopyState.REFUSED, reason="the disk is full"),)], 1
    done = shell("models", "deploy", "llama3", "--wait")
    assert done.exit_code != ExitCode.OK
    assert ("the disk is full" in done.stdout, "1 more machine is needed" in done.stderr) == (True, True)


def test_a_promotion_waits_until_the_version_is_loaded(shell: Shell, mesh: Mesh) -> None:
    mesh.versions = [NEXT, NEXT, SERVED]
    mesh.states = [(copy(CopyState.STORED),), (copy(CopyState.LOADED),)]
    done = shell("models", "promote", "llama3", "2", "--wait")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (ExitCode.OK, "llama3@2 is ready, stable")


def test_without_waiting_a_promotion_says_that_the_version_is_being_loaded(shell: Shell, mesh: Mesh) -> None:
    assert shell("models", "promote", "llama3", "2").stdout == "llama3@2 is ready, stable (loading)\n"


def test_waiting_for_what_somebody_else_has_taken_back_fails(shell: Shell, mesh: Mesh) -> None:
    mesh.versions = [NEXT, VERSION]
    done = shell("models", "promote", "llama3", "2", "--wait")
    assert done.exit_code != ExitCode.OK
    assert "llama3@stable was changed meanwhile" in done.stderr
