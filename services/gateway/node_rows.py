"""Lists the mesh's nodes as seen by this gateway, including itself."""

from collections.abc import Mapping

from services.gateway.scheduling import worker_records
from services.gateway.scheduling.dispatch import Dispatch
from shared.api.gateway import ModelPullRow, NodeRow
from shared.node import Node
from shared.protocol import directory
from shared.protocol.directory import DirectoryEntry
from shared.telemetry.version import version
from shared.types import SERVICE_NAMES, NodeId, Role


def of_mesh(node: Node, dispatch: Dispatch) -> tuple[NodeRow, ...]:
    """Return a row for each node, by role and id."""
    entries = node.directory.entries()
    wrong_clocks = directory.find_wrong_clocks(entries, node.id)
    rows = [_own_row(node, dispatch.in_flight, wrong_clocks), *(_row(node, dispatch, entry, wrong_clocks) for entry in entries)]
    return tuple(sorted(rows, key=lambda row: (row.role, row.id)))


def _own_row(node: Node, running: int, wrong_clocks: Mapping[NodeId, str]) -> NodeRow:
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
        trouble=_join(node.node_transports.faults(), wrong_clocks.get(node.id)),
    )


def _row(node: Node, dispatch: Dispatch, entry: DirectoryEntry, wrong_clocks: Mapping[NodeId, str]) -> NodeRow:
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
        trouble=_join(announcement.trouble, wrong_clocks.get(entry.node)) if entry.alive else "",
        free_bytes=announcement.load.free_bytes,
        accepts_models=announcement.load.accepts_models,
        assigned=announcement.assigned,
        refused_models=announcement.refused,
        pulls=tuple(
            ModelPullRow(pull.name, pull.done_bytes, pull.total_bytes, pull.bytes_per_second) for pull in announcement.pulls if entry.alive
        ),
        warning=announcement.warning if entry.alive else "",
        notice=announcement.notice if entry.alive else "",
    )


def _join(*troubles: str | None) -> str:
    return "; ".join(filter(None, troubles))
