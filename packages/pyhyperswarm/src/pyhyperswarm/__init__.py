"""Hyperswarm for asyncio: peers that find each other by topic, anywhere, and exchange messages. See README.md.

Needs only the standard library and Node.js.
"""

from pyhyperswarm.connection_table import (
    Banned,
    DhtStats,
    Event,
    PathChanged,
    PeerFailed,
    SidecarDied,
    SidecarRestarted,
    Stats,
)
from pyhyperswarm.peer_connection import MAX_MESSAGE_BYTES, Path, PeerAddress, PeerConnection
from pyhyperswarm.sidecar_process import find_node
from pyhyperswarm.stock_requests import Request
from pyhyperswarm.swarm import Swarm, SwarmFollower
from pyhyperswarm.swarm_errors import ConnectionClosed, NodeMissing, RequestRefused, SidecarLost, SwarmError

__all__ = [
    "MAX_MESSAGE_BYTES",
    "Banned",
    "ConnectionClosed",
    "DhtStats",
    "Event",
    "NodeMissing",
    "Path",
    "PathChanged",
    "PeerAddress",
    "PeerConnection",
    "PeerFailed",
    "Request",
    "RequestRefused",
    "SidecarDied",
    "SidecarLost",
    "SidecarRestarted",
    "Stats",
    "Swarm",
    "SwarmError",
    "SwarmFollower",
    "find_node",
]
