"""What zig builds for workers does the same as what g++ builds: in each environment, the same program prints what its libraries did."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from services.inference import missing_libraries
from stack.servers.engine_libraries import LIBRARIES
from tests.stopwatch import HANG_SECONDS
from tools import engine_libraries, setup_steps
from tools.engine import zig
from tools.engine_libraries import Toolchain

PROGRAM = """
import hashlib, sys, tempfile
from pathlib import Path
import msgspec
from services.inference import missing_libraries

environment = Path(sys.argv[1])
missing_libraries.IMAGES = missing_libraries.path("libaimesh_images", environment)

from services.inference.chat.chat_messages import ParseAnswer, RenderPrompt
from services.inference.chat.library import ChatLibrary, NotUnderstood
from services.inference.chat import template_probe
from services.inference.engine import llama_model
from services.inference.engine.engine_loop import EngineLoop
from tests.services.inference.chat import vendored
from tests.services.inference.chat.test_library import TOOL, USER
from tests.services.inference.images import vision_models

chat = ChatLibrary(missing_libraries.path("libaimesh_chat", environment))
call = {"type": "function", "id": "123456789", "function": {"name": "weather", "arguments": '{"city": "K[ö]ln"}'}}
said = {"role": "assistant", "reasoning_content": "Hm [x].", "content": "Let me [see] it.", "tool_calls": [call]}
for path in vendored.paths():
    template = chat.open(vendored.request_of(path))
    asked = template.render(RenderPrompt((USER,), (TOOL,)))
    answered = template.render(RenderPrompt((USER, said), (TOOL,), answer=False)).prompt
    try:
        read = chat.parse(ParseAnswer(asked.parser, next(template_probe.cuts(asked, answered), answered[-400:])))
    except NotUnderstood as error:
        read = error
    # Compilers choose the order of a call's arguments, and so the numbers of the nodes of a parser.
    asked = msgspec.structs.replace(asked, parser="")
    print(path.stem, template.capabilities, template_probe.reads_calls(chat, template), asked, repr(read))
for kind in vision_models.KINDS:
    folder = Path(tempfile.mkdtemp())
    with llama_model.opened(vision_models.write(folder, kind), lambda _: None) as model:
        loop = EngineLoop(model, slots=vision_models.SLOTS, cache_bytes=0)
        pictures = (vision_models.picture(1), vision_models.picture(2, 333, 217))
        tokens, _ = vision_models.Asked(loop).ask("Two pictures # and # are here. Which?", *pictures, salt="a")
        rows = [hashlib.sha256(part.tobytes()).hexdigest() for parts in model._images._cached.values() for part in parts]
        print(kind, model._numerics, tokens, rows)
"""


def _installed(wheel: Path, into: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        for library in LIBRARIES:
            (name,) = (name for name in archive.namelist() if name.endswith(f".data/data/{library.file}"))
            (into / library.file).parent.mkdir(parents=True, exist_ok=True)
            (into / library.file).write_bytes(archive.read(name))
    return into


#: Divides no model, as it says.
FIT = """
import sys
from pathlib import Path
from services.inference import missing_libraries
from services.inference.chat.library import ChatLibrary

print(ChatLibrary(missing_libraries.path("libaimesh_chat", Path(sys.argv[1]))).fit("model.gguf", None, None, 0).fits)
"""


def _run(environment: Path, program: str = PROGRAM) -> list[str]:
    command = (sys.executable, "-c", program, str(environment))
    done = subprocess.run(command, cwd=setup_steps.ROOT, capture_output=True, text=True, check=False, timeout=10 * HANG_SECONDS)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()


@pytest.mark.nightly("install")
@pytest.mark.timeout(3600)
def test_workers_with_these_libraries_compute_what_those_with_gs_libraries_do(tmp_path: Path) -> None:
    """They hold no kernels of llama.cpp, so they are not part of an engine's numerics, and answers move between such workers."""
    gnu = Toolchain.gnu()
    if Toolchain.find() != gnu or gnu.machine not in zig.TARGETS:
        pytest.skip("needs g++ on a machine that zig builds for")
    engine_libraries.ensure(gnu)
    zigs = _installed(engine_libraries.ensure_wheel(gnu.machine), tmp_path)
    expected = _run(setup_steps.VENV)
    assert len(expected) > 70
    assert _run(zigs) == expected
    assert _run(zigs, FIT) == ["False"], "a worker keeps its own estimate"


@pytest.mark.nightly("install")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("machine", zig.TARGETS)
def test_the_wheel_fits_machines_that_the_engine_fits(machine: str) -> None:
    made = engine_libraries.ensure_wheel(machine)
    _, _, tag = made.stem.rpartition("-")
    assert tag.endswith(machine)
    assert tuple(map(int, tag.split("_")[1:3])) <= (2, 34), "the C library that the engine needs"
    with zipfile.ZipFile(made) as archive:
        for name in missing_libraries.WITHOUT:
            (body,) = (archive.read(each) for each in archive.namelist() if each.endswith(f"/{name}.so"))
            assert b"libstdc++" not in body, f"{name} needs a library of C++ that is as new as that of the machine that built it"
