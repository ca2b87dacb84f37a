"""The whole stack, up and down, as in `make up`: real servers, the five services, and the echo model for speed."""

import asyncio
import itertools
import os
import signal
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import pytest

from shared import errors
from shared.api.node import FIRST_MODEL
from stack import control, first_run, ports, probes, processes, stack_plan, status_overview, up_down
from stack import stack_home as homes
from stack.control import ControlAnswer, ProgramStatus, StatusRequest
from stack.settings import StackSettings
from stack.stack_home import StackHome

PORTS = ("WEB", "AUTH", "GATEWAY", "INFERENCE", "METRICS")


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[StackHome]:
    found = homes.locate({"AIMESH_HOME": str(tmp_path / "h")})
    yield found
    await up_down.down(found, messages.append)


@pytest.fixture
def first_environment() -> dict[str, str]:
    chosen = {f"{name}_SERVICE_PORT": str(ports.find_free()) for name in PORTS}
    servers = {"NATS_PORT": str(ports.find_free()), "DHT_PORT": str(ports.find_free(4, is_udp=True)), "PROMETHEUS_PORT": "0"}
    return {**chosen, **servers, "INFERENCE_BACKEND": "echo"}


messages: list[str] = []


async def running(home: StackHome) -> ControlAnswer:
    answer = await control.send(home.control_socket, StatusRequest())
    assert answer is not None
    return answer


def pids(answer: ControlAnswer) -> dict[str, int | None]:
    return {program.name: program.pid for program in answer.programs}


prepared: list[StackSettings] = []


async def prepare(settings: StackSettings) -> None:
    prepared.append(settings)


async def test_up_again_changed_and_down(home: StackHome, first_environment: dict[str, str], tmp_path: Path) -> None:
    settings = await up_down.up(home, first_environment, tmp_path, messages.append, prepare)
    assert prepared == [settings]
    made = await first_run.ensure_profile(home, settings)
    first = await running(home)
    assert {row.name for row in await status_overview.collect(home) if row.ready} == {
        "postgres",
        "valkey",
        "nats",
        "dht",
        *stack_plan.SERVICES,
    }

    # The second run restarts nothing, keeps the key, and knows the ports without the environment.
    assert await up_down.up(home, {}, tmp_path, messages.append, prepare) == settings
    assert await first_run.ensure_profile(home, settings) == made
    assert pids(await running(home)) == pids(first)

    # Changed settings take effect; data and key stay. With LAN, another address of loopback is this machine's in its network.
    moved = str(ports.find_free())
    changed = await up_down.up(home, {"WEB_SERVICE_PORT": moved, "LAN": "127.0.0.2"}, tmp_path, messages.append, prepare)
    assert str((await status_overview.collect(home))[-1].url) == f"https://127.0.0.2:{moved}"
    assert changed.tls_cert_file is not None
    trusted = ssl.create_default_context(cafile=changed.tls_cert_file)
    async with httpx.AsyncClient(verify=trusted, trust_env=False, timeout=30) as client:
        # web forwards it to the gateway.
        assert (await client.get(f"https://127.0.0.2:{moved}/openapi.json")).status_code == 200
    assert (await first_run.ensure_profile(home, changed)).api_key == made.api_key

    last = pids(await running(home))
    assert await up_down.down(home, messages.append)
    assert not [name for name, pid in last.items() if pid is not None and processes.start_of(pid) is not None]
    assert not await up_down.down(home, messages.append)
    assert (home.postgres / "data" / "PG_VERSION").exists()


@pytest.mark.nightly("stacks")
async def test_up_after_the_supervisor_was_killed(home: StackHome, first_environment: dict[str, str], tmp_path: Path) -> None:
    settings = await up_down.up(home, first_environment, tmp_path, messages.append, prepare)
    made, first = await first_run.ensure_profile(home, settings), await running(home)
    # The supervisor's children end with it, and `up` brings everything back, data and key included.
    os.kill(first.pid, signal.SIGKILL)
    await up_down.up(home, {}, tmp_path, messages.append, prepare)
    second = await running(home)
    assert not set(pids(second).values()) & set(pids(first).values())
    assert await first_run.ensure_profile(home, settings) == made


async def test_full_disk_is_reported_before_anything_is_written(
    home: StackHome, first_environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up_down, "_MIN_DISK_BYTES", 1 << 60)
    with pytest.raises(errors.BadSettings, match=r"the disk of .* is full: \d+ MB are free and the stack needs"):
        await up_down.up(home, first_environment, tmp_path, messages.append, prepare)
    assert not home.run.exists()


@pytest.mark.nightly("stacks")
async def test_service_that_cannot_start_is_reported_with_its_reason(
    home: StackHome, first_environment: dict[str, str], tmp_path: Path
) -> None:
    messages.clear()
    with pytest.raises(errors.Internal, match="gateway does not start") as caught:
        # Only the gateway can find this mistake: if two services don't start, either may be named.
        await up_down.up(home, {**first_environment, "QUEUE_MOST": "0"}, tmp_path, messages.append, prepare)
    assert "\n" not in caught.value.message
    assert any("QUEUE_MOST" in line for line in messages)
    # Once the setting is fixed, `up` continues from the current state.
    async with asyncio.timeout(200):
        await up_down.up(home, {"QUEUE_MOST": ""}, tmp_path, messages.append, prepare)


NOTHING_BEFORE = up_down.StateBefore({}, {})


@pytest.fixture
def bare(tmp_path: Path) -> StackHome:
    found = homes.locate({"AIMESH_HOME": str(tmp_path / "h")})
    homes.ensure_folders(found)
    return found


async def test_unresponsive_supervisor_still_counts_as_running(bare: StackHome) -> None:
    with processes.only_supervisor(bare), pytest.raises(errors.Internal, match=r"not ready after .* the supervisor does not answer"):
        await up_down.until_ready(bare, {}, NOTHING_BEFORE, messages.append, stall_seconds=1)
    with pytest.raises(errors.Internal, match="the supervisor has ended"):
        await up_down.until_ready(bare, {}, NOTHING_BEFORE, messages.append)


def test_lock_is_held_as_long_as_the_inheriting_process(bare: StackHome) -> None:
    with processes.only_supervisor(bare) as lock:
        process = subprocess.Popen(["sleep", "600"], stdin=lock)
    with process:
        assert processes.has_supervisor(bare)
        process.terminate()
    assert not processes.has_supervisor(bare)


@asynccontextmanager
async def starting_service(home: StackHome, reasons: Iterator[str], name: str = "model") -> AsyncIterator[dict[str, str]]:
    """A supervisor whose one service reports the next reason on each check, and is ready when there are no more."""

    async def answer_readyz(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        reason = next(reasons, None)
        body = msgspec.json.encode({"ready": reason is None, "checks": [{"name": name, "ok": reason is None, "detail": reason or ""}]})
        writer.write((b"HTTP/1.1 200 OK" if reason is None else b"HTTP/1.1 503 Service Unavailable") + b"\r\n\r\n" + body)
        await writer.drain()
        writer.close()

    async def answer_order(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        row = ProgramStatus("inference", "running", 1, 0.0, 0, "")
        writer.write(msgspec.json.encode(ControlAnswer(True, programs=(row,))) + b"\n")
        await writer.drain()
        writer.close()

    async with (
        await asyncio.start_server(answer_readyz, "127.0.0.1", 0) as server,
        await asyncio.start_unix_server(answer_order, home.control_socket),
    ):
        yield {"inference": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"}


async def test_a_ready_service_names_the_dependencies_that_are_failing() -> None:
    checks = [{"name": "postgresql", "ok": False, "detail": "away"}, {"name": "OTLP", "ok": False, "needed": False}]
    body = msgspec.json.encode({"ready": True, "checks": checks})

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert await probes.health_of(url) == probes.Health(True, "postgresql: away")


async def test_start_does_not_wait_for_a_model_that_only_people_can_give(bare: StackHome) -> None:
    reason = "waiting for models: run `aicli models pull`"
    looked = itertools.count()
    async with starting_service(bare, (reason for _ in looked), name=FIRST_MODEL) as services:
        with processes.only_supervisor(bare):
            assert await up_down.until_ready(bare, services, NOTHING_BEFORE, messages.append) == frozenset()
        assert next(looked) == 1, "it asks once"
    async with starting_service(bare, iter(["waiting for models: pulling hf:a/b: 40 %"] * 3), name="models") as services:
        with processes.only_supervisor(bare):
            assert await up_down.until_ready(bare, services, NOTHING_BEFORE, messages.append) == {"inference"}


async def test_start_may_exceed_the_stall_limit_while_it_progresses(bare: StackHome) -> None:
    stall_seconds = 2.0
    started = time.monotonic()
    progress = itertools.takewhile(lambda _: time.monotonic() - started < 1.5 * stall_seconds, (f"{n} %" for n in itertools.count()))
    async with starting_service(bare, progress) as services:
        with processes.only_supervisor(bare):
            await up_down.until_ready(bare, services, NOTHING_BEFORE, messages.append, stall_seconds=stall_seconds)


async def test_what_is_still_missing_is_told_meanwhile(monkeypatch: pytest.MonkeyPatch, bare: StackHome) -> None:
    monkeypatch.setattr(up_down, "_TELL_SECONDS", 0.0)
    messages.clear()
    async with starting_service(bare, iter(["the engine is being built, about 2 min left"] * 3)) as services:
        with processes.only_supervisor(bare):
            assert await up_down.until_ready(bare, services, NOTHING_BEFORE, messages.append) == {"inference"}
            assert messages[0] == "waiting for inference: model: the engine is being built, about 2 min left"
            messages.clear()
            await up_down.until_ready(bare, services, NOTHING_BEFORE, messages.append, known=["inference"])
            assert messages == []


async def test_start_fails_without_progress(bare: StackHome) -> None:
    async with starting_service(bare, itertools.repeat("40 %")) as services:
        with processes.only_supervisor(bare), pytest.raises(errors.Internal, match="inference: model: 40 %"):
            await up_down.until_ready(bare, services, NOTHING_BEFORE, messages.append, stall_seconds=1)
