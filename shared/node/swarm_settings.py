"""Opens a node's Hyperswarm from its settings and saved membership: DHT nodes, relays, address."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pyhyperswarm import PeerAddress, Swarm

from shared import addresses, errors
from shared.identity import node_keys
from shared.node import membership_file
from shared.node.membership_file import MembershipFile
from shared.node.settings import NodeSettings

PUBLIC = "public"


def open_swarm(settings: NodeSettings, membership: MembershipFile, key: node_keys.NodeKey) -> Callable[[], Swarm] | None:
    """Return None if Hyperswarm is not used. A node on NATS needs DHT_BOOTSTRAP; a node that joined by ticket has the DHT from there."""
    joined = membership.beside or not settings.uses_nats
    if not settings.dht_bootstrap and not joined:
        return None
    bootstrap, older = (settings.dht_bootstrap, ()) if settings.dht_bootstrap else (membership.bootstrap, membership.older_bootstrap)
    relays = keys_of("DHT_RELAYS", settings.dht_relays) or membership.relays
    known = membership_file.nodes_of(membership, time.time())
    return opener(key, bootstrap, relays, host=settings.swarm_host, node=settings.node_binary, known=known, older=older)


def opener(
    key: node_keys.NodeKey,
    bootstrap: Sequence[str],
    relays: Sequence[bytes],
    *,
    host: str | None = None,
    node: Path | None = None,
    known: Sequence[str] = (),
    older: Sequence[str] = (),
) -> Callable[[], Swarm]:
    """Return a factory of Swarms with this key. ``bootstrap`` empty or `public` means the public DHT; ``known`` are other recent DHT nodes,
    ``older`` former bootstrap nodes. Raises BadSettings."""
    found, former = initial_nodes(bootstrap, older)
    if host is None and found and all(each.host in addresses.LOOPBACK for each in found):
        # Nothing outside can reach a loopback DHT, and a socket on all addresses is not found on 127.0.0.1.
        host = "127.0.0.1"
    return lambda: Swarm(
        seed=key.raw_seed,
        bootstrap=found,
        older=former,
        nodes=[PeerAddress.parse(each) for each in known],
        relays=tuple(relays),
        host=host,
        node=node,
    )


def initial_nodes(bootstrap: Sequence[str], older: Sequence[str]) -> tuple[tuple[PeerAddress, ...] | None, tuple[PeerAddress, ...]]:
    """Return the current and former bootstrap nodes for a Swarm. Unusable addresses, which auth or an older version may have allowed, are
    left out. Raises BadSettings if no current one is usable."""
    if not bootstrap or tuple(bootstrap) == (PUBLIC,):
        return None, _usable(older)[0]
    present, mistakes = _usable(bootstrap)
    if not present:
        raise errors.BadSettings(f"DHT_BOOTSTRAP: {mistakes[0]}", hint="host:port, several with commas, or `public`")
    return present, _usable(older)[0]


def _usable(nodes: Sequence[str]) -> tuple[tuple[PeerAddress, ...], list[ValueError]]:
    found, mistakes = [], []
    for node in nodes:
        try:
            found.append(PeerAddress.parse(node))
        except ValueError as error:
            mistakes.append(error)
    return tuple(found), mistakes


def keys_of(variable: str, texts: Sequence[str]) -> tuple[bytes, ...]:
    """Parse public keys from settings. Raises BadSettings."""
    try:
        return tuple(node_keys.raw_of_hex(text) for text in texts)
    except ValueError as error:
        raise errors.BadSettings(f"{variable}: a public key has 64 hexadecimal digits") from error
