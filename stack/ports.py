"""Check that the ports are free; otherwise name the program that holds them and the setting that changes them."""

import errno
import secrets
import socket
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from shared import errors, processes
from shared.processes import PortListener


@dataclass(frozen=True, slots=True)
class WantedPort:
    """A port that one of our programs will listen on."""

    port: int
    program: str
    #: The setting that changes it.
    variable: str
    #: UDP instead of TCP; the two never conflict.
    is_udp: bool = False
    bind: str = "127.0.0.1"

    @property
    def name(self) -> str:
        return f"{'UDP ' if self.is_udp else ''}port {self.port}"


def find_conflicts(wanted: Sequence[WantedPort], held: Mapping[WantedPort, PortListener]) -> list[str]:
    """Describe each port that is taken, invalid or used twice, in one sentence. Pure."""
    found = []
    seen: dict[tuple[bool, int], WantedPort] = {}
    for want in wanted:
        place = (want.is_udp, want.port)
        if not _is_port(want.port):
            found.append(f"{want.variable}={want.port} is not a port; choose one between 1 and 65535")
        elif place in seen:
            other = seen[place]
            found.append(f"{want.name} is used by both {other.program} and {want.program}: set {want.variable} or {other.variable}")
        seen.setdefault(place, want)
    for holder in dict.fromkeys(held[want] for want in seen.values() if want in held):
        taken = [want for want in seen.values() if held.get(want) == holder]
        if len(taken) == 1:
            found.append(f"{taken[0].name} for {taken[0].program} is taken by {holder}: stop it, or set {taken[0].variable} to a free port")
        else:
            names = ", ".join(f"{want.name.removeprefix('port ')} ({want.program})" for want in taken)
            found.append(f"{len(taken)} ports are taken by {holder}: {names}. Stop it, or set other ports")
    return found


def _is_port(number: int) -> bool:
    return 0 < number < 65536


def look(wanted: Iterable[WantedPort]) -> dict[WantedPort, PortListener]:
    """Return what holds the ports that are not free."""
    return {
        want: processes.listener_on(want.port, is_udp=want.is_udp)
        for want in wanted
        if _is_port(want.port) and not is_free(want.port, is_udp=want.is_udp, bind=want.bind)
    }


def is_free(port: int, *, is_udp: bool = False, bind: str = "127.0.0.1") -> bool:
    with socket.socket(type=socket.SOCK_DGRAM if is_udp else socket.SOCK_STREAM) as probe:
        if not is_udp:
            # As servers do, because connections of a previous run may still be closing.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((bind, port))
        except PermissionError as error:
            raise errors.BadSettings(f"port {port} needs root", hint="choose one above 1023") from error
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise errors.BadSettings(
                    f"this machine has no address {bind}", hint="bind to one of its addresses, or to 0.0.0.0"
                ) from error
            return False
    return True


def find_free(count: int = 1, *, is_udp: bool = False) -> int:
    """Return a free port, the first of ``count``.

    It is below 32768, because Linux may give a higher one to an outgoing connection before it is used.
    """
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        if all(is_free(each, is_udp=is_udp) for each in range(port, port + count)):
            return port


def check(wanted: Sequence[WantedPort]) -> None:
    """Raises BadSettings that names every conflict."""
    held = look(wanted)
    conflicts = find_conflicts(wanted, held)
    if conflicts:
        taken = [want for want in wanted if want in held] or wanted[:1]
        raise errors.BadSettings("; ".join(conflicts), hint=f"for example: {_suggest(wanted, {want.variable for want in taken})} make up")


def _suggest(wanted: Sequence[WantedPort], variables: Collection[str]) -> str:
    """Return settings with free ports; one for several consecutive ports leads to as many."""
    chosen = []
    for is_udp in (False, True):
        counts = Counter(want.variable for want in wanted if want.variable in variables and want.is_udp == is_udp)
        port = find_free(counts.total(), is_udp=is_udp) if counts else 0
        for variable, count in counts.items():
            chosen.append(f"{variable}={port}")
            port += count
    return " ".join(chosen)
