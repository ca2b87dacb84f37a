"""A worker beside a running stack that serves the scripted model, and a user who may use it."""

import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from shared.types import Tier
from tests import people, replicas
from tests.agents import agent_proxy, open_webui, programs, scripted_model
from tests.agents.agent_proxy import AgentProxy
from tests.agents.programs import Installed, Place, Program
from tests.agents.scripted_model import MODEL, MODELS, Task
from tests.services.inference import fake_http
from tests.stacks import RunningStack, until
from tests.testnet import free_port

#: Of a server with the scripted model.
ANSWERS: dict[str, fake_http.Answers] = {"/v1/models": MODELS, "/v1/chat/completions": scripted_model.answer}
#: A worker's settings for it, in OPENAI_UPSTREAMS.
UPSTREAMS = f"""\
[agents]
url = "{{url}}/v1"
images = true
slots = 32
only_models = ["{MODEL}"]
"""


@dataclass(frozen=True, slots=True)
class ModelMesh:
    stack: RunningStack
    key: str

    async def try_program(self, program: Program, installed: Installed, folder: Path, *, fields: int = 0) -> AgentProxy:
        """Have the program do the whole task, and check what it did and that nothing was refused. Return the proxy."""
        home, work = folder / "home", folder / "work"
        home.mkdir()
        work.mkdir()
        if installed.modules is not None:
            (work / "node_modules").symlink_to(installed.modules)
        task = new_task(work)
        # The address of the pages, as the lines have it.
        start = open_webui.start if program is open_webui.OPEN_WEBUI else programs.start
        async with agent_proxy.proxying(self.stack.url("web"), fields=fields, seed=fields) as proxy:
            output = await start(program, Place(installed.executables, home, work), proxy.url, self.key, task)
        assert proxy.refused() == [], f"{proxy.refused()}\n{output}"
        bodies = [exchange for exchange in proxy.exchanges if exchange.body is not None]
        assert len(bodies) >= len(program.runs(task)), output
        # Each request reached aimesh with the unknown fields.
        assert not fields or all(exchange.ignored for exchange in bodies)
        if not program.does_task:
            assert scripted_model.SHORT_TEXT in output
            return proxy
        assert task.program.read_text() == scripted_model.EDITED, output
        if program.has_tools:
            assert scripted_model.report(images=int(program.shows_images), results=program.parallel_calls) in output, output
        else:
            assert (work / "printed").read_text() == "hello, world\n", output
        return proxy

    @asynccontextmanager
    async def at_localhost(self) -> AsyncIterator[str]:
        """Serve the mesh at a port of this machine, for programs that only know Ollama's. Yields the address."""
        port = free_port()
        serving = await self.stack.start_aicli("serve", "--port", str(port), AICLI_API_KEY=self.key)
        try:
            assert serving.stdout is not None
            assert await serving.stdout.readline(), "aicli serve ended"
            yield f"http://localhost:{port}"
        finally:
            serving.terminate()
            await serving.communicate()


def new_task(folder: Path) -> Task:
    task = Task(folder / "hello.py", folder / "red.png")
    task.image.write_bytes(_red_square())
    return task


@asynccontextmanager
async def serving(stack: RunningStack, folder: Path) -> AsyncIterator[ModelMesh]:
    async with fake_http.serving(ANSWERS) as upstream, people.api_client(stack) as api_client:
        (folder / "upstreams.toml").write_text(UPSTREAMS.format(url=upstream.url), encoding="utf-8")
        settings = {"INFERENCE_BACKEND": "openai", "OPENAI_UPSTREAMS": str(folder / "upstreams.toml")}
        async with replicas.replica(stack, "inference", folder=folder, name="agents", settings=settings) as worker:
            await worker.ready()
            person = await api_client.register("coder", Tier.ENTERPRISE)

            async def is_served() -> bool:
                async with stack.http(person.key.secret) as http:
                    listed = (await http.get("/v1/models")).json()["data"]
                return any(model["id"] == MODEL for model in listed)

            await until(is_served, seconds=60, what="the gateway sees the scripted model")
            target = f"{{targets: [{{name: local, model: {MODEL}}}]}}"
            await _apply(stack, folder, f"routes: {{claude-*: {target}, gpt-*: {target}}}")
            yield ModelMesh(stack, person.key.secret)
            # Other tests use this stack, too.
            await _apply(stack, folder, "routes: {claude-*: null, gpt-*: null}")


async def _apply(stack: RunningStack, folder: Path, configuration: str) -> None:
    (folder / "configuration.yaml").write_text(configuration, encoding="utf-8")

    async def is_applied() -> bool:
        applied = await stack.aicli("admin", "config", "apply", "-f", str(folder / "configuration.yaml"))
        assert applied.status == 0, applied.err
        return True

    # On a busy machine, the gateway may take too long.
    await until(is_applied, seconds=60, what="the routes are set", ignoring=(AssertionError,))


def _red_square() -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0))
    rows = (b"\0" + b"\xff\0\0" * 16) * 16
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
