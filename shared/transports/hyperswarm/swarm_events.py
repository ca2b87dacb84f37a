"""What a swarm tells about itself: events as they happen, and stats when asked."""

from dataclasses import dataclass

from shared.transports.hyperswarm.peer_connection import PeerConnection


@dataclass(frozen=True, slots=True)
class SidecarDied:
    #: What it said last, empty when it was killed.
    words: str


@dataclass(frozen=True, slots=True)
class SidecarRestarted:
    #: How often since the swarm began.
    restarts: int


@dataclass(frozen=True, slots=True)
class PeerFailed:
    """A peer was found and could not be connected to."""

    key: bytes
    topics: tuple[bytes, ...]
    #: Of hyperdht: PEER_NOT_FOUND, HOLEPUNCH_DOUBLE_RANDOMIZED_NATS, …; ours: NO_PREFACE, BAD_PREFACE, FLOW_CONTROL.
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class PathChanged:
    """The connection runs another way now, as when a relayed one got through directly."""

    connection: PeerConnection


@dataclass(frozen=True, slots=True)
class Banned:
    """The firewall refused a peer that dialled us. Of many, only some are told."""

    key: bytes


@dataclass(frozen=True, slots=True)
class NetworkChanged:
    """The network came back, or this machine has other addresses."""


Event = SidecarDied | SidecarRestarted | PeerFailed | PathChanged | Banned | NetworkChanged


@dataclass(frozen=True, slots=True)
class DhtStats:
    #: As the DHT's other nodes see us; port None behind a NAT that gives each of them another one.
    host: str | None
    port: int | None
    firewalled: bool
    #: Behind a symmetric NAT: two such peers need a relay.
    randomized: bool
    nodes: int
    bootstrapped: bool


@dataclass(frozen=True, slots=True)
class Punches:
    consistent: int
    random: int
    open: int


@dataclass(frozen=True, slots=True)
class Relaying:
    attempts: int
    successes: int
    aborts: int


@dataclass(frozen=True, slots=True)
class Stats:
    #: Of the sidecar.
    rss_bytes: int
    pid: int
    connections: int
    #: Known, connected or not.
    peers: int
    #: Lost, and dialled until they are back.
    lost: int
    online: bool
    restarts: int
    dht: DhtStats
    punches: Punches
    relaying: Relaying
