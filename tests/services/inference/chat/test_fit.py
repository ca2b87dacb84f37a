"""How llama.cpp splits a model. What it does with a GPU can only be seen on one; here, its answers are made up."""

import asyncio
import sys
from contextlib import suppress

import msgspec
import pytest

from services.inference.chat import fit, library
from services.inference.engine.engine_messages import LoadCommand
from services.inference.models import model_discovery
from services.inference.supervision.engine_supervisor import SupervisedEngine
from shared.api.inference import ModelState
from shared.types import ModelName
from tests.services.inference.standins import PlainChat, Watch, until
from tools.engine_libraries import Toolchain

LOAD = LoadCommand("model.gguf", 2, 128, 1, 20, cpu_experts=3, may_fit=True)


def has_no_fit() -> bool:
    toolchain = Toolchain.find()
    return toolchain is not None and toolchain.is_zig


built = pytest.mark.skipif(not library.PATH.exists(), reason="libaimesh_chat was not built: python -m tools.engine_libraries")


def program(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Make this Python code answer instead of llama.cpp."""
    monkeypatch.setattr(fit, "PROGRAM", (sys.executable, "-c", f"import sys; sys.stdin.buffer.read(); {code}"))


def answer(**fields: object) -> str:
    made = {"fits": True, "gpu_layers": 31, "tensor_split": [20, 11], "override_tensor": [r"blk\.1\.ffn=CPU"], **fields}
    return f"print({msgspec.json.encode(made).decode()!r})"


async def test_load_follows_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    program(monkeypatch, answer())
    fitted = await fit.fitted(LOAD)
    assert (fitted.gpu_layers, fitted.cpu_experts) == (31, 0)
    assert (fitted.tensor_split, fitted.override_tensor) == ((20.0, 11.0), (r"blk\.1\.ffn=CPU",))


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(answer(fits=False), id="even that doesn't fit"),
        pytest.param("print('{}')", id="an answer without its fields"),
        pytest.param("sys.exit('no library')", id="no library"),
        pytest.param("import os; os.abort()", id="a driver that crashes"),
        pytest.param("import time; time.sleep(600)", id="a driver that hangs"),
    ],
)
async def test_our_estimate_stays_without_a_better_one(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    program(monkeypatch, code)
    monkeypatch.setattr(fit, "FIT_SECONDS", 3.0)
    async with asyncio.timeout(30):
        assert await fit.fitted(LOAD) == LOAD


@built
@pytest.mark.skipif(has_no_fit(), reason="g++ is missing, and what zig builds has no fit")
async def test_llama_cpp_leaves_a_model_on_the_processor_alone() -> None:
    """The real program and library, which find no GPU."""
    fitted = await fit.fitted(msgspec.structs.replace(LOAD, path=str(model_discovery.packaged())))
    assert (fitted.gpu_layers, fitted.cpu_experts, fitted.tensor_split, fitted.override_tensor) == (-1, 0, (), ())
    assert await fit.fitted(LOAD) == LOAD, "there is no such model"


async def test_a_program_that_cannot_be_started_does_not_end_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """For example, the machine has no memory or process id left for another process."""
    monkeypatch.setattr(fit, "PROGRAM", ("/no/such/program",))
    assert await fit.fitted(LOAD) == LOAD


async def test_engine_loads_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    program(monkeypatch, answer(override_tensor=["x=CUDA9"]))
    load = msgspec.structs.replace(LOAD, path=str(model_discovery.packaged()))
    engine = SupervisedEngine(ModelName("m"), load, Watch(), PlainChat())
    task = asyncio.create_task(engine.run())
    try:
        await until(lambda: engine.state is ModelState.FAILED)
        assert engine.detail.startswith("override_tensor names CUDA9, but llama.cpp has no such device here")
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
