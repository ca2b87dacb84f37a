"""The plug-in for Vulkan on a driver that may compute on the processor, such as Debian's lavapipe: search, plan, offload, answers."""

import asyncio
import os
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import llama_cpp
import pytest

from services.inference.backends import backend_selection
from services.inference.engine import devices, engine_messages
from services.inference.models import load_plan, model_discovery
from services.inference.settings import InferenceSettings
from services.inference.supervision.engine_supervisor import SupervisedEngine
from shared.api.inference import ModelState
from shared.gguf import gguf_header
from shared.types import ModelName
from tests import capabilities
from tests.services.inference.standins import PlainChat, Reader, Watch, job, until
from tools.engine import wheel

pytestmark = pytest.mark.nightly("long")


@pytest.fixture
def engine_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of the engine with the plug-in; returns a Python statement that makes a child process import it."""
    capabilities.require("vulkan")
    shutil.copytree(Path(llama_cpp.__file__).parent, tmp_path / "llama_cpp")
    with zipfile.ZipFile(wheel.ensure(plug_in="vulkan")) as archive:
        archive.extractall(tmp_path, [name for name in archive.namelist() if name.endswith(".so")])
    # llama.cpp takes a driver for processors only if it is named.
    monkeypatch.setenv("GGML_VK_VISIBLE_DEVICES", "0")
    # Landlock allows these folders.
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path / 'llama_cpp' / 'lib'}:{os.environ.get('LD_LIBRARY_PATH', '')}")
    return f"import sys; sys.path.insert(0, {str(tmp_path)!r});"


@pytest.mark.parametrize(("replicas", "engines"), [pytest.param(None, 1, id="replicas: auto"), pytest.param(2, 2, id="two engines")])
async def test_gpu_is_found_planned_and_used(engine_path: str, monkeypatch: pytest.MonkeyPatch, replicas: int | None, engines: int) -> None:
    search = f"{engine_path} from services.inference.engine import devices; devices.main()"
    monkeypatch.setattr(devices, "PROGRAM", (sys.executable, "-c", search))
    # A driver for processors has no device file.
    monkeypatch.setattr(devices, "plug_ins", lambda: ("vulkan",))
    settings = InferenceSettings(node_key_file=Path("/nowhere/worker.nk"))
    (line,), unused, budget = await backend_selection.find_devices(settings)
    assert line.startswith("Vulkan0: ")
    assert not unused
    (vram,) = budget.vram
    assert vram > 0

    file = model_discovery.packaged()
    header = gguf_header.check_parts(file)
    entry = replace(settings.model_defaults().entry(name=ModelName("smollm2"), file=file), replicas=replicas)
    plan = load_plan.plan(header, file.stat().st_size, entry, budget)
    assert plan.gpu_layers == -1
    assert any(reason.startswith("devices: all") and "on GPU 0" in reason for reason in plan.reasons), plan.reasons
    assert plan.devices == (None,) * engines
    assert 0 < plan.total.vram <= vram

    program = f"{engine_path} from services.inference.engine import engine_process; engine_process.main()"
    load = engine_messages.LoadCommand(str(file), 2, 512, 2, plan.gpu_layers)
    started = [SupervisedEngine(ModelName("smollm2"), load, Watch(), PlainChat(), (sys.executable, "-c", program)) for _ in plan.devices]
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(engine.run()) for engine in started]
        await until(lambda: all(engine.state is not ModelState.LOADING for engine in started))
        layers = header.block_count
        assert layers is not None
        for engine in started:
            assert engine.state is ModelState.READY, engine.detail
            assert engine.loaded is not None
            assert f"offloaded {layers + 1}/{layers + 1} layers to GPU" in engine.loaded.gpu
            assert engine.loaded.unconfined == ""
        readers = [Reader() for _ in started]
        await asyncio.gather(
            *(
                engine.generate(job("The capital of France is", max_tokens=8), reader)
                for engine, reader in zip(started, readers, strict=True)
            )
        )
        assert all(reader.text for reader in readers)
        for task in running:
            task.cancel()
