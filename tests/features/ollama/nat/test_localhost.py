"""A program in a café that only knows localhost:11434, and a worker behind another NAT: only with the commands that users type."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.agents import mesh_with_a_model, ollama_users, programs, scripted_model, scripted_server
from tests.nat.test_mesh import MODEL, SERVING_SECONDS, Mesh, mesh
from tests.nat.topology import Internet, Nat
from tests.stacks import REPOSITORY, until
from tests.stopwatch import HANG_SECONDS

pytestmark = [pytest.mark.timeout(900), pytest.mark.nightly("nat")]

INSTALL_SECONDS = 300
ADDRESS = "http://localhost:11434"
CLIENTS = Path(__file__).parents[1] / "clients"
#: A program that knows Ollama, and nothing of the mesh: no URL, no key, no certificate.
PROGRAM = f"""
import json, urllib.request

def ask(path, body=None):
    content = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen("{ADDRESS}" + path, content, timeout=120) as answer:
        return [json.loads(line) for line in answer.read().decode().splitlines()]

def text(lines):
    return "".join(line["message"]["content"] for line in lines)

chat = {{"model": "{MODEL}:latest", "messages": [{{"role": "user", "content": "Count to five."}}], "options": {{"num_predict": 16}}}}
names = [model["name"] for model in ask("/api/tags")[0]["models"]]
streamed, whole = ask("/api/chat", chat), ask("/api/chat", {{**chat, "stream": False}})
vectors = ask("/api/embed", {{"model": "{MODEL}", "input": ["one", "two"]}})[0]["embeddings"]
print(json.dumps({{"names": names, "streamed": text(streamed), "whole": text(whole), "lines": len(streamed), "vectors": len(vectors)}}))
"""


async def start_model(people: Mesh) -> None:
    await people.start_box("--join", await people.ticket("worker"))
    await people.serves()


async def start_scripted_model(people: Mesh) -> None:
    """Serve it by another server of the box."""
    server = await people.box.machine.start(sys.executable, "-m", scripted_server.__name__)
    assert server.stdout is not None
    url = (await server.stdout.readline()).decode().strip()
    settings = people.box.home / "upstreams.toml"
    settings.write_text(mesh_with_a_model.UPSTREAMS.format(url=url), encoding="utf-8")
    people.box.variables |= {"OPENAI_UPSTREAMS": str(settings)}
    await people.box.start("worker", "--backend", "openai", "--join", await people.ticket("worker"))

    async def is_served() -> bool:
        return scripted_model.MODEL in (await people.cafe.aicli("models", "--json")).out

    await until(is_served, seconds=SERVING_SECONDS, what="the café sees the scripted model")


@asynccontextmanager
async def served(net: Internet, start_worker: Callable[[Mesh], Awaitable[None]] = start_model) -> AsyncIterator[Mesh]:
    """Serve the mesh at localhost of the café; its only worker with a model is behind another NAT."""
    async with mesh(net, Nat.PORT_PRESERVING, net.public, MESH_RELAY="true") as people:
        await start_worker(people)
        serving = await people.cafe.start("serve")
        await serving.says(ADDRESS, seconds=60)
        yield people


async def run(people: Mesh, *words: str, seconds: float = HANG_SECONDS, **environment: str) -> str:
    """Run a program in the café to its end."""
    process = await people.cafe.machine.start(*words, environment=environment, stderr=asyncio.subprocess.PIPE)
    async with asyncio.timeout(seconds):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_a_program_behind_one_nat_uses_a_worker_behind_another(net: Internet) -> None:
    async with served(net) as people:
        found = json.loads(await run(people, sys.executable, "-c", PROGRAM))
        assert f"{MODEL}:latest" in found["names"]
        assert found["streamed"].strip()
        assert found["whole"].strip()
        assert found["lines"] > 2
        assert found["vectors"] == 2


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The folder of Ollama's package, as PyPI has it."""
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", "--require-hashes", "--target", str(tmp_path))
    subprocess.run((*pip, "-r", str(CLIENTS / "requirements" / "ollama.txt")), check=True, timeout=INSTALL_SECONDS)
    return tmp_path


@pytest.mark.nightly("clients")
async def test_ollamas_package_behind_one_nat_uses_a_worker_behind_another(package: Path, net: Internet) -> None:
    async with served(net) as people:
        await run(people, sys.executable, str(CLIENTS / "programs" / "ollama_python.py"), MODEL=MODEL, PYTHONPATH=str(package))


@pytest.mark.nightly("clients")
@pytest.mark.timeout(2 * programs.INSTALL_SECONDS)
@pytest.mark.parametrize("name", ollama_users.USERS)
async def test_a_known_program_behind_one_nat_uses_a_worker_behind_another(name: str, tmp_path: Path, net: Internet) -> None:
    """`codex --oss`, and Open WebUI by its Ollama connection, at their newest versions."""
    with tempfile.TemporaryDirectory(prefix="aimesh-agents-") as folder:
        installed = await programs.install_newest(ollama_users.USERS[name].program, Path(folder))
        words = (sys.executable, "-m", ollama_users.__name__, name, ADDRESS, str(tmp_path), *map(str, installed.executables))
        async with served(net, start_scripted_model) as people:
            await run(people, *words, seconds=2 * programs.RUN_SECONDS, PYTHONPATH=str(REPOSITORY), PATH=os.environ["PATH"])
