"""`aicli mesh bootstrap` and `relay`: the real programs, on loopback."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cli.machines import mesh_programs
from stack import ports, probes, settings
from stack.servers import dht_programs
from stack.servers.program import DatagramProbe
from stack.stack_home import checkout
from tests.cli.fake_mesh import Shell

#: Bounds a hang: Python, Node.js and a DHT start while other tests run.
SECONDS = 120.0


@asynccontextmanager
async def running(*arguments: str, **variables: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Start the command and wait until it is ready; yield it with the one line that it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli.main", "mesh", *arguments,
        cwd=checkout(), env={"PATH": os.environ["PATH"], **variables},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(SECONDS):
            yield process, (await process.stdout.readline()).decode().strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def of(first: int, *numbers: int) -> DatagramProbe:
    return DatagramProbe("127.0.0.1", tuple(first + number for number in numbers), dht_programs._PING, dht_programs._PONG)


async def until_gone(probe: DatagramProbe) -> None:
    async with asyncio.timeout(SECONDS):
        while await probes.is_ready(probe):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)


def child_of(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return int(child)


def test_ports_match_the_stack() -> None:
    place = dht_programs.of(settings.StackSettings())
    assert (place.first_port, place.relay_port) == (mesh_programs.FIRST_PORT, mesh_programs.RELAY_PORT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_three_dht_nodes_start_and_stop(number: signal.Signals) -> None:
    first = ports.find_free(3, is_udp=True)
    async with running("bootstrap", "--host", "127.0.0.1", "--port", str(first)) as (process, line):
        assert line == f"DHT_BOOTSTRAP=127.0.0.1:{first},127.0.0.1:{first + 1},127.0.0.1:{first + 2}"
        assert await probes.is_ready(of(first, 0, 1, 2))
        process.send_signal(number)
        assert await process.wait() == (-number if number is signal.SIGKILL else 0)
        await until_gone(of(first, 0))


@pytest.mark.nightly("long")
async def test_relay_keeps_its_key(tmp_path: Path) -> None:
    first = ports.find_free(4, is_udp=True)
    async with running("bootstrap", "--host", "127.0.0.1", "--port", str(first), "--json") as (_, line):
        nodes = json.loads(line)["DHT_BOOTSTRAP"]
        keys = set()
        for _ in range(2):
            arguments = ("relay", "--host", "127.0.0.1", "--port", str(first + 3))
            async with running(*arguments, DHT_BOOTSTRAP=nodes, XDG_STATE_HOME=str(tmp_path)) as (process, relay_line):
                assert await probes.is_ready(of(first, 3))
                process.terminate()
                assert await process.wait() == 0
                keys.add(relay_line)
        file = tmp_path / "aimesh" / "relay_seed"
        assert keys == {f"DHT_RELAYS={dht_programs.relay_key(file)}"}
        assert file.stat().st_mode & 0o777 == 0o600


async def test_command_ends_with_its_program() -> None:
    first = ports.find_free(3, is_udp=True)
    async with running("bootstrap", "--host", "127.0.0.1", "--port", str(first)) as (process, _):
        os.kill(child_of(process.pid), signal.SIGKILL)
        _, errors_shown = await process.communicate()
        assert process.returncode == 1
        assert b"the program ended with status -9" in errors_shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bootstrap"], "--host"),
        (["bootstrap", "--host", "203.0.113"], "203.0.113 is neither an IPv4 address nor a DNS name"),
        (["bootstrap", "--host", "house.example.org", "--bind", "house.example.org"], "--bind house.example.org is not an IPv4 address"),
        (["bootstrap", "--host", "0.0.0.0"], "--bind 0.0.0.0"),
        (["bootstrap", "--host", "203.0.113.5"], "this machine has no address 203.0.113.5"),
        (["relay", "--host", "127.0.0.1", "--bootstrap", "somewhere"], "not host:port"),
    ],
)
def test_impossible_settings_are_reported(shell: Shell, arguments: list[str], words: str) -> None:
    done = shell("mesh", *arguments)
    assert done.exit_code == 2, done.output
    assert words in done.stderr


def test_occupied_port_is_reported(shell: Shell) -> None:
    import socket

    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        done = shell("mesh", "bootstrap", "--host", "127.0.0.1", "--port", str(taken.getsockname()[1] - 2))
    assert done.exit_code == 2
    assert "set --port to a free port" in done.stderr
