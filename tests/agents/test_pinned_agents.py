"""Claude Code, Codex and opencode do a whole task with a scripted model: in `make test` at the versions of package-lock.json.

With the lines of the pages, each creates a file, edits it, runs it with parallel calls and looks at an image. To renew the versions:

    npm update --package-lock-only --omit-lockfile-registry-resolved
"""

import hashlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.agents import mesh_with_a_model, ollama_users, programs
from tests.agents.mesh_with_a_model import ModelMesh
from tests.agents.programs import CODEX, PINNED, VENDOR_MODELS, Installed, Place, Program
from tests.stacks import RunningStack

HERE = Path(__file__).parent
#: Kept between runs: the three programs are a gigabyte.
INSTALLED = HERE.parents[1] / ".tools" / "agents"

#: The requests of a whole task; Claude Code and opencode also ask for a title.
REQUESTS = {
    "claude-code": "1 × 200 /, 7 × 200 /v1/messages",
    "codex": "5 × 200 /v1/responses",
    "codex-gpt-5.5": "5 × 200 /v1/responses",
    "codex-gpt-6.2": "5 × 200 /v1/responses",
    "claude-code-sonnet": "1 × 200 /, 7 × 200 /v1/messages",
    "opencode": "7 × 200 /v1/chat/completions",
}

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(programs.INSTALL_SECONDS + programs.RUN_SECONDS)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The three programs, installed if the lock has changed."""
    lock = HERE / "package-lock.json"
    stamp, digest = INSTALLED / "installed", hashlib.sha256(lock.read_bytes()).hexdigest()
    place = Place((), tmp_path_factory.mktemp("npm"), INSTALLED)
    if not stamp.exists() or stamp.read_text() != digest:
        shutil.rmtree(INSTALLED, ignore_errors=True)
        INSTALLED.mkdir(parents=True)
        for file in (HERE / "package.json", lock):
            shutil.copy(file, INSTALLED)
        await programs.run(place, f"{programs.NPM} ci", seconds=programs.INSTALL_SECONDS)
        await programs.finish_installation(place)
        stamp.write_text(digest)
    # Without the package that finds the one for this machine: the lock would need the hashes of all, which only some registries have.
    return Installed(tuple(INSTALLED / "node_modules" / folder for folder in (".bin", "opencode-linux-x64/bin")), ())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ModelMesh]:
    async with mesh_with_a_model.serving(stack, tmp_path_factory.mktemp("mesh")) as serving:
        yield serving


@pytest.mark.parametrize("fields", [0, 200], ids=["today", "a later version"])
@pytest.mark.parametrize("program", [*PINNED, *VENDOR_MODELS], ids=lambda program: program.name)
async def test_a_whole_task(mesh: ModelMesh, installed: Installed, tmp_path: Path, program: Program, fields: int) -> None:
    proxy = await mesh.try_program(program, installed, tmp_path, fields=fields)
    # More requests would be repeated ones.
    assert proxy.describe() == REQUESTS[program.name]


async def test_codex_uses_the_mesh_as_ollama(mesh: ModelMesh, installed: Installed, tmp_path: Path) -> None:
    """`codex --oss` only knows the port of a local Ollama, where `aicli serve` is."""
    async with mesh.at_localhost() as address:
        await ollama_users.do_task(CODEX.name, address, tmp_path, installed.executables)
