"""The supervisor: one background process per stack that starts everything, keeps it running and stops it in order.

It starts the servers, creates the database's roles, lets features prepare an upgrade, then starts all services together (they wait
for each other on the mesh). It stops web, the gateway, the other services and the servers, each stage with a grace period. A lock file
ensures that each home has one supervisor. If the supervisor is killed, Linux signals its children to stop, and the next start ends what is
left.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from datetime import UTC, date, datetime
from pathlib import Path

import msgspec

from shared import errors
from stack import control, features, probes, process_keeper, processes, secret_files, settings, stack_plan, watchdog
from stack import logs as log_files
from stack import stack_home as homes
from stack.servers import postgres, valkey
from stack.servers.postgres import Postgres
from stack.servers.program import Program
from stack.settings import StackSettings
from stack.stack_home import StackHome
from stack.stack_plan import StackPlan

_log = logging.getLogger("supervisor")
#: The interval at which a starting server is probed.
_PROBE_SECONDS = 0.05
_ROTATE_SECONDS = 5.0


class Supervisor:
    def __init__(self, home: StackHome, planned: StackPlan, tasks: asyncio.TaskGroup, log_days: int) -> None:
        self._home = home
        self._plan = planned
        self._tasks = tasks
        self._log_days = log_days
        self._keepers = {
            program.name: process_keeper.ProcessKeeper(program, home.log(program.name), tasks, self._remember)
            for program in planned.programs
        }
        self._children: dict[str, processes.Child] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._stop_wanted = asyncio.Event()

    async def run(self) -> None:
        """Run until asked to stop and everything has stopped."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_wanted.set)
        self._home.control_socket.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._serve, self._home.control_socket, limit=control.MAX_LINE_BYTES)
        async with server:
            rotation = self._tasks.create_task(self._keep_logs_short())
            watching = self._tasks.create_task(watchdog.watch(self._keepers))
            starting = self._tasks.create_task(self._bring_up())
            await self._stop_wanted.wait()
            starting.cancel()
            watching.cancel()
            await asyncio.wait([starting, watching])
            await self._bring_down()
            rotation.cancel()
        self._home.control_socket.unlink(missing_ok=True)

    async def _bring_up(self) -> None:
        servers = [program for program in self._plan.programs if program.stage == 0]
        for program in servers:
            self._begin(program)
        for program in servers:
            if program.is_waited_for:
                await self._until_ready(program)
        if self._plan.postgres is not None:
            try:
                await self._prepare(self._plan.postgres)
            except errors.AimeshError as error:
                _log.error("postgres: %s; stopping everything", error.message)
                self._stop_wanted.set()
                return
        for program in self._plan.programs:
            if program.stage > 0:
                self._begin(program)
        for program in servers:
            if not program.is_waited_for:
                await self._until_ready(program)

    async def _prepare(self, server: Postgres) -> None:
        passwords = {role: secret_files.read(self._home, f"postgres_{role}") for role in secret_files.LOGIN_ROLES}
        await asyncio.to_thread(postgres.provision, server, passwords)
        from stack import schema_migrations  # imports the driver, which nothing needs before the server runs

        if await schema_migrations.will_change_tables(self._home, server):
            for part in features.parts():
                await part.before_migrations(self._home, server, self._plan.programs)

    def _begin(self, program: Program) -> None:
        self._running[program.name] = self._tasks.create_task(self._keepers[program.name].run())

    def _remember(self, child: processes.Child) -> None:
        """Save which processes are ours, for the next supervisor after a kill -9."""
        self._children[child.name] = child
        homes.write_private(processes.children_file(self._home), msgspec.json.encode(list(self._children.values())).decode())

    async def _until_ready(self, program: Program) -> None:
        while program.probe is not None and not await probes.is_ready(program.probe):  # noqa: ASYNC110 - another process
            await asyncio.sleep(_PROBE_SECONDS)
        _log.info("%s: ready", program.name)

    async def _bring_down(self) -> None:
        for stage in sorted({program.stage for program in self._plan.programs}, reverse=True):
            names = [program.name for program in self._plan.programs if program.stage == stage and program.name in self._running]
            for name in names:
                self._keepers[name].order(process_keeper.StopWanted())
            if names:
                await asyncio.wait([self._running[name] for name in names])
        _log.info("everything has stopped")

    async def _keep_logs_short(self) -> None:
        """Limit logs by size all the time, and by age once a day and at the start."""
        looked_on: date | None = None
        reported: dict[str, str] = {}
        while True:
            today = datetime.now(UTC).date()
            # In a thread, because reading a long log takes a moment.
            problems = await asyncio.to_thread(_shorten_logs, self._home, today, None if today == looked_on else self._log_days)
            for name, why in problems.items() - reported.items():
                _log.warning("%s cannot be shortened: %s", name, why)
            looked_on, reported = today, problems
            await asyncio.sleep(_ROTATE_SECONDS)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5):
                answer = self._handle(control.decode_order(await reader.readline()))
                writer.write(msgspec.json.encode(answer) + b"\n")
                await writer.drain()
        except (OSError, ValueError, msgspec.DecodeError) as error:
            _log.warning("control: %s", error)
        finally:
            writer.close()

    def _handle(self, order: control.Order) -> control.ControlAnswer:
        match order:
            case control.StatusRequest():
                return self._answer()
            case control.Stop():
                self._stop_wanted.set()
                return self._answer()
            case control.Restart(name):
                if name not in self._keepers:
                    return control.ControlAnswer(False, f"there is no {name}; there are {', '.join(self._keepers)}")
                if name not in self._running or not self._keepers[name].order(process_keeper.RestartWanted()):
                    return control.ControlAnswer(False, f"{name} is not ready for that; see aicli stack status")
                return self._answer()

    def _answer(self) -> control.ControlAnswer:
        programs = tuple(each.status for each in self._keepers.values())
        return control.ControlAnswer(True, "", os.getpid(), self._plan.fingerprint, programs)


def _shorten_logs(home: StackHome, today: date, keep_days: int | None) -> dict[str, str]:
    """Return errors by file: a log that cannot be shortened must not stop programs. Without ``keep_days``, limit only the size."""
    problems: dict[str, str] = {}
    for path in home.logs.glob("*.log"):
        try:
            log_files.rotate(path)
            if keep_days is not None:
                log_files.forget(path, today, keep_days)
        except OSError as error:
            problems[path.name] = error.strerror or str(error)
    return problems


async def _supervise(home: StackHome, planned: StackPlan, chosen: StackSettings) -> None:
    async with asyncio.TaskGroup() as tasks:
        await Supervisor(home, planned, tasks, chosen.log_retention_days).run()


def main() -> int:
    """Run the whole process; its standard streams are the log file."""
    os.umask(0o077)
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    home = homes.locate(os.environ)
    _keep_lock()
    try:
        features.ensure_may_start(home)
        recorded = settings.read_recorded(home)
        chosen = settings.load(recorded)
        planned = stack_plan.make(home, chosen, recorded, os.environ)
        features.ensure_may_start(home, planned.postgres)
        if planned.postgres is not None:
            postgres.prepare(planned.postgres)
        if planned.valkey is not None:
            valkey.prepare(planned.valkey)
    except errors.AimeshError as error:
        _log.error("%s (%s)", error.message, error.hint)
        return 1
    asyncio.run(_supervise(home, planned, chosen))
    return 0


def _keep_lock() -> None:
    """Hold the lock, which `up` passed as standard input, until this process ends. Children do not inherit it."""
    os.dup(0)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)


if __name__ == "__main__":
    sys.exit(main())
