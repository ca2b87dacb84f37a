"""Are the ports free, and if not, who has them and which setting moves us elsewhere?"""

import secrets
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shared import errors, processes
from shared.processes import Listener


@dataclass(frozen=True, slots=True)
class Wanted:
    """A port that a program of ours will listen on."""

    port: int
    program: str
    #: The setting that changes it.
    variable: str


def find_conflicts(wanted: Sequence[Wanted], held: dict[int, Listener]) -> list[str]:
    """One sentence per port that cannot be had: taken, impossible, or wanted twice. Pure."""
    found = []
    seen: dict[int, Wanted] = {}
    for want in wanted:
        if not 0 < want.port < 65536:
            found.append(f"{want.variable}={want.port} is not a port; choose one between 1 and 65535")
        elif want.port in seen:
            other = seen[want.port]
            found.append(f"port {want.port} is wanted by {other.program} and {want.program}: set {want.variable} or {other.variable}")
        elif want.port in held:
            found.append(
                f"port {want.port} for {want.program} is taken by {held[want.port]}: stop it, or set {want.variable} to a free port"
            )
        seen.setdefault(want.port, want)
    return found


def look(wanted: Iterable[Wanted]) -> dict[int, Listener]:
    """Who holds the ports that are not free."""
    ports = {want.port for want in wanted if 0 < want.port < 65536}
    return {port: processes.listener_on(port) for port in ports if not is_free(port)}


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: connections of a previous run that still close do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError as error:
            raise errors.BadSettings(f"port {port} needs root", hint="choose one above 1023") from error
        except OSError:
            return False
    return True


def find_free() -> int:
    """A port that is free now. Not one of those that Linux gives to outgoing connections (from 32768): it is to be kept."""
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        if is_free(port):
            return port


def check(wanted: Sequence[Wanted]) -> None:
    """Raises BadSettings that names every conflict at once."""
    held = look(wanted)
    conflicts = find_conflicts(wanted, held)
    if conflicts:
        free = find_free()
        first = next((want for want in wanted if want.port in held), wanted[0])
        raise errors.BadSettings("; ".join(conflicts), hint=f"for example: {first.variable}={free} make up")
