"""Lists the mesh's nodes as seen by this gateway, including itself."""

from services.gateway.scheduling import worker_records
from services.gateway.scheduling.dispatch import Dispatch
from shared.api.gateway import ModelPullRow, NodeRow
from shared.node import Node
from shared.protocol.directory import DirectoryEntry
from shared.telemetry.version import version
from shared.types import SERVICE_NAMES, Role


def of_mesh(node: Node, dispatch: Dispatch) -> tuple[NodeRow, ...]:
    """Return a row for each node, by role and id."""
    rows = [_own_row(node, dispatch.in_flight), *(_row(node, dispatch, entry) for entry in node.directory.entries())]
    return tuple(sorted(rows, key=lambda row: (row.role, row.id)))


def _own_row(node: Node, running: int) -> NodeRow:
    return NodeRow(
        id=node.id,
        role=Role.GATEWAY,
        service=SERVICE_NAMES[Role.GATEWAY],
        path="self",
        alive=True,
        refused=False,
        usable=True,
        why_not="",
        models=(),
        since=node.started_at,
        version=version(),
        running=running,
        queued=0,
        slots=0,
        trouble=node.node_transports.faults(),
    )


def _row(node: Node, dispatch: Dispatch, entry: DirectoryEntry) -> NodeRow:
    announcement = entry.announcement
    seconds = node.node_transports.round_trip_seconds(entry.node)
    # Quarantine is known to gateways, but not to the directory.
    why_not = entry.why_not or worker_records.why_not(dispatch.worker_stats.dishonest_workers.seconds_left(entry.node, dispatch.clock()))
    return NodeRow(
        id=entry.node,
        role=entry.role,
        service=SERVICE_NAMES.get(entry.role, entry.role.value),
        path=entry.path,
        alive=entry.alive,
        refused=entry.refused,
        usable=not why_not,
        why_not=why_not,
        models=tuple(offer.name for offer in announcement.models),
        since=entry.since,
        version=announcement.version,
        running=announcement.load.running,
        queued=announcement.load.queued,
        slots=announcement.load.slots,
        round_trip_ms=None if seconds is None else round(seconds * 1000, 3),
        labels=announcement.labels,
        trouble=announcement.trouble if entry.alive else "",
        pulls=tuple(
            ModelPullRow(pull.name, pull.done_bytes, pull.total_bytes, pull.bytes_per_second) for pull in announcement.pulls if entry.alive
        ),
    )
