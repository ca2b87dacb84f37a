"""stub: being written"""

from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar
import asyncio

import msgspec

from shared import directory as directories
from shared import rpc, telemetry
from shared.api import events
from shared.api.gateway import Check
from shared.config import Variable
from shared.types import MeshName, NodeId, Role


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What every service needs; each service's own settings extend it and add ``port``."""

    mesh: Annotated[MeshName, Variable("MESH_NAME", "the mesh this node belongs to")] = MeshName("home")
    nats_url: Annotated[str, Variable("NATS_URL", "where the NATS server is")] = "nats://127.0.0.1:4222"
    node_key_file: Annotated[Path, Variable("NODE_KEY_FILE", "the file with this node's key, an nkey seed")]
    host: Annotated[str, Variable("BIND_HOST", "the address to listen on; beyond loopback only with TLS or ALLOW_PLAIN_HTTP=true")] = (
        "127.0.0.1"
    )
    metrics_enabled: Annotated[bool, Variable("METRICS_ENABLED", "serve /metrics")] = True
    log_level: Annotated[str, Variable("LOG_LEVEL", "debug, info, warning or error")] = "info"


class Node:
    """A running member of the mesh."""

    role: Role
    id: NodeId
    mesh: MeshName
    started_at: datetime
    rpc: rpc.Client
    directory: directories.Directory
    metrics: telemetry.Metrics
    #: Owner of the service's background tasks; cancelled after the drain.
    tasks: asyncio.TaskGroup

    def offer(self, *, models: tuple[directories.ModelOffer, ...], load: directories.Load, not_ready: str = "") -> None:
        """What the next announcements say; announced at once when it changed (at most every 50 ms)."""
        raise NotImplementedError

    def publish(self, event: events.Event) -> None:
        """Send a domain event; never waits and never fails, because events are hints."""
        raise NotImplementedError


class Service(Protocol):
    """What a program must be to run on a node. Its handlers are marked with ``rpc.serves``."""

    async def checks(self) -> tuple[Check, ...]:
        """What it needs and whether it is there, for /readyz; at most 2 s."""
        ...

    def asgi(self) -> Any | None:
        """Its HTTP application; /healthz, /readyz and /metrics are served before it."""
        ...


SettingsT = TypeVar("SettingsT", bound=NodeSettings)


def run(service: type[Any], settings: Any) -> None:
    """The whole life of a service process: logs, links, handlers, HTTP, drain on SIGTERM. ``service`` has ``role`` and
    ``open(settings, node)``, an async context manager that yields the running service."""
    raise NotImplementedError
