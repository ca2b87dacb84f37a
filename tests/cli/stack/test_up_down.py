"""The whole stack, up and down, as `make up` does it: real servers, the five services, and the echo model for speed."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cli.stack import control, first_run, overview, plan, ports, processes, up_down
from cli.stack import home as homes
from cli.stack.control import Answer, Status
from cli.stack.home import Home
from shared import errors

PORTS = ("WEB", "AUTH", "GATEWAY", "INFERENCE", "METRICS")


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    found = homes.locate({"AIMESH_HOME": str(tmp_path / "h")})
    yield found
    await up_down.down(found, said.append)


@pytest.fixture
def given() -> dict[str, str]:
    chosen = {f"{name}_SERVICE_PORT": str(ports.find_free()) for name in PORTS}
    servers = {"NATS_PORT": str(ports.find_free()), "DHT_PORT": str(ports.find_free(4, is_udp=True)), "PROMETHEUS_PORT": "0"}
    return {**chosen, **servers, "INFERENCE_BACKEND": "echo"}


said: list[str] = []


async def running(home: Home) -> Answer:
    answer = await control.ask(home.control_socket, Status())
    assert answer is not None
    return answer


def pids(answer: Answer) -> dict[str, int | None]:
    return {program.name: program.pid for program in answer.programs}


async def test_up_again_killed_and_down(home: Home, given: dict[str, str], tmp_path: Path) -> None:
    settings = await up_down.up(home, given, tmp_path, said.append)
    made = await first_run.ensure_profile(home, settings)
    first = await running(home)
    assert {row.name for row in await overview.collect(home) if row.ready} == {"postgres", "valkey", "nats", "dht", *plan.SERVICES}

    # Again: at once, nothing is started anew, the key is kept, and the ports are known without the environment.
    started = time.monotonic()
    assert await up_down.up(home, {}, tmp_path, said.append) == settings
    assert await first_run.ensure_profile(home, settings) == made
    assert time.monotonic() - started < 5
    assert pids(await running(home)) == pids(first)

    # The supervisor is killed: its children end with it, and `up` brings everything back, data and key included.
    os.kill(first.pid, signal.SIGKILL)
    await up_down.up(home, {}, tmp_path, said.append)
    second = await running(home)
    assert not set(pids(second).values()) & set(pids(first).values())
    assert await first_run.ensure_profile(home, settings) == made

    # Changed settings take effect.
    moved = str(ports.find_free())
    await up_down.up(home, {"WEB_SERVICE_PORT": moved}, tmp_path, said.append)
    assert str((await overview.collect(home))[-1].url).endswith(moved)

    last = pids(await running(home))
    assert await up_down.down(home, said.append)
    assert not [name for name, pid in last.items() if pid is not None and processes.start_of(pid) is not None]
    assert not await up_down.down(home, said.append)
    assert (home.postgres / "data" / "PG_VERSION").exists()


async def test_a_service_that_cannot_start_is_told_with_its_reason(home: Home, given: dict[str, str], tmp_path: Path) -> None:
    said.clear()
    with pytest.raises(errors.Internal, match="gateway does not start") as caught:
        await up_down.up(home, {**given, "BIND_HOST": "0.0.0.0"}, tmp_path, said.append)
    assert "\n" not in caught.value.message
    assert any("TLS_CERT_FILE" in line for line in said)
    # Repaired by a person, it comes up from where it is.
    async with asyncio.timeout(60):
        await up_down.up(home, {"BIND_HOST": ""}, tmp_path, said.append)
