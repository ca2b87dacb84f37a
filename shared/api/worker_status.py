"""The status file that a running worker writes beside its key, in JSON. `aicli worker status` shows it."""

from datetime import datetime
from typing import Annotated

import msgspec

from shared.api.method import Body
from shared.types import MeshName, NodeId, Role

Line = Annotated[str, msgspec.Meta(max_length=2000)]


class Reached(Body, frozen=True, omit_defaults=False):
    """A gateway that this worker is connected to."""

    role: Role
    node: NodeId
    #: nats, direct, punched or relayed.
    path: str
    #: None until measured.
    round_trip_ms: float | None


class WorkerStatus(Body, frozen=True, omit_defaults=False):
    told_at: datetime
    mesh: MeshName
    node: NodeId
    #: The worker's state, in sentences.
    lines: tuple[Line, ...]
    is_paused: bool
    gateways: tuple[Reached, ...]
    #: Models that accept requests now.
    models: tuple[str, ...]
    running: int
    queued: int


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(WorkerStatus).decode
