"""Who may say that administrators put models on a worker, and that it outlives restarts."""

import time
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest

from services.inference.service import InferenceService
from services.inference.settings import InferenceSettings
from shared import errors
from shared.api.inference import RemoveModel, SetModelConsent
from shared.identity import certificates, node_keys
from shared.identity.certificates import Subject
from shared.node import membership_file
from shared.node.lifecycle import background
from shared.types import ModelName, Role, UserId
from tests.services.inference.standins import Node

ALICE, ROOT = (UserId(UUID(int=number)) for number in (1, 2))


def owned_node(state_file: Path, owner: str, *, accept_models: bool | None = False) -> Node:
    node, authority = Node(state_file, accept_models=accept_models), node_keys.Authority(node_keys.new_authority_seed())
    node.trust.authorities = (authority.id,)
    node.trust.certificate = certificates.issue(authority, Subject(node.id, Role.WORKER, owner), time.time())
    return node


async def ask(node: Node, by: UserId, *, accepts: bool, is_administrator: bool = False, **settings: Any) -> None:
    given = InferenceSettings(node_key_file=Path("/nowhere/worker.nk"), backend="echo", **settings)
    async with background() as node.tasks, InferenceService.open(given, node) as service:
        assert node.offers[-1].load.accepts_models is bool(given.allow_pulls)
        await service.set_model_consent(SetModelConsent(by, accepts, is_administrator), cast("Any", None))


@pytest.mark.parametrize("accepts", [True, False])
async def test_the_owners_choice_is_announced_and_outlives_a_restart(tmp_path: Path, *, accepts: bool) -> None:
    node = owned_node(tmp_path / "worker.mesh", str(ALICE))
    await ask(node, ALICE, accepts=accepts)
    assert node.offers[-1].load.accepts_models is accepts
    kept = membership_file.load(tmp_path / "worker.mesh")
    assert kept is not None
    assert kept.accept_models is accepts


@pytest.mark.parametrize(
    ("owner", "by", "settings", "why"),
    [
        pytest.param(str(ALICE), ROOT, {"is_administrator": True}, "only the owner", id="an administrator"),
        pytest.param("", ROOT, {}, "only the owner", id="a machine of the mesh"),
        pytest.param(str(ALICE), ALICE, {"allow_pulls": False}, "on the machine itself", id="the machine's setting"),
    ],
)
async def test_all_others_are_refused(tmp_path: Path, owner: str, by: UserId, settings: dict[str, Any], why: str) -> None:
    node = owned_node(tmp_path / "worker.mesh", owner)
    with pytest.raises(errors.NotAllowed, match=why):
        await ask(node, by, accepts=True, **settings)
    assert not node.offers[-1].load.accepts_models
    assert not (tmp_path / "worker.mesh").exists()


async def test_administrators_decide_about_a_machine_of_the_mesh(tmp_path: Path) -> None:
    node = owned_node(tmp_path / "worker.mesh", "")
    await ask(node, ROOT, accepts=True, is_administrator=True)
    assert node.offers[-1].load.accepts_models


@pytest.mark.parametrize(
    ("by", "is_administrator", "why"),
    [
        pytest.param(ALICE, False, errors.NotFound, id="its owner"),
        pytest.param(ROOT, True, errors.NotFound, id="an administrator"),
        pytest.param(ROOT, False, errors.NotAllowed, id="somebody else"),
    ],
)
async def test_owner_and_administrators_remove_models(
    tmp_path: Path, by: UserId, why: type[errors.AimeshError], *, is_administrator: bool
) -> None:
    node = owned_node(tmp_path / "worker.mesh", str(ALICE))
    given = InferenceSettings(node_key_file=Path("/nowhere/worker.nk"), backend="echo", model_store=tmp_path)
    async with background() as node.tasks, InferenceService.open(given, node) as service:
        with pytest.raises(why):
            await service.remove_model(RemoveModel(ModelName("m"), by, is_administrator), cast("Any", None))


async def test_a_choice_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "worker.mesh").mkdir()
    node = owned_node(tmp_path / "worker.mesh", str(ALICE))
    with pytest.raises(errors.Unavailable, match="only until it restarts"):
        await ask(node, ALICE, accepts=True)


async def test_a_machine_without_a_tickets_choice_belongs_to_the_mesh(tmp_path: Path) -> None:
    node = owned_node(tmp_path / "worker.mesh", "", accept_models=None)
    given = InferenceSettings(node_key_file=Path("/nowhere/worker.nk"), backend="echo")
    async with background() as node.tasks, InferenceService.open(given, node):
        assert node.offers[-1].load.accepts_models
