"""Houses behind NATs on one made-up public segment, out of network namespaces: nothing of it is seen outside, nothing is left.

    async with internet() as net:
        box = await net.house("box", Nat.PORT_PRESERVING)
        process = await box.start("aicli", "worker")
        await box.link_down()

Needs root, `ip` and `iptables`; ``why_not()`` says what is missing. The addresses (5.5.5.0/24) exist in the namespaces alone, which
have no route to anywhere else.
"""

import asyncio
import os
import re
import secrets
import shutil
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import IO

#: Names of our namespaces: this, the process that made them, a few random letters, the machine.
PREFIX = "aimnat"
NAMESPACES = Path("/run/netns")
#: The public segment's own machine has these: one for each DHT node, and one for a relay.
#: `ip netns exec` shows the files of the folder here that is named after a namespace in place of those in /etc.
ETC = Path("/etc/netns")
PUBLIC_ADDRESSES = tuple(f"5.5.5.{last}" for last in range(1, 6))
#: Commands that make the network are over in milliseconds; two busy cores make that a second at worst.
COMMAND_SECONDS = 20.0


class Nat(StrEnum):
    #: One outside port for one inside port, whoever is asked: what most home routers do.
    PORT_PRESERVING = "port preserving"
    #: Another outside port for each machine that is asked: carriers and companies. Nobody can be told where to knock.
    SYMMETRIC = "symmetric"


class CommandFailed(Exception):
    """A command that makes the network failed; the message has its words."""


#: Bits of the effective capabilities (linux/capability.h).
CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21


def why_not() -> str:
    """What stands against network namespaces here, for people; empty when nothing does."""
    if os.geteuid() != 0:
        return "network namespaces need root: run the tests as root"
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    held = int(found[1], 16) if found else 0
    if not (held >> CAP_NET_ADMIN & 1 and held >> CAP_SYS_ADMIN & 1):
        return "network namespaces need CAP_NET_ADMIN and CAP_SYS_ADMIN, which this container has not: run it with --privileged"
    if missing := [program for program in ("ip", "iptables") if shutil.which(program) is None]:
        return f"{' and '.join(missing)} missing: apt-get install iproute2 iptables"
    return ""


async def command(*words: str) -> str:
    """Run to the end; the output."""
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    try:
        async with asyncio.timeout(COMMAND_SECONDS):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise CommandFailed(f"{' '.join(words)}: {out.decode(errors='replace').strip()}")
    return out.decode()


@dataclass(slots=True)
class Machine:
    """One namespace with its own loopback."""

    #: The namespace.
    place: str
    #: Where programs on it may listen.
    address: str

    def _inside(self, words: Sequence[str]) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.place, *words)

    async def start(
        self,
        *words: str,
        environment: Mapping[str, str] | None = None,
        stdin: int = asyncio.subprocess.PIPE,
        stdout: int | IO[bytes] = asyncio.subprocess.PIPE,
        stderr: int | IO[bytes] | None = None,
    ) -> asyncio.subprocess.Process:
        """Start a program here. ``ip netns exec`` becomes the program, so its pid is the program's."""
        return await asyncio.create_subprocess_exec(
            *self._inside(words), stdin=stdin, stdout=stdout, stderr=stderr, env=None if environment is None else dict(environment)
        )

    async def run(self, *words: str) -> str:
        """Run to the end here; the output."""
        return await command(*self._inside(words))

    async def kill_all(self) -> None:
        """kill -9 of every program here, and until they are gone."""
        while pids := (await command("ip", "netns", "pids", self.place)).split():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            await asyncio.sleep(0.01)


@dataclass(slots=True)
class House(Machine):
    """A machine behind a NAT of its own."""

    #: The namespace of the NAT.
    gate: str = ""
    nat: Nat = Nat.PORT_PRESERVING
    public_address: str = ""

    async def link_down(self) -> None:
        """Pull the NAT's outer cable."""
        await command("ip", "-n", self.gate, "link", "set", "out", "down")

    async def link_up(self) -> None:
        await command("ip", "-n", self.gate, "link", "set", "out", "up")

    async def change_public_address(self, address: str) -> None:
        """As a provider does at night: another address, and no connection is remembered."""
        old, self.public_address = self.public_address, address
        # In this order: the first address of a network takes the others with it.
        await command("ip", "-n", self.gate, "addr", "del", f"{old}/24", "dev", "out")
        await command("ip", "-n", self.gate, "addr", "add", f"{address}/24", "dev", "out")
        await self.forget_connections()

    async def forget_connections(self) -> None:
        """The NAT loses its memory, as after a power cut. MASQUERADE does that by itself when its address goes."""
        if shutil.which("conntrack") is not None:
            with suppress(CommandFailed):
                await command("ip", "netns", "exec", self.gate, "conntrack", "-F")

    async def drop(self, other: str) -> None:
        """From now on no packet passes between here and that public address, and nobody is told."""
        for side in ("-s", "-d"):
            await command("ip", "netns", "exec", self.gate, "iptables", "-t", "raw", "-I", "PREROUTING", side, other, "-j", "DROP")

    async def pass_again(self, other: str) -> None:
        for side in ("-s", "-d"):
            await command("ip", "netns", "exec", self.gate, "iptables", "-t", "raw", "-D", "PREROUTING", side, other, "-j", "DROP")


@dataclass(slots=True)
class Internet:
    """The public segment and the houses on it."""

    #: Unique for this one.
    name: str
    public: Machine
    houses: list[House] = field(default_factory=list)
    #: What every machine's resolver says.
    _names: dict[str, str] = field(default_factory=dict)

    def point(self, name: str, address: str) -> None:
        """The name stands for this address from now on, on every machine. Programs that started without any name see none."""
        self._names[name] = address
        for machine in (self.public, *self.houses):
            self._write_names(machine)

    def _write_names(self, machine: Machine) -> None:
        hosts = ETC / machine.place / "hosts"
        hosts.parent.mkdir(parents=True, exist_ok=True)
        # In place: running programs have this very file.
        hosts.write_text("".join(f"{address} {name}\n" for name, address in {"localhost": "127.0.0.1", **self._names}.items()))

    async def move_public(self, address: str) -> None:
        """The public machine has this address from now on, and no other."""
        await command("ip", "-n", self.public.place, "addr", "flush", "dev", "br0")
        await command("ip", "-n", self.public.place, "addr", "add", f"{address}/24", "dev", "br0")

    async def house(self, name: str, nat: Nat) -> House:
        """A new house; its machine is 10.N.0.2, its NAT 5.5.5.(10 + N)."""
        number = len(self.houses) + 1
        house = House(f"{self.name}-{name}", f"10.{number}.0.2", f"{self.name}-{name}-nat", nat, f"5.5.5.{10 + number}")
        self.houses.append(house)
        inner_gate = f"10.{number}.0.1"
        for place in (house.gate, house.place):
            await _add_namespace(place)
        # Made inside the namespaces, so that the names are free however many run at once.
        port = f"p{number}"
        await command("ip", "link", "add", "out", "netns", house.gate, "type", "veth", "peer", "name", port, "netns", self.public.place)
        await command("ip", "-n", self.public.place, "link", "set", port, "master", "br0", "up")
        await command("ip", "link", "add", "in", "netns", house.gate, "type", "veth", "peer", "name", "eth0", "netns", house.place)
        for place, device, address in (
            (house.gate, "out", house.public_address),
            (house.gate, "in", inner_gate),
            (house.place, "eth0", house.address),
        ):
            await command("ip", "-n", place, "addr", "add", f"{address}/24", "dev", device)
            await command("ip", "-n", place, "link", "set", device, "up")
        await command("ip", "-n", house.place, "route", "add", "default", "via", inner_gate)
        await _make_nat(house)
        if self._names:
            self._write_names(house)
        return house

    async def close(self) -> None:
        await _remove(self.name)


async def _add_namespace(place: str) -> None:
    await command("ip", "netns", "add", place)
    await command("ip", "-n", place, "link", "set", "lo", "up")


async def _make_nat(house: House) -> None:
    """What a home router does: answers come in, nothing else does, and it hides who is inside."""
    inside = ("ip", "netns", "exec", house.gate)
    await command(*inside, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    random = ("--random-fully",) if house.nat is Nat.SYMMETRIC else ()
    for rule in (
        ("-t", "nat", "-A", "POSTROUTING", "-o", "out", "-p", "udp", "-j", "MASQUERADE", *random),
        ("-t", "nat", "-A", "POSTROUTING", "-o", "out", "-j", "MASQUERADE"),
        ("-A", "FORWARD", "-i", "out", "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT"),
        ("-A", "FORWARD", "-i", "out", "-j", "DROP"),
        # Else a stray punch makes the NAT itself answer, and its memory of that spoils the port for the machine inside.
        ("-A", "INPUT", "-i", "out", "-m", "conntrack", "--ctstate", "NEW", "-j", "DROP"),
    ):
        await command(*inside, "iptables", "-w", *rule)


async def _remove(beginning: str) -> None:
    """Every namespace whose name begins so, and what runs in it."""
    for place in _namespaces(beginning):
        await Machine(place, "").kill_all()
    for place in _namespaces(beginning):
        # Its veths, routes and rules go with it.
        await command("ip", "netns", "del", place)
        shutil.rmtree(ETC / place, ignore_errors=True)


def _namespaces(beginning: str) -> list[str]:
    return sorted(path.name for path in NAMESPACES.glob(f"{beginning}-*"))


def _runs(pid: str) -> bool:
    return Path("/proc", pid).exists()


async def remove_leftovers() -> None:
    """Of runs that were killed: their process is no more."""
    for place in _namespaces(PREFIX):
        _, pid, letters, _ = place.split("-", 3)
        if not _runs(pid):
            await _remove(f"{PREFIX}-{pid}-{letters}")


@asynccontextmanager
async def internet() -> AsyncIterator[Internet]:
    """A public segment with nothing on it but PUBLIC_ADDRESSES; everything is gone at the end, also after a failure."""
    await remove_leftovers()
    name = f"{PREFIX}-{os.getpid()}-{secrets.token_hex(2)}"
    net = Internet(name, Machine(f"{name}-pub", PUBLIC_ADDRESSES[0]))
    try:
        await _add_namespace(net.public.place)
        await command("ip", "-n", net.public.place, "link", "add", "br0", "type", "bridge")
        await command("ip", "-n", net.public.place, "link", "set", "br0", "up")
        for address in PUBLIC_ADDRESSES:
            await command("ip", "-n", net.public.place, "addr", "add", f"{address}/24", "dev", "br0")
        yield net
    finally:
        await net.close()
