# ruff: noqa: ASYNC110, ASYNC220 - it waits for other processes, which set no event
"""The supervisor with real processes: small programs in place of the services, and real servers."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import msgspec
import pytest

from stack import control, initialization, ports, probes, processes, secret_files, stack_plan, supervisor
from stack import stack_home as homes
from stack.control import ControlAnswer, ProgramStatus, Restart, StatusRequest, Stop
from stack.servers import postgres, valkey
from stack.servers.program import Program
from stack.stack_home import StackHome
from stack.stack_plan import StackPlan

SLEEP = ("sleep", "600")
#: Prints a line when it is up, and when it is asked to stop.
POLITE = (
    sys.executable,
    "-c",
    """
import signal, time
# A handler would not run if the signal came just before a sleep.
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("up", flush=True)
signal.sigwait([signal.SIGTERM])
print("bye", time.monotonic(), flush=True)
""",
)
STUBBORN = (
    sys.executable,
    "-c",
    """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(600)
""",
)


def program(name: str, *command: str, stage: int = 1, grace_seconds: float = 5.0) -> Program:
    return Program(name=name, command=command, environment={"PATH": os.environ["PATH"]}, stage=stage, grace_seconds=grace_seconds)


@pytest.fixture
def home(tmp_path: Path) -> StackHome:
    found = homes.locate({"AIMESH_HOME": str(tmp_path / "h")})
    homes.ensure_folders(found)
    return found


class RunningSupervisor:
    """Sends commands to one supervisor."""

    def __init__(self, home: StackHome) -> None:
        self.home = home

    async def send(self, order: control.Order) -> ControlAnswer:
        answer = await control.send(self.home.control_socket, order)
        assert answer is not None
        return answer

    async def status(self, name: str) -> ProgramStatus:
        found = (await self.send(StatusRequest())).program(name)
        assert found is not None
        return found

    async def until(self, name: str, state: str) -> ProgramStatus:
        async with asyncio.timeout(30):
            while (found := await self.status(name)).state != state:
                await asyncio.sleep(0.01)
        return found

    async def until_logged(self, name: str, text: str) -> None:
        async with asyncio.timeout(30):
            while text not in logged(self.home, name):
                await asyncio.sleep(0.01)


def logged(home: StackHome, name: str) -> str:
    return home.log(name).read_text() if home.log(name).exists() else ""


@asynccontextmanager
async def supervising(home: StackHome, *programs: Program) -> AsyncIterator[RunningSupervisor]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(supervisor.Supervisor(home, StackPlan(programs, None, None, "f"), tasks, log_days=90).run())
        while await control.send(home.control_socket, StatusRequest()) is None:
            await asyncio.sleep(0.01)
        try:
            yield RunningSupervisor(home)
        finally:
            await control.send(home.control_socket, Stop())
            await task


async def test_killed_program_is_restarted(home: StackHome) -> None:
    async with supervising(home, program("dummy", *SLEEP)) as running:
        await running.until("dummy", "running")
        first = await running.status("dummy")
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        assert "signal 9" in (await running.until("dummy", "waiting")).why
        await running.until("dummy", "running")
        again = await running.status("dummy")
        assert again.pid != first.pid
        assert again.crashes == 1


async def test_program_that_cannot_run_is_reported_and_others_run(home: StackHome) -> None:
    async with supervising(home, program("broken", "/does/not/exist"), program("good", *SLEEP)) as running:
        await running.until("broken", "waiting")
        await running.until("good", "running")
        assert "No such file" in logged(home, "broken")


async def test_invalid_settings_keep_a_program_down_until_a_manual_restart(home: StackHome, tmp_path: Path) -> None:
    hopeless = Program(
        name="wrong",
        command=("sh", "-c", f"test -e {tmp_path}/mended && exec sleep 600; exit 2"),
        environment={"PATH": os.environ["PATH"]},
        stage=1,
        hopeless_status=2,
    )
    async with supervising(home, hopeless) as running:
        await running.until("wrong", "down")
        (tmp_path / "mended").touch()
        assert (await running.send(Restart("wrong"))).ok
        await running.until("wrong", "running")


async def test_restart_stops_gracefully_and_starts_a_new_process(home: StackHome) -> None:
    async with supervising(home, program("polite", *POLITE)) as running:
        await running.until_logged("polite", "up")
        before = await running.status("polite")
        assert (await running.send(Restart("polite"))).ok
        await running.until_logged("polite", "bye")
        await running.until("polite", "running")
        after = await running.status("polite")
        assert after.pid != before.pid
        assert after.crashes == 0
        refused = await running.send(Restart("nobody"))
        assert not refused.ok
        assert "polite" in refused.error


async def test_program_that_does_not_stop_is_killed_after_its_grace_period(home: StackHome) -> None:
    async with supervising(home, program("stubborn", *STUBBORN, grace_seconds=0.1)) as running:
        await running.until_logged("stubborn", "up")
        pid = (await running.status("stubborn")).pid
        assert pid is not None
    assert processes.start_of(pid) is None


async def test_stages_stop_in_reverse_order(home: StackHome) -> None:
    async with supervising(home, *(program(f"p{stage}", *POLITE, stage=stage) for stage in (1, 2, 3))) as running:
        for stage in (1, 2, 3):
            await running.until_logged(f"p{stage}", "up")
    stops = [float(logged(home, f"p{stage}").split()[-1]) for stage in (3, 2, 1)]
    assert stops == sorted(stops)


async def test_children_of_a_killed_supervisor_end(home: StackHome, tmp_path: Path) -> None:
    script = f"""
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {str(homes.checkout())!r})
from tests.stack.test_supervisor import SLEEP, program, supervising
from stack import stack_home as homes
async def main():
    async with supervising(homes.locate({{"AIMESH_HOME": {str(home.root)!r}}}), program("dummy", *SLEEP)) as desk:
        await asyncio.sleep(600)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=homes.checkout()) as killed:
        async with asyncio.timeout(30):
            while await control.send(home.control_socket, StatusRequest()) is None:
                await asyncio.sleep(0.02)
        pid = (await RunningSupervisor(home).until("dummy", "running")).pid
        assert pid is not None
        killed.kill()
    async with asyncio.timeout(30):
        while processes.start_of(pid) is not None:
            await asyncio.sleep(0.01)


async def test_leftovers_of_a_killed_supervisor_are_cleared(home: StackHome) -> None:
    with subprocess.Popen(SLEEP, start_new_session=True) as left:
        child = processes.Child("dummy", left.pid, processes.start_of(left.pid) or 0)
        stranger = processes.Child("other", os.getpid(), 1)  # our process id, but another start time
        homes.write_private(home.run / "children.json", msgspec.json.encode([child, stranger]).decode())
        processes.clear_leftovers(home)
        assert left.wait(timeout=30) == -signal.SIGTERM


def test_killed_leftovers_are_gone_when_cleared() -> None:
    """Leftover processes hold ports that the next start needs."""
    with contextlib.ExitStack() as stack:
        left = [stack.enter_context(subprocess.Popen(STUBBORN, stdout=subprocess.PIPE)) for _ in range(5)]
        for each in left:
            stack.callback(each.kill)
            assert each.stdout is not None
            assert each.stdout.readline() == b"up\n"
        children = [processes.Child("stubborn", each.pid, processes.start_of(each.pid) or 0) for each in left]
        assert processes.end(children, lambda _name: signal.SIGTERM, 0.1) == children
        assert not [child for child in children if processes.is_alive(child)]


def test_one_supervisor_per_home(home: StackHome) -> None:
    with processes.only_supervisor(home) as first, processes.only_supervisor(home) as second:
        assert first is not None
        assert second is None


async def test_several_stacks_run_concurrently(tmp_path: Path) -> None:
    stacks = [homes.locate({"AIMESH_HOME": str(tmp_path / name)}) for name in "ab"]
    for each in stacks:
        homes.ensure_folders(each)
    async with supervising(stacks[0], program("dummy", *SLEEP)) as one, supervising(stacks[1], program("dummy", *SLEEP)) as two:
        await one.until("dummy", "running")
        await two.until("dummy", "running")
        assert (await one.status("dummy")).pid != (await two.status("dummy")).pid


async def test_invalid_control_messages_are_harmless(home: StackHome) -> None:
    async with supervising(home, program("dummy", *SLEEP)) as running:
        for nonsense in (b"\xff\xfe\n", b"{}\n", b'{"type":"explode"}\n', b"x" * 200_000 + b"\n", b""):
            with socket.socket(socket.AF_UNIX) as line:
                line.connect(str(home.control_socket))
                line.sendall(nonsense)
                line.shutdown(socket.SHUT_WR)
        await running.until("dummy", "running")


async def test_expired_log_lines_are_removed_at_start(home: StackHome) -> None:
    home.log("gone").write_text('{"ts": "2020-02-29T00:00:00Z"}\n')
    (home.logs / "a_folder.log").mkdir()  # a file that can't be truncated must not end the supervisor
    async with supervising(home, program("dummy", *SLEEP)) as running:
        await running.until("dummy", "running")
        async with asyncio.timeout(30):
            while home.log("gone").stat().st_size:
                await asyncio.sleep(0.01)
        assert (await running.status("dummy")).state == "running"


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A path short enough for a Unix socket, wherever the tests' own folders are."""
    with tempfile.TemporaryDirectory(prefix="s-") as folder:
        yield Path(folder)


async def test_real_servers_run_under_a_very_long_path(tmp_path: Path, short_path: Path) -> None:
    home = homes.locate({"AIMESH_HOME": str(tmp_path / ("long" * 30)), "XDG_RUNTIME_DIR": str(short_path)})
    made = initialization.ensure(
        home, {"NATS_PORT": str(ports.find_free()), "DHT_PORT": str(ports.find_free(4, is_udp=True)), "MESH_RELAY": "on"}, tmp_path
    )
    planned = stack_plan.make(home, made.settings, made.recorded, {"PATH": os.environ["PATH"]})
    assert planned.postgres is not None
    assert planned.valkey is not None
    postgres.prepare(planned.postgres)
    valkey.prepare(planned.valkey)
    servers = [program for program in planned.programs if program.stage == 0]
    assert [program.name for program in servers] == ["postgres", "valkey", "nats", "dht", "relay"]
    async with supervising(home, *servers):
        for server in servers:
            assert server.probe is not None
            async with asyncio.timeout(30):
                while not await probes.is_ready(server.probe):
                    await asyncio.sleep(0.02)
        postgres.provision(planned.postgres, {role: secret_files.read(home, f"postgres_{role}") for role in secret_files.LOGIN_ROLES})
        connection = await asyncpg.connect(stack_plan.database_url_file(home, "auth").read_text().strip())
        assert await connection.fetchval("SHOW fsync") == "on"
        assert await connection.fetchval("SHOW synchronous_commit") == "on"
        await connection.close()
