"""Programs that only know a local Ollama, without a key, do the task of the scripted model at the port of `aicli serve`.

On another machine of a made-up network: python -m tests.agents.ollama_users NAME ADDRESS FOLDER EXECUTABLES…
"""

import asyncio
import shlex
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tests.agents import mesh_with_a_model, open_webui, programs, scripted_model
from tests.agents.open_webui import OPEN_WEBUI
from tests.agents.programs import CODEX, Place, Program
from tests.agents.scripted_model import Task


async def _codex(place: Place, address: str, task: Task) -> str:
    flags = "--oss --local-provider ollama --skip-git-repo-check --dangerously-bypass-approvals-and-sandbox"
    command = f"codex exec {flags} -m {scripted_model.MODEL} {shlex.quote(task.prompt)}"
    # Its default is Ollama's port, which another program of this machine may have.
    return await programs.run(place, command, CODEX_OSS_BASE_URL=f"{address}/v1")


async def _open_webui(place: Place, address: str, task: Task) -> str:
    """By its Ollama connection, which only has an address."""
    switches = {**OPEN_WEBUI.switches, **open_webui.BY_OLLAMA, "OLLAMA_BASE_URL": address}
    return await open_webui.start(replace(OPEN_WEBUI, switches=switches), place, address, "any", task)


@dataclass(frozen=True, slots=True)
class OllamaUser:
    program: Program
    start: Callable[[Place, str, Task], Awaitable[str]]


USERS: Mapping[str, OllamaUser] = {"codex": OllamaUser(CODEX, _codex), "open-webui": OllamaUser(OPEN_WEBUI, _open_webui)}


async def do_task(name: str, address: str, folder: Path, executables: tuple[Path, ...]) -> None:
    """Have the program do the whole task in this folder, and check what it did."""
    home, work = folder / "home", folder / "work"
    home.mkdir()
    work.mkdir()
    task = mesh_with_a_model.new_task(work)
    output = await USERS[name].start(Place(executables, home, work), address, task)
    assert task.program.read_text() == scripted_model.EDITED, output
    assert scripted_model.report(images=1, results=2) in output, output


if __name__ == "__main__":
    asyncio.run(do_task(sys.argv[1], sys.argv[2], Path(sys.argv[3]), tuple(map(Path, sys.argv[4:]))))
