"""Hyperswarm for asyncio: peers that meet by topic, wherever they are, and talk in messages. See README.md.

Stands on the standard library and Node.js alone.
"""

from shared.hyperswarm.connection import MAX_MESSAGE_BYTES, Address, Connection, Path
from shared.hyperswarm.errors import ConnectionClosed, NodeMissing, RequestRefused, SidecarLost, SwarmError
from shared.hyperswarm.events import (
    Banned,
    DhtStats,
    Event,
    NetworkChanged,
    PathChanged,
    PeerFailed,
    Punches,
    Relaying,
    SidecarDied,
    SidecarRestarted,
    Stats,
)
from shared.hyperswarm.firewall import Firewall
from shared.hyperswarm.keys import public_key
from shared.hyperswarm.node_binary import find_node
from shared.hyperswarm.requests import Request
from shared.hyperswarm.swarm import Swarm

__all__ = [
    "MAX_MESSAGE_BYTES",
    "Address",
    "Banned",
    "Connection",
    "ConnectionClosed",
    "DhtStats",
    "Event",
    "Firewall",
    "NetworkChanged",
    "NodeMissing",
    "Path",
    "PathChanged",
    "PeerFailed",
    "Punches",
    "Relaying",
    "Request",
    "RequestRefused",
    "SidecarDied",
    "SidecarLost",
    "SidecarRestarted",
    "Stats",
    "Swarm",
    "SwarmError",
    "find_node",
    "public_key",
]
