"""Hyperswarm for asyncio: peers that find each other by topic, anywhere, and exchange messages. See README.md.

Needs only the standard library and Node.js.
"""

from shared.transports.hyperswarm.connection_table import (
    Banned,
    DhtStats,
    Event,
    PathChanged,
    PeerFailed,
    SidecarDied,
    SidecarRestarted,
    Stats,
)
from shared.transports.hyperswarm.peer_connection import MAX_MESSAGE_BYTES, Path, PeerAddress, PeerConnection
from shared.transports.hyperswarm.sidecar_process import find_node
from shared.transports.hyperswarm.stock_requests import Request
from shared.transports.hyperswarm.swarm import Swarm, SwarmFollower
from shared.transports.hyperswarm.swarm_errors import ConnectionClosed, NodeMissing, RequestRefused, SidecarLost, SwarmError

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
