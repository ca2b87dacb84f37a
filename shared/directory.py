"""stub: being written"""

from collections.abc import Iterable
from datetime import datetime

import msgspec

from shared.types import ModelName, NodeId, Role


class ModelOffer(msgspec.Struct, array_like=True, frozen=True):
    name: ModelName
    context_tokens: int
    digest: str = ""


class Load(msgspec.Struct, array_like=True, frozen=True):
    """How busy a node is."""

    slots: int = 0
    running: int = 0
    queued: int = 0
    #: Seconds that a new call would wait, as the node expects.
    expected_wait_seconds: float = 0.0


class Announcement(msgspec.Struct, array_like=True, frozen=True):
    """What a node says of itself, every 2 s and at once on change."""

    role: Role
    node: NodeId
    version: str
    #: When the process started: a new one with the same key has another.
    started_at: datetime
    models: tuple[ModelOffer, ...] = ()
    load: Load = Load()
    draining: bool = False
    #: Why this node should not be used, by its own word; empty when it can be.
    not_ready: str = ""
    labels: dict[str, str] = {}


class Entry:
    """A node as the directory knows it."""

    announcement: Announcement
    path: str
    alive: bool
    #: Alive, or gone, since then.
    since: datetime
    why_gone: str


class Directory:
    def entries(self, role: Role | None = None) -> Iterable[Entry]:
        """Every node known, gone ones included for an hour."""
        raise NotImplementedError

    def usable(self, role: Role) -> list[Entry]:
        """Alive, ready, not draining."""
        raise NotImplementedError
