"""Hyperswarm for asyncio: peers that find each other by topic, anywhere, and exchange messages. See README.md.

Needs only the standard library and Node.js.
"""

from shared.transports.hyperswarm.block_copies import (
    BLOCK_BYTES,
    BlockCopies,
    CopyFile,
    CopyListener,
    Ending,
    WholeFile,
)
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
from shared.transports.hyperswarm.swarm import Swarm
from shared.transports.hyperswarm.swarm_errors import ConnectionClosed, NodeMissing, RequestRefused, SidecarLost, SwarmError

__all__ = [
    "BLOCK_BYTES",
    "MAX_MESSAGE_BYTES",
    "Banned",
    "BlockCopies",
    "ConnectionClosed",
    "CopyFile",
    "CopyListener",
    "DhtStats",
    "Ending",
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
    "WholeFile",
    "find_node",
]
