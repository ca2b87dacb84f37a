"""`aicli serve`: your mesh at localhost, for programs that only know Ollama's port or a local OpenAI API."""

import asyncio
import errno
import logging
import socket
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

import click

from cli.cli_context import CliContext
from cli.lazy_group import LazyGroup
from cli.output import printing
from shared import errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cli.machines.loopback import MeshLink

#: Ollama's.
PORT = 11434
_MAX_CONNECTIONS = 1000
_MAX_TRIED = 10


@click.group(
    cls=LazyGroup,
    places={
        "install": (
            "cli.machines.serve_unit:install",
            "Run aicli serve as a systemd service of your account.",
        )
    },
    invoke_without_command=True,
    subcommand_metavar="[COMMAND [ARGS]...]",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help=f"Port to listen on, only for this machine. Default: {PORT}, or the next one that is free, as beside Ollama.",
)
@click.pass_context
@click.pass_obj
def serve(here: CliContext, context: click.Context, /, *, port: int | None) -> None:
    """Serve your mesh at localhost, for programs of this machine.

    Programs that know Ollama's port find the models of your mesh without a setting; others use http://localhost:11434/v1 as OpenAI's API,
    with any key. Requests have the profile's key.
    """
    if context.invoked_subcommand:
        return
    from cli import interrupts
    from cli.machines.loopback import MeshLink

    mesh = MeshLink(here.connector(), partial(here.profile, key_needed=True), printing.note)
    port, sockets = _listen_on(range(PORT, PORT + _MAX_TRIED) if port is None else range(port, port + 1))
    click.echo(f"Your mesh is at http://localhost:{port} (Ollama's API) and http://localhost:{port}/v1 (OpenAI's API, any key).")
    printing.note("Ctrl-C ends it.")
    interrupts.run(_serve(mesh, sockets))


async def _serve(mesh: "MeshLink", sockets: "Sequence[socket.socket]") -> None:
    """Serve until canceled. Raises what ``MeshLink.run`` raises."""
    from uvicorn import Config
    from uvicorn.protocols.http.h11_impl import H11Protocol
    from uvicorn.server import ServerState

    from cli.machines.loopback import Loopback
    from shared.timing.joined_writes import JoinedTransport

    class LocalConnection(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
            """Join what is written at once: many tokens of a busy mesh arrive together."""
            super().connection_made(JoinedTransport(transport))  # type: ignore[arg-type]

    # It reports each answer that breaks off, and each was the client's or the mesh's doing.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    config = Config(Loopback(mesh), ws="none", lifespan="off", log_config=None, proxy_headers=False, limit_concurrency=_MAX_CONNECTIONS)
    config.load()
    make = partial(LocalConnection, config, ServerState(), {})
    async with AsyncExitStack() as servers:
        for each in sockets:
            await servers.enter_async_context(await asyncio.get_running_loop().create_server(make, sock=each))
        await mesh.run()


def _listen_on(ports: range) -> "tuple[int, Sequence[socket.socket]]":
    """Listen on the first port that is free, and say so if others were not. Raises BadSettings if none is."""
    refusal = ""
    for port in ports:
        try:
            sockets = _listen(port)
        except errors.BadSettings as error:
            if port == ports[-1]:
                raise
            refusal = refusal or error.message
            continue
        if refusal:
            printing.note(f"{refusal[0].upper()}{refusal[1:]}. Tell programs of Ollama where your mesh is: OLLAMA_HOST=127.0.0.1:{port}")
        return port, sockets
    raise AssertionError


def _listen(port: int) -> "Sequence[socket.socket]":
    """Return sockets on both loopback addresses, or only the first on a machine without IPv6. Raises BadSettings if the port is taken."""
    from shared import processes

    try:
        sockets = [socket.create_server(("127.0.0.1", port))]
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        who = processes.listener_on(port)
        hint = "stop it, or use --port and tell your programs: OLLAMA_HOST=127.0.0.1:PORT"
        raise errors.BadSettings(f"port {port} is taken by {who}", hint=hint) from error
    try:
        sockets.append(socket.create_server(("::1", port), family=socket.AF_INET6))
    except OSError:
        pass  # No IPv6, or another program has it: clients try both.
    return sockets
