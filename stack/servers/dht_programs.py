"""The mesh's own DHT nodes and its blind relay: two programs of the Hyperswarm sidecar, and the settings that services get for them."""

import ipaddress
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pyhyperswarm import sidecar_process, swarm_errors

from shared import addresses, errors
from shared.identity import node_keys
from stack.ports import WantedPort
from stack.servers.program import DatagramProbe, Program
from stack.settings import DHT_NODES, PUBLIC_DHT, StackSettings, is_ipv4

NAME, RELAY = "dht", "relay"
#: A request of dht-rpc (lib/io.js): version 3, internal, number 0x1234, no address, command PING; and how answers begin.
_PING = bytes([0x03, 0x04, 0x34, 0x12, *bytes(6), 0x00])
_PONG = b"\x13"
#: They only have sockets to close.
_GRACE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class DhtAddresses:
    """Where the DHT nodes and the relay of one machine listen."""

    #: The address or name that other machines use.
    host: str
    #: The local address that they bind to.
    bind: str
    first_port: int

    @property
    def ports(self) -> tuple[int, ...]:
        return tuple(range(self.first_port, self.first_port + DHT_NODES))

    @property
    def relay_port(self) -> int:
        return self.first_port + DHT_NODES

    @property
    def nodes(self) -> tuple[str, ...]:
        """Return them in the format of DHT_BOOTSTRAP."""
        return tuple(addresses.host_port(self.host, port) for port in self.ports)

    @property
    def ports_probe(self) -> DatagramProbe:
        return self._probe(*self.ports)

    @property
    def relay_probe(self) -> DatagramProbe:
        return self._probe(self.relay_port)

    def _probe(self, *ports: int) -> DatagramProbe:
        here = "127.0.0.1" if ipaddress.IPv4Address(self.bind).is_unspecified else self.bind
        return DatagramProbe(here, ports, _PING, _PONG)


def of(settings: StackSettings) -> DhtAddresses:
    return DhtAddresses(settings.dht_host, settings.dht_bind_host or bind_of(settings.dht_host), settings.dht_port)


def bind_of(host: str) -> str:
    """Bind to all addresses for a name: its address can change, and can be that of a router."""
    return host if is_ipv4(host) else "0.0.0.0"  # noqa: S104 - what others may reach


def is_embedded(settings: StackSettings) -> bool:
    return settings.hyperswarm and not settings.dht_nodes


def has_relay(settings: StackSettings) -> bool:
    return settings.hyperswarm and settings.relay


def bootstrap(settings: StackSettings) -> tuple[str, ...]:
    return settings.dht_nodes or of(settings).nodes


def environment_of_services(settings: StackSettings, relay_seed: Path) -> dict[str, str]:
    """Return the Hyperswarm settings of every service; nothing if Hyperswarm is off. Reads the relay's key."""
    if not settings.hyperswarm:
        return {}
    relays = [*settings.dht_relays, *([relay_key(relay_seed)] if has_relay(settings) else [])]
    environment = {"DHT_BOOTSTRAP": ",".join(bootstrap(settings)), "DHT_RELAYS": ",".join(relays)}
    # A socket on another interface could not reach DHT nodes on loopback.
    if is_embedded(settings) and is_ipv4(settings.dht_host) and ipaddress.IPv4Address(settings.dht_host).is_loopback:
        environment["SWARM_HOST"] = settings.dht_host
    return {name: value for name, value in environment.items() if value}


def relay_key(seed_file: Path) -> str:
    """Return the public key, in hex, for the relay seed in this file. Raises BadSettings if it contains none."""
    try:
        seed = bytes.fromhex(seed_file.read_text(encoding="ascii"))
        if len(seed) != 32:
            raise ValueError(f"{len(seed)} bytes")
    except (OSError, ValueError) as error:
        raise errors.BadSettings(
            f"{seed_file} contains no relay key (64 hexadecimal digits)", hint="delete it; a new one will be created"
        ) from error
    return node_keys.NodeKey(node_keys.seed_of(seed)).raw.hex()


def programs(settings: StackSettings, relay_seed: Path, environment: Mapping[str, str]) -> list[Program]:
    """Return the Hyperswarm programs of this stack. Raises BadSettings if Node.js is missing."""
    found = []
    place = of(settings)
    if is_embedded(settings):
        found.append(_program(NAME, bootstrap_command(place, settings.node_binary), place.ports_probe, environment))
    if has_relay(settings):
        command = relay_command(place, place.relay_port, bootstrap(settings), relay_seed, settings.node_binary)
        found.append(_program(RELAY, command, place.relay_probe, environment))
    return found


def _program(name: str, command: tuple[str, ...], probe: DatagramProbe, environment: Mapping[str, str]) -> Program:
    return Program(
        name=name,
        command=command,
        environment=dict(environment),
        stage=0,
        probe=probe,
        # The services start without it: NATS connects them, and they look for the DHT until it is up.
        is_waited_for=False,
        ends_with_stdin=True,
        grace_seconds=_GRACE_SECONDS,
    )


def ports_wanted(settings: StackSettings) -> list[WantedPort]:
    place = of(settings)
    names = [(port, "a DHT node") for port in place.ports] if is_embedded(settings) else []
    if has_relay(settings):
        names.append((place.relay_port, "the relay"))
    return [WantedPort(port, name, "DHT_PORT", is_udp=True, bind=place.bind) for port, name in names]


def bootstrap_command(place: DhtAddresses, node: Path | None = None, others: tuple[str, ...] = ()) -> tuple[str, ...]:
    """``others`` are DHT nodes on another machine that form one DHT with these."""
    options: dict[str, object] = {"host": place.host, "bind": place.bind, "ports": place.ports}
    if others:
        options["bootstrap"] = _split(others)
    return _command("bootstrap.js", options, node)


def relay_command(place: DhtAddresses, port: int, nodes: tuple[str, ...], seed_file: Path, node: Path | None = None) -> tuple[str, ...]:
    options: dict[str, object] = {"seedFile": str(seed_file), "host": place.host, "bind": place.bind, "port": port}
    if nodes != (PUBLIC_DHT,):
        options["bootstrap"] = _split(nodes)
    return _command("relay.js", options, node)


def _split(nodes: tuple[str, ...]) -> list[dict[str, object]]:
    return [{"host": host, "port": int(port)} for host, _, port in (node.rpartition(":") for node in nodes)]


def _command(program: str, options: Mapping[str, object], node: Path | None) -> tuple[str, ...]:
    try:
        binary = node or sidecar_process.find_node()
        folder = sidecar_process.find_sidecar().parent
    except swarm_errors.NodeMissing as error:
        raise errors.BadSettings(str(error), hint="or disable Hyperswarm with HYPERSWARM=off") from error
    return (os.fspath(binary), str(folder / program), json.dumps(options))
