"""The page that finds models and puts them on machines."""

import pytest
from litestar.types import ASGIApp

from shared import errors
from shared.api.deployments import CopyState, ModelCopy
from shared.api.model_search import FoundModels
from shared.config_documents import DeploymentDocument
from shared.types import ModelName, NodeId, UserRole
from tests.services.web.browser import Browser, forms_of
from tests.services.web.fake_deployments import FOUND, QWEN
from tests.services.web.fake_mesh import FakeMesh
from tests.services.web.pages.admin import followed
from tests.services.web.pages.test_models import sign_in

NAME = ModelName("qwen3:8b")
DEPLOY, CHANGE = "/models/deployments", "/models/deployments/change"


@pytest.fixture
async def root(mesh: FakeMesh, browser: Browser) -> Browser:
    return await sign_in(mesh, browser, UserRole.ADMIN)


async def test_models_are_shown_with_the_machines_that_fit_and_why_others_do_not(mesh: FakeMesh, browser: Browser) -> None:
    ann = await sign_in(mesh, browser, UserRole.USER)
    page = await ann.get("/models/find?q=qwen")
    for text in ("qwen3:8b", "5.0 GB, not checked", "Q4_K_M", "Apache-2.0", "ULARGE000", 'value="qwen"', "?model=qwen3%3A8b"):
        assert text in page.text, text
    page = await ann.get("/models/find?model=qwen3:8b")
    for text in ("all layers on its GPU", "it needs 5.1 GiB, and models may use 4.0 GiB", "Machines for qwen3:8b"):
        assert text in page.text, text
    assert "Did you mean qwen3:8b?" in (await ann.get("/models/find?model=qwen4")).text
    # Only administrators deploy.
    assert DEPLOY not in forms_of(page)


async def test_a_model_is_deployed_seen_coming_paused_and_removed(root: Browser, mesh: FakeMesh, app: ASGIApp) -> None:
    page = await root.get("/models/find?model=qwen3:8b")
    answer = await root.submit(page, DEPLOY, copies="2", labels="gpu=yes, room=3", preload="yes")
    assert answer.headers["location"] == "/models/find?done=deployed"
    assert mesh.deployments == {NAME: DeploymentDocument(source=QWEN.source, copies=2, labels={"gpu": "yes", "room": "3"}, preload=True)}
    page = await root.get("/models/find?done=deployed")
    for text in ("The model is on its way.", "gpu=yes", "coming, 3.0 GiB of 5.0 GiB, 60 %, 12.0 MiB/s"):
        assert text in page.text, text
    assert forms_of(await root.get("/models/find?model=qwen3:8b"))[DEPLOY]["labels"] == "gpu=yes, room=3"
    (copy,) = (await followed.first_event(app, "/live/models/copies", "alice"))["copies"]
    assert copy == {
        "id": "qwen3:8b/ULARGE0001", "model": "qwen3:8b", "node": "ULARGE000",
        "state": "coming, 3.0 GiB of 5.0 GiB, 60 %, 12.0 MiB/s", "reason": "",
    }  # fmt: skip
    assert (await root.submit(page, CHANGE, act="pause")).headers["location"] == "/models/find?done=changed"
    assert mesh.deployments[NAME].paused
    page = await root.get("/models/find")
    assert "Continue" in page.text
    await root.submit(page, CHANGE, act="continue")
    assert not mesh.deployments[NAME].paused
    answer = await root.submit(page, CHANGE, act="remove")
    assert answer.headers["location"] == "/models/find?done=removed"
    assert mesh.deployments == {}
    gone = await root.submit(page, CHANGE, act="remove")
    assert "No deployment is called" in gone.text


async def test_reasons_of_machines_and_missing_machines_are_told(root: Browser, mesh: FakeMesh) -> None:
    mesh.deployments[NAME] = DeploymentDocument(source=QWEN.source)
    mesh.copies = (ModelCopy(NodeId("USMALL0001"), CopyState.REFUSED, NAME, reason="the disk is full"),)
    assert "the disk is full" in (await root.get("/models/find")).text
    mesh.copies = ()
    assert "no machine matches its labels and ids" in (await root.get("/models/find")).text


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        ({"copies": "0"}, "copies"),
        ({"copies": "many"}, "the number of copies"),
        ({"labels": "gpu"}, "invalid label: gpu="),
        ({"name": "refused"}, "the configuration is full"),
    ],
)
async def test_mistakes_are_told_on_the_page(root: Browser, mesh: FakeMesh, typed: dict[str, str], why: str) -> None:
    answer = await root.submit(await root.get("/models/find?model=qwen3:8b"), DEPLOY, **({"copies": "1", "labels": ""} | typed))
    assert why in answer.text.lower() or why in answer.text
    assert mesh.deployments == {}


async def test_what_could_not_be_searched_is_told_and_a_mesh_that_is_away(root: Browser, mesh: FakeMesh) -> None:
    mesh.found = FoundModels((FOUND,), ("Hugging Face does not answer",))
    assert "Hugging Face does not answer." in (await root.get("/models/find")).text
    mesh.broken["gateway"] = errors.NotReachable("no gateway")
    assert (await root.get("/models/find")).status_code == 503
