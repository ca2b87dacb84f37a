"""Runs a service's process: settings, logs, mesh, handlers, HTTP, and an orderly end on SIGTERM.

Shutdown order: announce the drain → accept no new calls and connections → wait up to DRAIN_SECONDS for running ones → cancel what is left →
close the service → last announcement → links → NATS.
"""

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from shared import config, errors, features, processes
from shared.node.http_server import HttpServer, Operations, answer_joining, listen
from shared.node.lifecycle import background
from shared.node.member import Node, Service, member
from shared.protocol import replica_check
from shared.rpc import authorization
from shared.telemetry import logs
from shared.timing.bounded_waits import wait_until_set
from shared.types import SERVICE_NAMES, Role

#: The exit status of a worker that an administrator has revoked; the same as aicli's. systemd must not restart it.
REVOKED_STATUS = 6
_LOOK_SECONDS = 1.0
#: The HTTP server cancels what runs after DRAIN_SECONDS, and then needs a moment.
_LEAVE_SECONDS = 5.0
#: Requests make few cycles, but thousands of objects a second: with Python's 700, collections took an eighth of a busy gateway's CPU time.
COLLECT_AFTER = (20_000, 10, 10)

_log = logs.get()


def run(service: type[Service], settings_kind: type[Any]) -> None:
    """Run ``service`` until SIGTERM or SIGINT. Exits with 1 and one line if it cannot start, with 2 if its settings are
    invalid, with 6 if it is a worker that was revoked."""
    # A child that was taken over, such as an engine, could otherwise read keys and prompts in /proc.
    processes.seal()
    gc.set_threshold(*COLLECT_AFTER)
    try:
        settings = config.load(settings_kind, os.environ)
    except errors.BadSettings as error:
        more = f"; for a replica, {replica_check.hint(service.role)}" if service.role in replica_check.COMPARED_WITH else ""
        sys.exit(_print_error(errors.BadSettings(error.message, hint=error.hint + more), 2))
    logs.configure(SERVICE_NAMES[service.role], settings.log_level, format=settings.log_format)
    known = {name for setting in config.settings_of(settings_kind) for name in setting.variable.names}
    for warning in config.find_misspelled_names(known, os.environ):
        _log.warning(warning)
    try:
        with asyncio.Runner(loop_factory=_new_event_loop) as runner:
            runner.run(_live(service, settings))
    except* errors.BadSettings as group:
        sys.exit(_print_error(errors.first_of(group), 2))
    except* errors.NodeRevoked as group:
        sys.exit(_print_error(errors.first_of(group), REVOKED_STATUS))
    except* errors.AimeshError as group:
        _log.error("the service failed", problem=errors.first_of(group).message)
        sys.exit(_print_error(errors.first_of(group), 1))


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # noqa: PLC0415
    except ModuleNotFoundError:  # Windows has none, and the role `front` leaves out its 14 MB.
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def _live(service: type[Service], settings: Any) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, stop.set)
        except NotImplementedError:  # on Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
    for warning in settings.warnings():
        _log.warning(warning)
    port_variable = next(setting.variable.name for setting in config.settings_of(type(settings)) if setting.field == "port")
    with listen(settings.host, settings.port, port_variable) as sock:
        async with _joining(service.role, sock, settings) as joined, member(settings, service.role) as node:
            await joined()
            logs.configure(node.service_name, settings.log_level, format=settings.log_format, node=node.id[:12])
            # From here on the port answers; while the service opens, /readyz shows what is missing.
            operations = Operations(node, settings)
            server = HttpServer(operations, sock, settings)
            async with background() as http:
                serving = http.create_task(server.run())
                if node.role is not Role.AUTH:  # which connects when it serves
                    await node.check_replicas()
                async with service.open(settings, node) as running:
                    operations.open(running)
                    await node.serve(running)
                    authorization.check_declared(node.dispatcher.methods, node.dispatcher.gate)
                    # Objects created at start-up stay, so the collector need not visit them again.
                    gc.collect()
                    gc.freeze()
                    _log.info("ready", port=settings.port, id=node.id, features=[*features.known()])
                    await _wait_for_end(stop, node)
                    await _drain(node, server, serving, settings.drain_seconds)
                _log.info("stopped")


@asynccontextmanager
async def _joining(role: Role, sock: socket.socket, settings: Any) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Say that a worker is not ready while it joins, which may take long or fail: its port answers, but there is no node yet. Requests to
    other services wait until they have joined. Gives what ends it."""
    async with AsyncExitStack() as stack:
        if role is Role.WORKER:
            server = HttpServer(answer_joining, sock.dup(), settings)
            serving = (await stack.enter_async_context(background())).create_task(server.run())

            async def stop() -> None:
                server.stop()
                await serving

            stack.push_async_callback(stop)
        yield stack.aclose


async def _wait_for_end(stop: asyncio.Event, node: Node) -> None:
    """Raises NodeRevoked if this is a worker and was revoked: the mesh has cut its links, so there is nothing to drain."""
    while not stop.is_set():
        if node.role is Role.WORKER and node.trust.is_revoked:
            node.renewal.remember_revocation()
            raise errors.NodeRevoked(
                "an administrator has revoked this machine", hint="to join again, use a new ticket: aicli worker --join TICKET"
            )
        await wait_until_set(stop, _LOOK_SECONDS)


async def _drain(node: Node, server: HttpServer, serving: asyncio.Task[None], seconds: float) -> None:
    _log.info("draining", running=node.dispatcher.running)
    ends_at = asyncio.get_running_loop().time() + seconds + _LEAVE_SECONDS
    server.stop()
    await node.drain(seconds)
    # Also without calls, which are not HTTP requests.
    await asyncio.wait({serving}, timeout=ends_at - asyncio.get_running_loop().time())


def _print_error(error: errors.AimeshError, status: int) -> int:
    print(f"error: {error.message}" + (f" – {error.hint}" if error.hint else ""), file=sys.stderr)
    return status
