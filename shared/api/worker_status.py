"""What a running worker writes beside its key for the people at that machine: `aicli worker status` reads it. JSON."""

from datetime import datetime
from typing import Annotated

import msgspec

from shared.api.method import Body
from shared.types import MeshName, NodeId, Role

Line = Annotated[str, msgspec.Meta(max_length=2000)]


class Reached(Body, frozen=True, omit_defaults=False):
    """A node of the house that this worker is in touch with."""

    role: Role
    node: NodeId
    #: nats, direct, punched or relayed.
    path: str
    #: None until it was measured.
    round_trip_ms: float | None


class WorkerStatus(Body, frozen=True, omit_defaults=False):
    told_at: datetime
    mesh: MeshName
    node: NodeId
    #: How it is, in sentences.
    lines: tuple[Line, ...]
    is_paused: bool
    gateways: tuple[Reached, ...]
    #: Those that can be asked now.
    models: tuple[str, ...]
    running: int
    queued: int


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(WorkerStatus).decode
