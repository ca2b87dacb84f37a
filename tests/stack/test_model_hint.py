"""What `make up` says about models after its first answer."""

from pathlib import Path

import pytest

from cli import profile
from shared import errors
from shared.api import model_search
from shared.api.inference import Fit
from shared.api.model_search import FoundModel, FoundModels, MachineFit, SearchModels
from shared.config_documents import CatalogDocument, CatalogUse
from shared.identity import node_keys
from shared.types import NodeId
from stack import first_run, initialization, model_hint
from stack import stack_home as homes
from stack.stack_home import StackHome
from tests.cli.fake_mesh import FakeMesh
from tests.stack.test_first_run import SETTINGS

OTHER = NodeId("UOTHER")


@pytest.fixture
def home(tmp_path: Path) -> StackHome:
    found = homes.locate({"AIMESH_HOME": str(tmp_path / "h")})
    initialization.ensure(found, {}, tmp_path)
    return found


def row(home: StackHome, name: str, billions: int, fit: Fit = Fit.YES, *, worker: NodeId | None = None, served: bool = False) -> FoundModel:
    tools, uses = name != "smollm2", (CatalogUse.CODE,) if name == "code" else (CatalogUse.CHAT,)
    source = CatalogDocument(source="hf:a/b", parameters=billions * 10**9, quantizations=("Q4_K_M",), tools=tools, uses=uses)
    here = worker or node_keys.load(home.key("worker")).id
    fits = (MachineFit(worker=here, fit=fit, accepts_models=name != "forbidden"),)
    return FoundModel(name=name, origin="catalog", is_served=served, model=source, size=billions * 10**9, fits=fits)


async def hint(home: StackHome, *rows: FoundModel) -> str:
    mesh = FakeMesh()
    mesh.answer(first_run.auth.list_api_keys, first_run.auth.ApiKeys(()))
    await first_run.ensure_profile(home, SETTINGS, mesh.open)
    mesh.answer(model_search.search_models, FoundModels(rows))
    line = await model_hint.find(home, mesh.open)
    assert mesh.calls[-1].request == SearchModels(limit=50, fits=True, hub=False)
    return line


async def test_the_largest_model_that_fits_this_machine_is_named(home: StackHome) -> None:
    rows = [
        row(home, "smollm2", 1, served=True),
        row(home, "qwen3:4b", 3),
        row(home, "qwen3:8b", 5),
        row(home, "large", 9, Fit.PARTLY),
        row(home, "elsewhere", 9, worker=OTHER),
        row(home, "code", 9),
        row(home, "forbidden", 9),
    ]
    assert await hint(home, *rows) == "This machine could run qwen3:8b (5.0 GB). aicli run qwen3:8b"


async def test_nothing_is_named_if_a_model_was_added_or_none_fits(home: StackHome) -> None:
    assert await hint(home, row(home, "smollm2", 1, served=True), row(home, "qwen3:8b", 5, Fit.NO)) == ""
    assert await hint(home, row(home, "qwen3:4b", 3, served=True), row(home, "qwen3:8b", 5)) == ""
    assert await hint(home, FoundModel(name="mine", origin="mesh", is_served=True), row(home, "qwen3:8b", 5)) == ""


async def test_a_mesh_that_does_not_answer_is_no_error(home: StackHome) -> None:
    mesh = FakeMesh()
    assert await model_hint.find(home, mesh.open) == "", "there is no profile yet"
    assert not home.profile.exists()
    with pytest.raises(errors.BadSettings):
        profile.read(home.profile)
