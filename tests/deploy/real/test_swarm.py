"""deploy/swarm/stack.yaml on one machine, as in docs/howto/swarm.md, and a rolling update under streaming load.

The GPUs are only numbers that the engine announces; the workers' image is built without CUDA and runs the echo backend.
"""

import asyncio
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deploy import compose_file
from tests.deploy.real import image_builds, stream_load
from tests.deploy.real.docker_engine import DockerEngine
from tests.testnet import free_port

pytestmark = pytest.mark.timeout(1800)
STACK = "aimesh"
#: On a loaded machine, a dozen services take minutes to start.
START_SECONDS = 600
#: Between two checks of the services; Docker's program takes long enough itself.
LOOK_SECONDS = 1.0
UPDATED = "0.0.1-updated"
OURS = ("auth", "gateway", "inference", "metrics", "web")
LONG_RUNNING = (*OURS, "nats", "valkey", "postgres", "proxy")


@dataclass(frozen=True, slots=True)
class SwarmStack:
    engine: DockerEngine
    folder: Path
    settings: dict[str, str]

    def deploy(self, **settings: str) -> None:
        """Deploy the stack from the folder with its files."""
        words = ("stack", "deploy", "--resolve-image", "never", "-c", str(self.folder / "deploy/swarm/stack.yaml"), STACK)
        self.engine.docker(*words, more={**self.settings, **settings})

    def replicas(self) -> dict[str, str]:
        """Return service -> running and wanted tasks, as "2/2"."""
        lines = self.engine.docker("service", "ls", "--format", "{{.Name}} {{.Replicas}}").splitlines()
        return {line.split()[0].removeprefix(f"{STACK}_"): line.split()[1] for line in lines}

    def update_states(self) -> dict[str, str]:
        found = {}
        for name in LONG_RUNNING:
            state = json.loads(self.engine.docker("service", "inspect", f"{STACK}_{name}"))[0].get("UpdateStatus", {})
            found[name] = state.get("State", "")
        return found

    async def is_updated(self) -> None:
        """Wait until the update of each of our services has completed or failed."""
        async with asyncio.timeout(START_SECONDS):
            while True:
                states = await asyncio.to_thread(self.update_states)
                if all(states[name] not in {"", "updating"} for name in OURS):
                    return
                await asyncio.sleep(LOOK_SECONDS)

    def images(self, service: str) -> set[str]:
        """Return the images of the running tasks."""
        words = ("--filter", "desired-state=running", "--format", "{{.Image}}")
        return set(self.engine.docker("service", "ps", f"{STACK}_{service}", *words).split())

    async def is_complete(self) -> None:
        """Wait until every service has all of its tasks, healthy."""
        async with asyncio.timeout(START_SECONDS):
            while True:
                found = await asyncio.to_thread(self.replicas)
                if all(found[name].split("/")[0] == found[name].split("/")[1] for name in LONG_RUNNING):
                    return
                await asyncio.sleep(LOOK_SECONDS)


@pytest.fixture(scope="module")
def stack(engine: DockerEngine, images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwarmStack]:
    folder = tmp_path_factory.mktemp("swarm")
    # Copy the files that the stack reads: it looks for secrets in its own folder.
    for name in ("deploy/swarm/stack.yaml", "deploy/docker/proxy.cfg", "deploy/docker/pg_hba.conf", "stack/servers/postgres.sql"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((compose_file.ROOT / name).read_bytes())
    (folder / "models").mkdir()
    settings = {
        "AIMESH_REGISTRY": image_builds.REGISTRY,
        "INFERENCE_BACKEND": "echo",
        "ECHO_TOKEN_MS": "50",
        "MODELS_FOLDER": str(folder / "models"),
    }
    settings |= {name: str(free_port()) for name in ("WEB_SERVICE_PORT", "GATEWAY_SERVICE_PORT")}
    engine.docker("swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", f"127.0.0.1:{free_port()}")
    try:
        engine.docker("node", "update", "--label-add", "aimesh.stores=true", engine.docker("node", "ls", "--quiet").strip())
        engine.docker(*init_command(folder, images["aimesh"]))
        yield SwarmStack(engine, folder, settings)
    finally:
        print(engine.docker("stack", "ps", "--no-trunc", "--format", "{{.Name}} {{.CurrentState}} {{.Error}}", STACK, check=False))
        engine.docker("stack", "rm", STACK, check=False)
        engine.docker("swarm", "leave", "--force", check=False)
        engine.docker("volume", "prune", "--force", check=False)


def init_command(folder: Path, image: str) -> list[str]:
    """Return the page's `docker run` command, for this folder."""
    page = (compose_file.ROOT / "docs/howto/swarm.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^docker (run .*?hand_out\.py /handed')$", page, re.MULTILINE | re.DOTALL)
    words = shlex.split(command.replace("\\\n", " ").replace("$PWD", str(folder)))
    return [image if word.startswith("$AIMESH_REGISTRY/") else word for word in words]


async def test_it_starts_and_answers(stack: SwarmStack) -> None:
    await asyncio.to_thread(stack.deploy)
    await stack.is_complete()
    assert stack.replicas()["inference"] == "3/3"
    assert "word1" in await stream_load.ask(url_of(stack), key_of(stack), "echo", "word0 word1")


async def test_a_rolling_update_ends_no_stream(stack: SwarmStack, images: dict[str, str]) -> None:
    for tag in images.values():
        stack.engine.docker("tag", tag, f"{tag.rpartition(':')[0]}:{UPDATED}")
    async with stream_load.streams(url_of(stack), key_of(stack), "echo", at_once=6) as load:
        await load.wait_for(more=6)
        await asyncio.to_thread(stack.deploy, AIMESH_VERSION=UPDATED)
        await stack.is_updated()
        await stack.is_complete()
        await load.wait_for(more=12)
    # All services update at once: on a machine with few processors, the database may be too slow for new requests meanwhile.
    print(f"{load.completed} streams ended, {len(load.refused)} requests were told to try again: {load.refused[:3]}")
    assert not load.failed
    assert {name: state for name, state in stack.update_states().items() if "rollback" in state or "paused" in state} == {}
    for service in OURS:
        assert {image.rpartition(":")[2] for image in stack.images(service)} == {UPDATED}


def url_of(stack: SwarmStack) -> str:
    return f"http://127.0.0.1:{stack.settings['GATEWAY_SERVICE_PORT']}"


def key_of(stack: SwarmStack) -> str:
    return (stack.folder / "deploy/swarm/handed/auth/admin_key").read_text(encoding="utf-8").strip()
