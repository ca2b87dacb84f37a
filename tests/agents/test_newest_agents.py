"""Every program of the pages, at its newest version, does a whole task with a scripted model; also with unknown fields, as a later version
would send them.

The packages come from the machine's indexes. The run prints the versions that it took.
"""

import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from shared.types import Tier
from tests import people
from tests.agents import mesh_with_a_model, ollama_users, open_webui, programs
from tests.agents.mesh_with_a_model import ModelMesh
from tests.agents.open_webui import OPEN_WEBUI
from tests.agents.programs import OTHERS, PINNED, Installed, Place, Program
from tests.agents.scripted_model import SHORT_TEXT
from tests.stacks import RunningStack

Install = Callable[[Program], Awaitable[Installed]]

pytestmark = [
    pytest.mark.nightly("clients"),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(programs.INSTALL_SECONDS + 2 * programs.RUN_SECONDS),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ModelMesh]:
    async with mesh_with_a_model.serving(stack, tmp_path_factory.mktemp("mesh")) as serving:
        yield serving


@pytest.fixture(scope="module")
def install() -> Iterator[Install]:
    """Installs a program, and removes the one before: together, they have 12 GB."""
    found: dict[str, Installed] = {}
    with ExitStack() as folders:

        async def install(program: Program) -> Installed:
            if program.setup not in found:
                found.clear()
                folders.close()
                folder = Path(folders.enter_context(tempfile.TemporaryDirectory(prefix="aimesh-agents-")))
                found[program.setup] = await programs.install_newest(program, folder)
                print(*found[program.setup].versions, file=sys.__stderr__)
            return found[program.setup]

        yield install


@pytest.mark.parametrize("fields", [0, 200])
@pytest.mark.parametrize("program", [*PINNED, *OTHERS, OPEN_WEBUI], ids=lambda program: program.name)
async def test_the_newest_version(mesh: ModelMesh, install: Install, tmp_path: Path, program: Program, fields: int) -> None:
    proxy = await mesh.try_program(program, await install(program), tmp_path, fields=fields)
    print(program.name, fields, proxy.describe(), file=sys.__stderr__)


async def test_open_webui_uses_the_mesh_as_ollama(mesh: ModelMesh, install: Install, tmp_path: Path) -> None:
    installed = await install(OPEN_WEBUI)
    async with mesh.at_localhost() as address:
        await ollama_users.do_task(OPEN_WEBUI.name, address, tmp_path, installed.executables)


async def test_open_webui_names_the_person_of_each_request(mesh: ModelMesh, install: Install, stack: RunningStack, tmp_path: Path) -> None:
    (home := tmp_path / "home").mkdir()
    place = Place((await install(OPEN_WEBUI)).executables, home, tmp_path)
    program = replace(OPEN_WEBUI, switches={**OPEN_WEBUI.switches, **open_webui.BY_PERSON})
    async with people.api_client(stack) as api_client:
        ann, ben = [await api_client.register(name, Tier.PRO, is_added=True) for name in ("ann", "ben")]
        key = await api_client.make_naming_key("webui")
        passwords = {ann.email: ann.password, ben.email: ben.password, "nobody@example.org": ann.password}
        shown = await open_webui.ask_as(program, place, stack.url("web"), key.secret, passwords)
    nobody = shown.pop("nobody@example.org")
    assert "this key serves people with an account here" in nobody, nobody
    assert all(SHORT_TEXT in text for text in shown.values()), shown
    for person in (ann, ben):
        await stack.recorded(person.id, 1)
    async with stack.database("gateway") as database:
        rows = await database.fetch("SELECT user_id, tenant_id, status FROM request_logs WHERE api_key_id = $1", key.id)
    assert {row["user_id"] for row in rows if row["status"] == "success"} == {ann.id, ben.id}
    assert all(row["tenant_id"] == row["user_id"] for row in rows)
