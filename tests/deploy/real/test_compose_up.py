"""compose.yaml on Docker: it starts, answers with the default model, and scales replicas up and down without a failed stream."""

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stack.network import certificate
from tests.deploy import compose_file, outside
from tests.deploy.proxies.programs import SITE
from tests.deploy.real import stream_load
from tests.deploy.real.docker_engine import DockerEngine
from tests.testnet import free_port

pytestmark = pytest.mark.timeout(1200)
PROJECT = "aimeshtest"
_UP = ("up", "--detach", "--wait", "--no-build", "--pull", "never")


@dataclass(frozen=True, slots=True)
class ComposeStack:
    engine: DockerEngine
    dotenv: dict[str, str]
    #: It has the certificate of PUBLIC_URL.
    folder: Path

    def compose(self, *words: str, dotenv: dict[str, str] | None = None, **options: Any) -> str:
        return self.engine.compose(PROJECT, {**self.dotenv, **(dotenv or {})}, *words, folder=compose_file.ROOT, **options)

    def key(self) -> str:
        return self.compose("exec", "-T", "auth", "cat", "/run/aimesh/admin_key").strip()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.dotenv['GATEWAY_SERVICE_PORT']}"


@pytest.fixture(scope="module")
def stack(engine: DockerEngine, images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeStack]:
    assert images
    folder = tmp_path_factory.mktemp("compose")
    # Not this checkout's settings.
    (folder / "empty.env").touch()
    (folder / "models").mkdir()
    ports = {name: str(free_port()) for name in ("GATEWAY_SERVICE_PORT", "WEB_SERVICE_PORT")}
    pin = certificate.read(outside.make_certificate(folder), SITE).pin
    entry = {"PUBLIC_URL": f"https://{SITE}", "PUBLIC_KEY_PIN": pin}
    files = {"MODELS_FOLDER": str(folder / "models"), "COMPOSE_ENV_FILES": str(folder / "empty.env")}
    stack = ComposeStack(engine, {**ports, **entry, **files}, folder)
    try:
        yield stack
    finally:
        print(stack.compose("logs", "--tail", "60", check=False)[-20_000:])
        stack.compose("down", "--volumes", "--timeout", "5", check=False)


async def test_it_starts_and_answers(stack: ComposeStack) -> None:
    stack.compose(*_UP)
    states = [json.loads(line) for line in stack.compose("ps", "--format", "json").splitlines()]
    assert {each["Service"] for each in states} >= {"postgres", "valkey", "nats", "auth", "gateway", "inference", "metrics", "web", "proxy"}
    assert {each["Health"] for each in states} == {"healthy"}
    assert await stream_load.ask(stack.url, stack.key(), "smollm2")


async def test_a_worker_outside_joins_by_the_printed_line_answers_and_is_revoked(stack: ComposeStack) -> None:
    async def aicli(*words: str) -> str:
        run = ("--progress", "quiet", "run", "--rm", "-T", "--no-deps", "--env", f"AICLI_API_KEY={stack.key()}", "aicli")
        return await asyncio.to_thread(stack.compose, *run, *words)

    web, gateway = (int(stack.dotenv[f"{name}_SERVICE_PORT"]) for name in ("WEB", "GATEWAY"))
    await outside.prove_that_a_worker_joins(stack.folder, aicli, web=web, gateway=gateway, key=stack.key(), serves_script=True)


async def test_replicas_come_and_go_without_a_failed_stream(stack: ComposeStack) -> None:
    echo = {"INFERENCE_BACKEND": "echo", "ECHO_TOKEN_MS": "50"}
    await asyncio.to_thread(stack.compose, *_UP, dotenv=echo)
    async with stream_load.streams(stack.url, stack.key(), "echo", at_once=6) as load:
        for inference, gateway in ((3, 2), (1, 1), (2, 2)):
            scale = ("--scale", f"inference={inference}", "--scale", f"gateway={gateway}")
            await asyncio.to_thread(stack.compose, *_UP, "--no-recreate", *scale, dotenv=echo)
            running = await asyncio.to_thread(stack.compose, "ps", "--quiet", "inference", "gateway")
            assert len(running.split()) == inference + gateway
            await load.wait_for(more=6)
    assert not load.failed
    assert not load.refused
    assert load.completed >= 18


async def test_an_upgrade_of_the_gateways_as_the_howto_says_refuses_nothing(stack: ComposeStack) -> None:
    page = (compose_file.ROOT / "docs/howto/deploy.md").read_text(encoding="utf-8")
    commands = re.findall(r"^  docker compose (up .*)$", page, re.MULTILINE)
    assert len(commands) == 3, commands
    old = {"INFERENCE_BACKEND": "echo", "ECHO_TOKEN_MS": "50"}
    # In place of a new image.
    new = {**old, "MODEL_ALIASES": "parrot=echo"}
    await asyncio.to_thread(stack.compose, *_UP, dotenv=old)
    before = await asyncio.to_thread(stack.compose, "ps", "--quiet", "gateway")
    async with stream_load.streams(stack.url, stack.key(), "echo", at_once=6) as load:
        await load.wait_for(more=6)
        for command in commands:
            words = command.replace("--build", "--no-build --pull never").split()
            await asyncio.to_thread(stack.compose, *words, dotenv=new)
        await load.wait_for(more=6)
    assert (load.failed, load.refused) == ([], [])
    after = await asyncio.to_thread(stack.compose, "ps", "--quiet", "gateway")
    assert len(after.split()) == 1
    assert after != before
    assert await stream_load.ask(stack.url, stack.key(), "parrot")


def test_a_database_moves_to_an_empty_volume_as_the_howto_says(stack: ComposeStack) -> None:
    """The upgrade path from PostgreSQL 17, here from 18 to 18, because only that server is available."""
    page = (compose_file.ROOT / "docs/howto/deploy.md").read_text(encoding="utf-8")
    dump = "PGPASSWORD=$(cat /run/aimesh/admin_password) pg_dumpall -U aimesh_admin"
    load = "PGPASSWORD=$(cat /run/aimesh/admin_password) psql -q -U aimesh_admin -d postgres"
    assert dump in page
    assert load in page
    statements = stack.compose("exec", "-T", "postgres", "sh", "-c", dump)
    stack.compose("down", "--timeout", "5")
    stack.engine.docker("volume", "rm", f"{PROJECT}_postgres-data")
    stack.compose(*_UP, "postgres")
    answer = stack.compose("exec", "-T", "postgres", "sh", "-c", load, input=statements)
    assert [line for line in answer.splitlines() if "ERROR" in line] == ['ERROR:  role "aimesh_admin" already exists']
    stack.compose(*_UP)
