"""`aicli run`: what it asks of the mesh until a model answers. test_chat has it at a terminal."""

from typing import Any

import pytest

from cli.ask import run
from shared import errors
from shared.api import gateway, model_search
from shared.api.gateway import InferenceChunk, PulledPlace, PulledPlaces, PullOnWorkers, ServedModel, ServedModels, WorkerPull
from shared.api.inference import Fit, PulledModel, PullProgress
from shared.api.model_search import FoundModel, MachineFit, PlanModel
from shared.config_documents import CatalogDocument
from shared.types import ModelName, NodeId
from tests.cli.ask.test_infer import RESULT
from tests.cli.fake_mesh import Shell

SMOL = CatalogDocument(source="hf:org/smol-GGUF:Q8_0", parameters=1, quantizations=("Q8_0",))
A, B = NodeId("A" * 12), NodeId("B" * 12)
YES = MachineFit(worker=A, fit=Fit.YES, detail="8192 tokens of context")
PARTLY = MachineFit(worker=B, fit=Fit.PARTLY, detail="9 of 36 layers on the processor")
NO = MachineFit(worker=B, fit=Fit.NO, detail="it needs 5.0 GiB, and models may use 1.0 GiB")
DONE = PulledModel(ModelName("smol:1b"), "ab" * 32, 7)
FORBIDDEN = MachineFit(worker=A, fit=Fit.YES, accepts_models=False)


def found(*fits: MachineFit, **more: Any) -> FoundModel:
    return FoundModel(**{"name": "smol:1b", "origin": "catalog", "model": SMOL, "size": 10**9, "fits": fits, **more})


@pytest.fixture
def mesh_shell(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Serves `default`, and what was pulled when it is looked for the second time."""
    monkeypatch.setattr(run, "_LOOK_SECONDS", 0.001)
    looks = 0

    def served(_request: gateway.ListModels) -> ServedModels:
        nonlocal looks
        pulled = any(call.method == "gateway.pullModel" for call in shell.mesh.calls)
        looks += pulled
        names = ("default", *(("smol:1b",) if looks > 1 else ()))
        return ServedModels(tuple(ServedModel(ModelName(name), 1, 2048, aliases=("llama3",) * (name == "default")) for name in names))

    shell.mesh.answer(gateway.list_models, served)
    shell.mesh.stream_answer(gateway.process_inference_request, [InferenceChunk("Hello")], RESULT)
    progress = WorkerPull(A, PullProgress("downloading", 1, 2))
    shell.mesh.stream_answer(gateway.pull_model, [progress], PulledPlaces((PulledPlace(A, DONE),)))
    return shell


def methods(shell: Shell) -> list[str]:
    return [call.method.partition(".")[2] for call in shell.mesh.calls]


@pytest.mark.parametrize("name", ["default", "llama3"])
def test_a_served_model_answers_at_once(mesh_shell: Shell, name: str) -> None:
    result = mesh_shell("run", name, "Say", "hello")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello\n", "")
    assert methods(mesh_shell) == ["listModels", "processInferenceRequest"]
    request: Any = mesh_shell.mesh.calls[-1].request
    assert (request.request.model, request.request.prompt) == (name, "Say hello")


def test_a_pipe_is_a_prompt(mesh_shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.ask.infer.is_piped", lambda _stdin: True)
    assert mesh_shell("run", "default", stdin="from a pipe").stdout == "Hello\n"
    request: Any = mesh_shell.mesh.calls[-1].request
    assert request.request.prompt == "from a pipe"


def test_another_model_is_pulled_where_it_fits_best_and_answers(mesh_shell: Shell) -> None:
    mesh_shell.mesh.answer(model_search.plan_model, found(YES, PARTLY))
    result = mesh_shell("run", "smol", "hi")
    assert (result.exit_code, result.stdout) == (0, "Hello\n")
    assert result.stderr.splitlines() == [
        "Pulling smol:1b (1.0 GB, not checked) on AAAAAAAAA…: 8192 tokens of context",
        "AAAAAAAAA… downloading: 0.0 MiB of 0.0 MiB, 50 %",
    ]
    assert methods(mesh_shell) == ["listModels", "planModel", "pullModel", "listModels", "listModels", "processInferenceRequest"]
    assert mesh_shell.mesh.calls[1].request == PlanModel("smol")
    assert mesh_shell.mesh.calls[2].request == PullOnWorkers(SMOL.source, A, name=ModelName("smol:1b"))
    request: Any = mesh_shell.mesh.calls[-1].request
    assert request.request.model == "smol:1b"


@pytest.mark.parametrize("model", [SMOL, None], ids=["its files were looked up", "without a network"])
def test_a_model_of_the_hub_keeps_the_name_of_its_file(mesh_shell: Shell, model: CatalogDocument | None) -> None:
    fit = YES if model else MachineFit(worker=A, fit=Fit.UNKNOWN, detail="huggingface.co does not answer")
    mesh_shell.mesh.answer(model_search.plan_model, found(fit, name=SMOL.source, origin="hub", model=model))
    assert mesh_shell("run", SMOL.source, "hi").exit_code == 0
    assert mesh_shell.mesh.calls[2].request == PullOnWorkers(SMOL.source, A)


def test_a_name_of_the_catalog_may_be_served_already(mesh_shell: Shell) -> None:
    mesh_shell.mesh.answer(model_search.plan_model, found(NO, name="default", is_served=True))
    assert mesh_shell("run", "Default", "hi").stdout == "Hello\n"
    assert "pullModel" not in methods(mesh_shell)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (errors.UnknownModel("no model is called 'smoll'", hint="did you mean smollm2?"), "did you mean smollm2?"),
        (found(NO), "smol:1b fits on no machine: BBBBBBBBB…: no (it needs 5.0 GiB, and models may use 1.0 GiB)"),
        (found(NO, FORBIDDEN), "smol:1b fits on AAAAAAAAA…, but its owner doesn't accept models of the mesh"),
        (found(FORBIDDEN), "for: aicli admin nodes accept-models AAAAAAAAA"),
        (found(), "there is no worker to run smol:1b – start one: aicli worker"),
    ],
)
def test_what_cannot_run_says_why(mesh_shell: Shell, answer: Any, text: str) -> None:
    mesh_shell.mesh.answer(model_search.plan_model, answer)
    result = mesh_shell("run", "smol", "hi")
    assert text in result.stderr
    assert result.exit_code != 0
    assert methods(mesh_shell) == ["listModels", "planModel"]


def test_who_is_no_administrator_hears_whom_to_ask(mesh_shell: Shell) -> None:
    mesh_shell.mesh.answer(model_search.plan_model, found(YES))

    async def refuse() -> None:
        raise errors.NotAllowed("ada is no administrator", hint="ask an administrator of this mesh to do it")

    mesh_shell.mesh.stream_answer(gateway.pull_model, [], PulledPlaces(()), refuse)
    result = mesh_shell("run", "smol", "hi")
    assert "ada is no administrator – ask an administrator" in result.stderr


def test_without_a_terminal_and_a_prompt_nothing_is_pulled(mesh_shell: Shell) -> None:
    result = mesh_shell("run", "smol")
    assert "aicli run needs a terminal, or a prompt" in result.stderr
    assert mesh_shell.mesh.calls == []
