"""The page of versions: promote, roll back, take back, retire and deploy."""

import re
from datetime import UTC, datetime
from uuid import UUID

import msgspec
import pytest

from shared import errors
from shared.api.models import ModelVersion, PromoteModel, RetireModelVersion, RollbackModel, VersionState, WithdrawModel
from shared.config_documents import DeploymentDocument
from shared.types import ModelName, TenantId, UserId, UserRole
from tests.services.web.browser import SAME_ORIGIN, Browser, forms_of
from tests.services.web.fake_mesh import FakeMesh
from tests.services.web.pages.test_models import sign_in

PAGE, LLAMA = "/models/versions", ModelName("llama3")


def version(number: int, state: VersionState = VersionState.READY, **more: tuple[str, ...]) -> ModelVersion:
    digest, made = "sha256:" + f"{number:064x}", datetime(2026, 1, number, tzinfo=UTC)
    return ModelVersion(LLAMA, number, digest, state, 5 << 30, made, UserId(UUID(int=1)), **more)


@pytest.fixture
def versions(mesh: FakeMesh) -> None:
    mesh.pushed = (
        version(5, VersionState.REVOKED),
        version(4),
        version(3, next_of=("canary",)),
        version(2, channels=("stable",)),
        version(1, channels=("canary",), previous_of=("stable",)),
    )


@pytest.fixture
async def root(mesh: FakeMesh, browser: Browser, versions: None) -> Browser:
    return await sign_in(mesh, browser, UserRole.ADMIN)


def buttons(text: str) -> set[str]:
    return set(re.findall(r'aria-label="([^"]*@\d)"', text))


async def test_each_version_has_the_buttons_that_work(root: Browser) -> None:
    page = await root.get(PAGE)
    assert buttons(page.text) == {
        *("Promote llama3@4", "Retire llama3@4", "Promote llama3@3", "Take back llama3@3", "Roll back llama3@2", "Promote llama3@1"),
        *("Withdraw llama3@2", "Withdraw llama3@1"),
    }
    assert "canary (loading)" in page.text


@pytest.mark.parametrize(
    ("form", "change", "done"),
    [
        ({"act": "promote", "version": "4"}, PromoteModel(LLAMA, 4, "stable"), "promoted"),
        ({"act": "promote", "version": "3", "channel": "canary"}, PromoteModel(LLAMA, 3, "canary"), "loading"),
        ({"act": "rollback", "channel": "canary"}, RollbackModel(LLAMA, "canary"), "promoted"),
        ({"act": "withdraw", "version": "1", "channel": "canary"}, WithdrawModel(LLAMA, "canary"), "withdrawn"),
        ({"act": "retire", "version": "4"}, RetireModelVersion(LLAMA, 4), "retired"),
    ],
)
async def test_a_button_changes_what_requests_use(root: Browser, mesh: FakeMesh, form: dict[str, str], change: object, done: str) -> None:
    answer = await root.submit(await root.get(PAGE), PAGE, SAME_ORIGIN, **form)
    assert (answer.headers["location"], mesh.changes) == (f"{PAGE}?done={done}", [change])


async def test_an_empty_channel_is_filled_again_and_only_the_meshs_models_are_deployed(root: Browser, mesh: FakeMesh) -> None:
    theirs = msgspec.structs.replace(version(3, channels=("stable",)), model=ModelName("acme"), organization=TenantId(UUID(int=3)))
    mesh.pushed = (version(2), version(1, previous_of=("stable",)), theirs)
    page = await root.get(PAGE)
    assert "Roll back llama3@1" in buttons(page.text)
    assert re.findall("<option>(.*?)</option>", page.text) == []


async def test_what_the_gateway_refuses_is_told(root: Browser, mesh: FakeMesh) -> None:
    page = await root.get(PAGE)
    mesh.broken["gateway.promoteModel"] = errors.AlreadyExists("llama3@stable was changed meanwhile", hint="decide again")
    answer = await root.submit(page, PAGE, act="promote", version="4")
    assert "llama3@stable was changed meanwhile" in answer.text.lower()
    assert "Unknown action" in (await root.submit(page, PAGE, act="burn")).text


async def test_administrators_deploy_what_a_channel_serves(root: Browser, mesh: FakeMesh) -> None:
    page = await root.get(PAGE)
    assert re.findall("<option>(.*?)</option>", page.text) == ["llama3", "llama3@canary"]
    answer = await root.submit(page, "/models/deployments", name="llama3", copies="2", preload="")
    assert answer.headers["location"] == "/models/find?done=deployed"
    assert mesh.deployments == {LLAMA: DeploymentDocument(copies=2)}
    assert "the mesh" in (await root.get("/models/find")).text


@pytest.mark.usefixtures("versions")
async def test_developers_see_versions_and_deploy_nothing(mesh: FakeMesh, browser: Browser) -> None:
    dev = await sign_in(mesh, browser, UserRole.DEVELOPER)
    page = await dev.get(PAGE)
    assert "llama3@4" in page.text
    assert "/models/deployments" not in forms_of(page)
    mesh.broken["gateway.listModelVersions"] = errors.NotAllowed("your role may not read models")
    assert "Your role may not read models" in (await dev.get(PAGE)).text
