"""A program in a café that only knows localhost:11434, and a worker behind another NAT: only with the commands that users type."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.nat.test_mesh import MODEL, Mesh, mesh
from tests.nat.topology import Internet, Nat
from tests.stopwatch import HANG_SECONDS

pytestmark = pytest.mark.timeout(900)

INSTALL_SECONDS = 300
CLIENTS = Path(__file__).parents[1] / "clients"
#: A program that knows Ollama, and nothing of the mesh: no URL, no key, no certificate.
PROGRAM = f"""
import json, urllib.request

def ask(path, body=None):
    content = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen("http://localhost:11434" + path, content, timeout=120) as answer:
        return [json.loads(line) for line in answer.read().decode().splitlines()]

def text(lines):
    return "".join(line["message"]["content"] for line in lines)

chat = {{"model": "{MODEL}:latest", "messages": [{{"role": "user", "content": "Count to five."}}], "options": {{"num_predict": 16}}}}
names = [model["name"] for model in ask("/api/tags")[0]["models"]]
streamed, whole = ask("/api/chat", chat), ask("/api/chat", {{**chat, "stream": False}})
vectors = ask("/api/embed", {{"model": "{MODEL}", "input": ["one", "two"]}})[0]["embeddings"]
print(json.dumps({{"names": names, "streamed": text(streamed), "whole": text(whole), "lines": len(streamed), "vectors": len(vectors)}}))
"""


@asynccontextmanager
async def served(net: Internet) -> AsyncIterator[Mesh]:
    """Serve the mesh at localhost of the café; its only worker with a model is behind another NAT."""
    async with mesh(net, Nat.PORT_PRESERVING, net.public, MESH_RELAY="true") as people:
        await people.start_box("--join", await people.ticket("worker"))
        await people.serves()
        serving = await people.cafe.start("serve")
        await serving.says("http://localhost:11434", seconds=60)
        yield people


async def run(people: Mesh, *words: str, **environment: str) -> str:
    """Run a program in the café to its end."""
    process = await people.cafe.machine.start(*words, environment=environment, stderr=asyncio.subprocess.PIPE)
    async with asyncio.timeout(HANG_SECONDS):
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
