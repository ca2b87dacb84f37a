"""`aicli mesh bootstrap|relay`: run DHT nodes and blind relays, so that machines find and reach each other from anywhere."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli import interrupts, user_folders
from cli.cli_context import CliContext
from cli.output import print_format, printing
from shared import errors

#: Starting takes less than a second on an idle machine; after this long it hangs.
_READY_SECONDS = 60.0
#: It only has sockets to close.
_GRACE_SECONDS = 3.0


def run(command: Sequence[str], environment: Mapping[str, str], ready: Callable[[], None]) -> None:
    """Run the program; call ``ready`` when it reports that it is ready. Raises Internal if it exits, or is not ready in time."""
    try:
        interrupts.run(_live(command, environment, ready), grace_seconds=2 * _GRACE_SECONDS)
    except KeyboardInterrupt:
        # Ctrl-C is the normal way to stop it.
        return


async def _live(command: Sequence[str], environment: Mapping[str, str], ready: Callable[[], None]) -> None:
    from stack import processes

    # It exits when its standard input closes, so also if we are killed; Ctrl-C is handled here.
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env=dict(environment), start_new_session=True)
    try:
        assert process.stdout is not None
        try:
            async with asyncio.timeout(_READY_SECONDS):
                line = await process.stdout.readline()
        except TimeoutError:
            raise errors.Internal(f"not ready after {_READY_SECONDS:.0f} s", hint="check that the DHT nodes are reachable by UDP") from None
        if line:
            ready()
        status = await process.wait()
        raise errors.Internal(f"the program ended with status {status}", hint="its output above says why")
    finally:
        await processes.stop(process, signal.SIGTERM, _GRACE_SECONDS)


if TYPE_CHECKING:
    from stack.servers.dht_programs import DhtAddresses

#: A copy of stack's number, so that `--help` need not import stack; a test compares the two.
FIRST_PORT = 4737
RELAY_PORT = 4740


_host = click.option("--host", required=True, metavar="ADDRESS", help="IPv4 address or DNS name at which other machines reach this one.")
_bind = click.option(
    "--bind",
    metavar="ADDRESS",
    help="Address to bind to. Default: --host, or 0.0.0.0 if that is a name. Use 0.0.0.0 in a container or behind a router.",
)


@click.command()
@_host
@_bind
@click.option("--port", type=click.IntRange(1, 65533), default=FIRST_PORT, show_default=True, help="First of three UDP ports.")
@click.option(
    "--with", "others", metavar="NODES", help="DHT nodes on another machine. Both form one DHT, which survives the loss of either."
)
@print_format.output_options('Print {"DHT_BOOTSTRAP": …}.')
@click.pass_obj
def bootstrap(here: CliContext, /, *, host: str, bind: str | None, port: int, others: str | None, as_json: bool) -> None:
    """Run three DHT nodes in the foreground. The nodes of a mesh use them to find each other.

    They see keys and addresses, but no content. NODES is a comma-separated list of host:port. Prints the value for DHT_BOOTSTRAP.
    """
    from stack.servers import dht_programs

    place = _place(host, bind, port)
    _check_ports(place, place.ports, "a DHT node")
    notice = (
        f"Three DHT nodes are running on UDP ports {place.ports[0]} to {place.ports[-1]}. Open these ports in the firewall.\n"
        "Use this setting on the nodes of the mesh. Press Ctrl-C to stop."
    )
    found = _nodes("--with", others) if others else ()
    command = dht_programs.bootstrap_command(place, _node_binary(here), found)
    _run(here, command, notice, "DHT_BOOTSTRAP", ",".join((*place.nodes, *found)), as_json=as_json)


@click.command()
@_host
@_bind
@click.option("--port", type=click.IntRange(1, 65535), default=RELAY_PORT, show_default=True, help="UDP port.")
@click.option("--bootstrap", "nodes", metavar="NODES", help="DHT nodes of the mesh. Default: DHT_BOOTSTRAP, or the nodes on --host.")
@click.option("--key-file", type=click.Path(path_type=Path, dir_okay=False), help="File of the relay's key, created if missing.")
@print_format.output_options('Print {"DHT_RELAYS": …}.')
@click.pass_obj
def relay(here: CliContext, /, *, host: str, bind: str | None, port: int, nodes: str | None, key_file: Path | None, as_json: bool) -> None:
    """Run a blind relay in the foreground, for machines whose NATs block direct connections.

    Traffic is end-to-end encrypted: the relay sees which nodes talk and how much, but not the content. NODES is a comma-separated list
    of host:port, or `public`. Prints the value for DHT_RELAYS.
    """
    from shared.identity import private_file
    from stack import secret_files
    from stack.servers import dht_programs

    place = _place(host, bind, FIRST_PORT)
    _check_ports(place, (port,), "the relay")
    found = nodes or here.environment.get("DHT_BOOTSTRAP")
    chosen = _nodes("--bootstrap", found) if found else place.nodes
    file = here.folder / key_file if key_file else user_folders.state(here.environment) / "relay_seed"
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    private_file.create(file, secret_files.SECRETS["relay_seed"])
    notice = (
        f"A blind relay is running on UDP port {port}, with its key in {file}. Open this port in the firewall.\n"
        "Use this setting on the machines of the mesh. Press Ctrl-C to stop."
    )
    command = dht_programs.relay_command(place, port, chosen, file, _node_binary(here))
    _run(here, command, notice, "DHT_RELAYS", dht_programs.relay_key(file), as_json=as_json)


def _place(host: str, bind: str | None, first_port: int) -> "DhtAddresses":
    from stack import settings
    from stack.servers import dht_programs

    if host == "0.0.0.0":  # noqa: S104 - refused, not bound
        raise click.UsageError("--host is the address that other machines use; to listen on all addresses, use --bind 0.0.0.0")
    if not settings.is_reachable_host(host):
        raise click.UsageError(f"--host {host} is neither an IPv4 address nor a DNS name")
    if bind is not None and not settings.is_ipv4(bind):
        raise click.UsageError(f"--bind {bind} is not an IPv4 address")
    return dht_programs.DhtAddresses(host, bind or dht_programs.bind_of(host), first_port)


def _nodes(option: str, text: str) -> tuple[str, ...]:
    from stack import settings

    nodes = tuple(node.strip() for node in text.split(",") if node.strip())
    if mistakes := list(settings.mistakes_of_nodes(nodes)):
        raise click.UsageError(f"{option}: {'; '.join(mistakes)}")
    return nodes


def _check_ports(place: "DhtAddresses", wanted: Sequence[int], program: str) -> None:
    from stack import ports

    found = [ports.WantedPort(port, program, "--port", is_udp=True, bind=place.bind) for port in wanted]
    if conflicts := ports.find_conflicts(found, ports.look(found)):
        raise errors.BadSettings("; ".join(conflicts))


def _node_binary(here: CliContext) -> Path | None:
    chosen = here.environment.get("NODE_BINARY")
    return Path(chosen) if chosen else None


def _run(here: CliContext, command: Sequence[str], notice: str, name: str, value: str, *, as_json: bool) -> None:
    def ready() -> None:
        printing.note(notice)
        if as_json:
            printing.show_json({name: value})
        else:
            click.echo(f"{name}={value}")
        # A reader at the other end of a pipe waits for this line while we run.
        sys.stdout.flush()

    run(command, here.environment, ready)
