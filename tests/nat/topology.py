"""Sites behind NATs on one made-up public segment, built from network namespaces: invisible outside, and removed at the end.

    async with internet() as net:
        box = await net.house("box", Nat.PORT_PRESERVING)
        process = await box.start("aicli", "worker")
        await box.link_down()

Needs root, `ip` and `iptables`; ``why_not()`` says what is missing. The addresses (5.5.5.0/24) exist only in the namespaces, which
have no route to anywhere else.
"""

import asyncio
import os
import re
import secrets
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import IO

#: Names of our namespaces: this, the process that created them, a few random letters, the machine.
PREFIX = "aimnat"
NAMESPACES = Path("/run/netns")
#: In a namespace, `ip netns exec` replaces files of /etc by those in the folder here that has the namespace's name.
ETC = Path("/etc/netns")
#: The addresses of the public segment's own machine: one for each DHT node, and one for a relay.
PUBLIC_ADDRESSES = tuple(f"5.5.5.{last}" for last in range(1, 6))
#: Commands that set up the network take milliseconds, on two busy cores a second at worst.
COMMAND_SECONDS = 20.0


class Nat(StrEnum):
    #: One outside port per inside port, for all destinations: what most home routers do.
    PORT_PRESERVING = "port preserving"
    #: A different outside port for each destination: carriers and companies. No port can be announced in advance.
    SYMMETRIC = "symmetric"


class CommandFailed(Exception):
    """A command that sets up the network failed; the message has the command and its output."""


#: Bits of the effective capabilities (linux/capability.h).
CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21


def why_not() -> str:
    """Return what prevents network namespaces here, as a text for people; empty if nothing does."""
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
    """Run a command to its end and return its output."""
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
    #: The address on which its programs may listen.
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
        """Run a command here to its end and return its output."""
        return await command(*self._inside(words))

    async def kill_all(self) -> None:
        """Kill every program here with SIGKILL, and wait until they are gone."""
        while pids := (await command("ip", "netns", "pids", self.place)).split():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            await asyncio.sleep(0.01)


@dataclass(slots=True)
class House(Machine):
    """A machine behind its own NAT."""

    #: The namespace of the NAT.
    gate: str = ""
    nat: Nat = Nat.PORT_PRESERVING
    public_address: str = ""

    async def link_down(self) -> None:
        """Disconnect the NAT from the public segment."""
        await command("ip", "-n", self.gate, "link", "set", "out", "down")

    async def link_up(self) -> None:
        await command("ip", "-n", self.gate, "link", "set", "out", "up")

    async def change_public_address(self, address: str) -> None:
        """Change the address and forget all connections, as a provider does at night."""
        old, self.public_address = self.public_address, address
        # In this order, because deleting the first address of a network deletes its other addresses, too.
        await command("ip", "-n", self.gate, "addr", "del", f"{old}/24", "dev", "out")
        await command("ip", "-n", self.gate, "addr", "add", f"{address}/24", "dev", "out")
        await self.forget_connections()

    async def forget_connections(self) -> None:
        """Clear the NAT's connection table, as after a power cut. MASQUERADE clears it when its address is removed."""
        if shutil.which("conntrack") is not None:
            with suppress(CommandFailed):
                await command("ip", "netns", "exec", self.gate, "conntrack", "-F")

    async def drop(self, other: str) -> None:
        """From now on, drop all packets between here and that public address, without an error."""
        for side in ("-s", "-d"):
            await command("ip", "netns", "exec", self.gate, "iptables", "-t", "raw", "-I", "PREROUTING", side, other, "-j", "DROP")

    async def allow_only(self, port: int, to: str) -> None:
        """Drop what the machine sends elsewhere, without an error; TCP to this port and address passes."""
        for rule in (("-j", "DROP"), ("-p", "tcp", "-d", to, "--dport", str(port), "-j", "ACCEPT")):
            await command("ip", "netns", "exec", self.gate, "iptables", "-w", "-I", "FORWARD", "-i", "in", *rule)

    async def pass_again(self, other: str) -> None:
        for side in ("-s", "-d"):
            await command("ip", "netns", "exec", self.gate, "iptables", "-t", "raw", "-D", "PREROUTING", side, other, "-j", "DROP")


@dataclass(slots=True)
class Internet:
    """The public segment and the sites on it."""

    #: Unique for each Internet.
    name: str
    public: Machine
    #: Its machines reach each other within ``connected`` only.
    is_far: bool = False
    houses: list[House] = field(default_factory=list)
    #: What every machine resolves.
    _names: dict[str, str] = field(default_factory=dict)
    #: Of a far segment: namespace, device and addresses of each machine.
    _ends: list[str] = field(default_factory=list)

    def point(self, name: str, address: str) -> None:
        """Make the name resolve to this address on every machine. Programs that started before there was any name see none."""
        self._names[name] = address
        for machine in (self.public, *self.houses):
            self._write_names(machine)

    def _write_names(self, machine: Machine) -> None:
        hosts = ETC / machine.place / "hosts"
        hosts.parent.mkdir(parents=True, exist_ok=True)
        # In place, because running programs have this very file mounted.
        hosts.write_text("".join(f"{address} {name}\n" for name, address in {"localhost": "127.0.0.1", **self._names}.items()))

    async def move_public(self, address: str) -> None:
        """Replace the public machine's addresses by this one."""
        await command("ip", "-n", self.public.place, "addr", "flush", "dev", "br0")
        await command("ip", "-n", self.public.place, "addr", "add", f"{address}/24", "dev", "br0")

    async def host(self, name: str) -> Machine:
        """Add a machine without a NAT to a far segment."""
        machine = Machine(f"{self.name}-{name}", f"5.5.5.{100 + len(self._ends)}")
        await _add_namespace(machine.place)
        await self._add_end(machine.place, "out", machine.address)
        await command("ip", "-n", machine.place, "addr", "add", f"{machine.address}/24", "dev", "out")
        await command("ip", "-n", machine.place, "link", "set", "out", "up")
        return machine

    async def _add_end(self, place: str, device: str, *addresses: str) -> None:
        await command("ip", "-n", place, "tuntap", "add", device, "mode", "tun")
        self._ends.append(",".join((place, device, *addresses)))

    @asynccontextmanager
    async def connected(self, milliseconds: float) -> AsyncIterator[None]:
        """Pass packets between the machines of a far segment that exist now, each packet after this time."""
        pipe = asyncio.subprocess.PIPE
        words = (sys.executable, "-m", "tests.nat.wire", str(milliseconds), *self._ends)
        process = await asyncio.create_subprocess_exec(*words, stdout=pipe)
        try:
            assert process.stdout is not None
            assert await process.stdout.readline(), "the wire ended before it was ready"
            yield
        finally:
            process.kill()
            await process.wait()

    async def house(self, name: str, nat: Nat) -> House:
        """Add a site; its machine is 10.N.0.2, its NAT 5.5.5.(10 + N)."""
        number = len(self.houses) + 1
        house = House(f"{self.name}-{name}", f"10.{number}.0.2", f"{self.name}-{name}-nat", nat, f"5.5.5.{10 + number}")
        self.houses.append(house)
        inner_gate = f"10.{number}.0.1"
        for place in (house.gate, house.place):
            await _add_namespace(place)
        # Created inside the namespaces, so that the names are free however many tests run at once.
        if self.is_far:
            await self._add_end(house.gate, "out", house.public_address)
        else:
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
    """Set up NAT as a home router does: only replies come in, and the addresses inside are hidden."""
    inside = ("ip", "netns", "exec", house.gate)
    await command(*inside, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    random = ("--random-fully",) if house.nat is Nat.SYMMETRIC else ()
    for rule in (
        ("-t", "nat", "-A", "POSTROUTING", "-o", "out", "-p", "udp", "-j", "MASQUERADE", *random),
        ("-t", "nat", "-A", "POSTROUTING", "-o", "out", "-j", "MASQUERADE"),
        ("-A", "FORWARD", "-i", "out", "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT"),
        ("-A", "FORWARD", "-i", "out", "-j", "DROP"),
        # Otherwise the NAT itself answers a stray punch, and its connection entry spoils the port for the machine inside.
        ("-A", "INPUT", "-i", "out", "-m", "conntrack", "--ctstate", "NEW", "-j", "DROP"),
    ):
        await command(*inside, "iptables", "-w", *rule)


async def _remove(beginning: str) -> None:
    """Remove every namespace whose name begins like this, and kill what runs in it."""
    for place in _namespaces(beginning):
        await Machine(place, "").kill_all()
    for place in _namespaces(beginning):
        # This also removes its veths, routes and rules.
        await command("ip", "netns", "del", place)
        shutil.rmtree(ETC / place, ignore_errors=True)


def _namespaces(beginning: str) -> list[str]:
    return sorted(path.name for path in NAMESPACES.glob(f"{beginning}-*"))


def _runs(pid: str) -> bool:
    return Path("/proc", pid).exists()


async def remove_leftovers() -> None:
    """Remove the namespaces of killed runs, whose processes no longer exist."""
    for place in _namespaces(PREFIX):
        _, pid, letters, _ = place.split("-", 3)
        if not _runs(pid):
            await _remove(f"{PREFIX}-{pid}-{letters}")


@asynccontextmanager
async def internet(*, is_far: bool = False) -> AsyncIterator[Internet]:
    """A public segment with nothing on it but PUBLIC_ADDRESSES; everything is removed at the end, even after a failure."""
    await remove_leftovers()
    name = f"{PREFIX}-{os.getpid()}-{secrets.token_hex(2)}"
    net = Internet(name, Machine(f"{name}-pub", PUBLIC_ADDRESSES[0]), is_far)
    try:
        await _add_namespace(net.public.place)
        if is_far:
            await net._add_end(net.public.place, "br0", *PUBLIC_ADDRESSES)
        else:
            await command("ip", "-n", net.public.place, "link", "add", "br0", "type", "bridge")
        await command("ip", "-n", net.public.place, "link", "set", "br0", "up")
        for address in PUBLIC_ADDRESSES:
            await command("ip", "-n", net.public.place, "addr", "add", f"{address}/24", "dev", "br0")
        yield net
    finally:
        await net.close()
